"""The encoder that comes with the repository, and the command that trains it."""

import ast
import json
from pathlib import Path

import pytest
import torch

from generation.diffusion.phantoms import all_captions, class_of_caption
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.scoring.architecture import PolicyArchitecture, SelectorArchitecture, VisionArchitecture
from generation.scoring.encoder import ENCODER_FILE, build_encoder, load_pretrained
from generation.scoring.policy import Policy, PolicyConfig
from generation.scoring.selector import NUM_STRENGTHS, Selector, SelectorConfig
from training.rlhf import degradations, pretrain_encoder
from training.rlhf.degradations import DEGRADATIONS, degrade
from training.rlhf.pretrain_encoder import (
    CandidateCaptions,
    PretrainingNetwork,
    draw_phantoms,
    make_batch,
    measure,
    pretraining_loss,
    vocabulary,
    words_of,
)
from training.rlhf.text_features import encode_prompts

SMALL = {"patch_size": 32, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "pretrained": None}


@pytest.fixture(scope="module")
def features():
    return encode_prompts(EMBEDDED_MODEL_DIR, all_captions())


def small_network(features) -> PretrainingNetwork:
    torch.manual_seed(0)
    architecture = PolicyArchitecture(**SMALL, fusion_dim=16, dropout=0.0)
    config = PolicyConfig(
        pretrain_encoder.IMAGE_SIZE, features.tokens.shape[2], features.encoder_sha256, architecture
    )
    return PretrainingNetwork(Policy(config), 8, len(vocabulary()))


def test_the_repositorys_encoder_fits_the_default_architecture_and_knows_kinds():
    words = vocabulary()
    architecture = SelectorArchitecture()
    encoder = build_encoder(architecture, pretrain_encoder.IMAGE_SIZE)
    load_pretrained(encoder, architecture.pretrained)
    assert sum(path.stat().st_size for path in ENCODER_FILE.parent.glob("*.safetensors")) < 6_000_000
    phantoms = draw_phantoms(60, seed=40_000_000, words=words)
    kinds = phantoms.words[:, [words.index(word) for word in ("fundus", "oct", "ct")]]
    with torch.no_grad():
        features = encoder.eval().forward_features(phantoms.pixels.float() / 127.5 - 1).mean(1)
    # Nearest neighbours in feature space are of the same kind.
    similar = torch.cdist(features, features).fill_diagonal_(torch.inf).argmin(1)
    assert (kinds[similar] == kinds).all(1).float().mean() > 0.9


def test_the_repositorys_perception_tells_how_noisy_an_image_is():
    selector = Selector(SelectorConfig(pretrain_encoder.IMAGE_SIZE)).eval()
    selector.load_pretrained()
    images = draw_phantoms(12, seed=41_000_000, words=vocabulary()).images(torch.arange(12))
    generator = torch.Generator().manual_seed(0)
    strengths = torch.linspace(0.05, 1, 12)[torch.randperm(12, generator=generator)]
    noisy = degradations._noise(images, strengths, generator).clamp(0, 1)
    with torch.no_grad():
        told = selector.perceive(noisy)[:, -NUM_STRENGTHS + DEGRADATIONS.index("noise")]
    assert torch.corrcoef(torch.stack([told, strengths]))[0, 1] > 0.8


def test_a_perception_of_another_width_is_left_out_and_the_log_says_so(caplog):
    architecture = SelectorArchitecture(perception_dim=32)
    Selector(SelectorConfig(pretrain_encoder.IMAGE_SIZE, architecture)).load_pretrained()
    assert "does not fit perception_dim 32" in caplog.text


def test_the_repositorys_fusion_reads_the_caption_and_serves_its_text_encoder_only(features):
    config = PolicyConfig(pretrain_encoder.IMAGE_SIZE, features.tokens.shape[2], features.encoder_sha256)
    policy = Policy(config).eval()
    assert policy.load_pretrained()
    phantoms = draw_phantoms(40, seed=42_000_000, words=vocabulary())
    kinds = [class_of_caption(all_captions()[number]).kind for number in phantoms.captions]
    shifted = phantoms.captions.roll(1)
    differs = torch.tensor([kind != kinds[number - 1] for number, kind in enumerate(kinds)])
    images = phantoms.images(torch.arange(40))
    own = policy.score(images, *features[phantoms.captions])
    other = policy.score(images, *features[shifted])
    assert (own > other)[differs].float().mean() > 0.9
    stranger = Policy(PolicyConfig(pretrain_encoder.IMAGE_SIZE, features.tokens.shape[2], "another text encoder"))
    assert not stranger.load_pretrained()


