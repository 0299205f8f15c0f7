"""The encoder that comes with the repository, and the command that trains it."""

import json

import pytest
import torch

from generation.scoring.architecture import SelectorArchitecture, VisionArchitecture
from generation.scoring.encoder import ENCODER_FILE, build_encoder, load_pretrained
from training.rlhf import pretrain_encoder
from training.rlhf.pretrain_encoder import (
    PretrainingNetwork,
    draw_phantoms,
    pretraining_loss,
    vocabulary,
    word_accuracy,
    words_of,
)

SMALL = {"patch_size": 32, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "pretrained": None}


def test_the_repositorys_encoder_fits_the_default_architecture_and_knows_findings():
    words = vocabulary()
    architecture = SelectorArchitecture()
    encoder = build_encoder(architecture, pretrain_encoder.IMAGE_SIZE)
    load_pretrained(encoder, architecture.pretrained)
    assert ENCODER_FILE.stat().st_size < 6_000_000
    report = json.loads((ENCODER_FILE.parent / "training.json").read_text())
    assert report["word_accuracy_unseen"] > 0.5
    phantoms = draw_phantoms(120, seed=40_000_000, words=words)
    kinds = phantoms.words[:, [words.index(word) for word in ("fundus", "oct", "ct")]]
    with torch.no_grad():
        features = encoder.eval().forward_features(phantoms.pixels.float() / 127.5 - 1).mean(1)
    # Nearest neighbours in feature space are of the same kind.
    similar = torch.cdist(features, features).fill_diagonal_(torch.inf).argmin(1)
    assert (kinds[similar] == kinds).all(1).float().mean() > 0.9


def test_words_are_those_of_the_caption():
    assert words_of("Chest CT: nodule in the left lung, axial slice.") == [
        "chest", "ct", "nodule", "in", "the", "left", "lung", "axial", "slice",
    ]  # fmt: skip
    assert {"left", "right", "fundus", "nodule"} <= set(vocabulary())


def test_a_masked_patch_is_painted_from_the_others_only():
    torch.manual_seed(0)
    network = PretrainingNetwork(VisionArchitecture(**SMALL), 5).eval()
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True  # second row, second column of 32 px patches
    changed = images.clone()
    changed[:, :, 32:64, 32:64] = 0
    assert torch.equal(network(images, mask)[1], network(changed, mask)[1])
    assert torch.equal(network.patches(images)[0, 5].view(3, 32, 32), images[0, :, 32:64, 32:64])


@pytest.mark.slow
def test_the_command_trains_an_encoder_that_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretrain_encoder, "VisionArchitecture", lambda dropout: VisionArchitecture(**SMALL, dropout=dropout)
    )
    options = ["--output", str(tmp_path), "--num_images", "48", "--num_steps", "40", "--batch_size", "16"]
    assert pretrain_encoder.main(options) == 0
    load_pretrained(build_encoder(VisionArchitecture(**SMALL), 128), str(tmp_path / "encoder.safetensors"))
    assert 0 <= json.loads((tmp_path / "training.json").read_text())["word_accuracy_unseen"] <= 1


def test_the_loss_falls_on_a_batch_seen_again():
    words = vocabulary()
    phantoms = draw_phantoms(8, seed=0, words=words)
    torch.manual_seed(0)
    network = PretrainingNetwork(VisionArchitecture(**SMALL), len(words))
    images, mask = phantoms.pixels.float() / 127.5 - 1, torch.rand(8, 16) < 0.4
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = pretraining_loss(network, images, phantoms.words, mask).item()
    for _ in range(80):
        optimizer.zero_grad()
        pretraining_loss(network, images, phantoms.words, mask).backward()
        optimizer.step()
    assert pretraining_loss(network, images, phantoms.words, mask).item() < 0.6 * before
    assert word_accuracy(network, phantoms) > 0.3  # chance: 7 words of 100
