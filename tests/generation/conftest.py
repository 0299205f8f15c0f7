"""A tiny generator with its selector and policy on disk, and as a release."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> dict[str, Path]:
    """Random weights of the smallest size: pipeline folder, selector and policy file that belong together."""
    import torch

    from tests.tiny_models import write_tiny_models

    torch.set_num_threads(1)
    return write_tiny_models(tmp_path_factory.mktemp("tiny"))


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
