"""A tiny generator with its selector and policy on disk, and as a release."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> dict[str, Path]:
    """Random weights of the smallest size: pipeline folder, selector and policy file that belong together."""
    import torch

    from generation.scoring.architecture import PolicyArchitecture, SelectorArchitecture
    from generation.scoring.policy import Policy, PolicyConfig, text_encoder_sha256
    from generation.scoring.selector import Selector, SelectorConfig
    from tests.tiny_models import build_tiny_pipeline

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    pipeline = build_tiny_pipeline()
    pipeline.save_pretrained(folder / "pipeline")
    small = {"patch_size": 8, "embed_dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "pretrained": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        selector = Selector(SelectorConfig(32, SelectorArchitecture(**small, head_dim=8, ensemble_heads=2)))
        policy = Policy(
            PolicyConfig(
                32,
                text_dim=pipeline.text_encoder.config.hidden_size,
                text_encoder_sha256=text_encoder_sha256(pipeline.text_encoder),
                architecture=PolicyArchitecture(**small, fusion_dim=8),
            )
        )
    selector.save(folder / "selector.safetensors")
    policy.save(folder / "policy.safetensors")
    return {
        "pipeline_folder": folder / "pipeline",
        "selector_file": folder / "selector.safetensors",
        "policy_file": folder / "policy.safetensors",
    }


@pytest.fixture
def tiny_release(db, artifact_root, tiny_files):
    """The tiny models published and active."""
    from generation.services import activate_release, publish_release

    release = publish_release(
        **tiny_files, quality_threshold=0.4, name="tiny", manifest={"report": {"auc": 0.8}}, is_simulated=True
    )
    return activate_release(release=release)


@pytest.fixture
def enqueued(monkeypatch) -> list[int]:
    """The keys of generation jobs handed to the broker, which does nothing with them."""
    from generation import tasks

    keys: list[int] = []
    monkeypatch.setattr(tasks.run_generation_job, "delay", keys.append)
    return keys