def test_words_are_those_of_the_caption():
    assert words_of("Chest CT: nodule in the left lung, axial slice.") == [
        "chest", "ct", "nodule", "in", "the", "left", "lung", "axial", "slice",
    ]  # fmt: skip
    assert {"left", "right", "fundus", "nodule"} <= set(vocabulary())


def test_candidates_are_the_own_caption_every_other_class_of_its_kind_and_two_kinds_more():
    captions = all_captions()
    own = torch.tensor([captions.index(text) for text in (captions[0], captions[-1])])
    drawn, real = CandidateCaptions(captions).draw(own, torch.Generator().manual_seed(0))
    for row in range(2):
        classes = [class_of_caption(captions[number]) for number in drawn[row][real[row]]]
        kinds = [each.kind for each in classes]
        assert drawn[row, 0] == own[row]
        assert len(set(classes[:-2])) == len(classes) - 2
        assert set(kinds[:-2]) == {kinds[0]}
        assert kinds[0] not in kinds[-2:]


def test_a_degradation_of_no_strength_is_none_and_more_strength_changes_more():
    images = draw_phantoms(6, seed=43_000_000, words=vocabulary()).images(torch.arange(6))
    assert len(DEGRADATIONS) == NUM_STRENGTHS
    for name, function in degradations._DEGRADATIONS.items():
        changes = []
        for strength in (1e-6, 0.3, 1.0):
            generator = torch.Generator().manual_seed(3)
            changed = function(images, torch.full((6,), strength), generator).clamp(0, 1)
            assert changed.shape == images.shape
            changes.append((changed - images).abs().mean().item())
        assert changes[0] < changes[1] < changes[2], name
        assert changes[0] < 0.02, name  # compression rounds a little at any strength


def test_strengths_say_what_was_done():
    images = draw_phantoms(40, seed=44_000_000, words=vocabulary()).images(torch.arange(40))
    degraded, strengths = degrade(images, torch.Generator().manual_seed(0))
    untouched = (strengths == 0).all(1)
    assert 0 < untouched.sum() < 40
    assert torch.equal(degraded[untouched], images[untouched])
    assert ((degraded - images).flatten(1).abs().amax(1) > 0)[~untouched].all()


def test_pretraining_imports_no_planted_defect():
    """What simulated experts judge by must not be seen: neither the module nor a function that plants."""
    for module in (degradations, pretrain_encoder):
        names = set()
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.ImportFrom):
                names |= {node.module, *(alias.name for alias in node.names)}
        assert not names & {"generation.diffusion.phantoms.defects", "DEFECTS", "plant_defect", "draw"}


@pytest.mark.slow
def test_the_command_trains_an_encoder_that_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretrain_encoder, "PolicyArchitecture", lambda **options: PolicyArchitecture(**{**SMALL, **options})
    )
    options = ["--output", str(tmp_path), "--num_images", "48", "--num_steps", "4", "--batch_size", "16"]
    assert pretrain_encoder.main(options) == 0
    load_pretrained(build_encoder(VisionArchitecture(**SMALL), 128), str(tmp_path / "encoder.safetensors"))
    assert 0 <= json.loads((tmp_path / "training.json").read_text())["word_accuracy_unseen"] <= 1


def test_the_loss_falls_on_a_batch_seen_again(features):
    words = vocabulary()
    phantoms = draw_phantoms(8, seed=0, words=words)
    network, generator = small_network(features), torch.Generator().manual_seed(0)
    batch = make_batch(
        phantoms, torch.arange(8), CandidateCaptions(all_captions()), generator, with_degradations=True
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = pretraining_loss(network, batch, features).item()
    for _ in range(60):
        optimizer.zero_grad()
        pretraining_loss(network, batch, features).backward()
        optimizer.step()
    assert pretraining_loss(network, batch, features).item() < 0.6 * before
    found = measure(network, phantoms, features, seed=0)
    assert found["word_accuracy_unseen"] > 0.3  # chance: 7 words of 100
    assert set(found["strength_correlation_unseen"]) == set(DEGRADATIONS)
