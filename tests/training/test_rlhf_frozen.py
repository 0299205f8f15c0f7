"""Frozen encoders: read once, untouched by training, and let go of in stage 2 where ratings suffice."""

from pathlib import Path

import pytest
import torch

from generation.scoring.encoder import build_encoder
from generation.scoring.network_file import save_network
from generation.scoring.selector import PERCEPTION_FILE_NAME, Perception, SelectorArchitecture
from tests.training.rlhf_files import SIZE, SMALL, write_config, write_ratings_file, write_text_encoder
from training.rlhf import encoded_images
from training.rlhf.config import RaterSettings, from_dict, load_config
from training.rlhf.dataset import load_rated_images, soft_labels, split_images
from training.rlhf.labels import make_targets
from training.rlhf.text_features import encode_prompts
from training.rlhf.trainer import Trainer


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rlhf")
    torch.manual_seed(0)
    write_ratings_file(folder, images=40)
    write_text_encoder(folder / "pipeline")
    architecture = SelectorArchitecture(**SMALL, perception_dim=8)
    save_network(folder / "encoder.safetensors", build_encoder(architecture, SIZE), role="encoder", config={})
    save_network(folder / PERCEPTION_FILE_NAME, Perception(16, 8), role="perception", config={})
    return folder


def make_trainer(files: Path, tmp_path: Path, *, image_prior: bool = False, **training) -> Trainer:
    values = load_config(write_config(tmp_path / "c.yaml", files / "ratings.csv", **training)).to_dict()
    for network in ("selector", "policy_model"):
        values[network]["architecture"]["pretrained"] = str(files / "encoder.safetensors")
    values["selector"]["architecture"]["perception_dim"] = 8
    rated = load_rated_images(files / "ratings.csv", image_size=SIZE, settings=RaterSettings())
    labels, _, _ = soft_labels(rated, expert_weights=True)
    features, split = encode_prompts(files / "pipeline", rated.prompts), split_images(rated, seed=0)
    targets = make_targets(rated, split, expert_weights=True, image_prior=image_prior, hold_out_raters=False, seed=0)
    config = from_dict(values, source="test")
    return Trainer(config, rated, labels, split, features, image_size=SIZE, relabel=targets.relabel)


def encoders(trainer: Trainer) -> list[torch.Tensor]:
    parts = (trainer.selector.encoder, trainer.selector.perception, trainer.policy.encoder)
    return [parameter.detach().clone() for part in parts for parameter in part.parameters()]


def heads(trainer: Trainer) -> list[torch.Tensor]:
    parts = (trainer.selector.heads, trainer.policy.head)
    return [parameter.detach().clone() for part in parts for parameter in part.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_few_ratings_train_the_heads_and_leave_the_encoders(files, tmp_path):
    trainer = make_trainer(files, tmp_path, max_epochs=2)
    before, heads_before = encoders(trainer), heads(trainer)
    trainer.train_epoch()
    trainer.train_epoch()
    assert trainer.stage_of(trainer.epoch) == 2
    assert equal(encoders(trainer), before)
    assert not equal(heads(trainer), heads_before)


def test_only_training_images_are_labelled_by_what_others_foretell(files, tmp_path):
    """The networks are judged, and their temperature set, by labels that no network had a hand in."""
    plain, heeding = make_trainer(files, tmp_path), make_trainer(files, tmp_path, image_prior=True)
    train = plain.split.train
    others = torch.tensor([item for item in range(40) if item not in train.tolist()])
    assert torch.equal(heeding.soft_labels[others], plain.soft_labels[others])
    assert not torch.allclose(heeding.soft_labels[train], plain.soft_labels[train], atol=1e-3)
    assert torch.allclose(heeding.soft_labels.sum(1), torch.ones(40))
    again = make_trainer(files, tmp_path, image_prior=True)
    assert torch.equal(heeding.soft_labels, again.soft_labels)  # a resumed run learns from the same


def test_fitted_heads_learn_at_the_rate_of_an_encoder(files, tmp_path):
    """At ten times that rate they left their fit within an epoch, for worse."""
    trainer = make_trainer(files, tmp_path, max_epochs=2)
    trainer.train_epoch()
    rates = trainer.learning_rates()
    assert rates["selector_new_layers_learning_rate"] == rates["selector_encoder_learning_rate"] > 0
    assert rates["policy_new_layers_learning_rate"] == pytest.approx(10 * rates["policy_encoder_learning_rate"])


def test_a_prior_weighs_less_the_more_images_are_rated(files, tmp_path):
    """Ridge as a Gaussian prior on the weights: mean loss + penalty / n, whatever n."""
    selector = make_trainer(files, tmp_path).selector
    few, many = (selector.linear_penalties(count, knows_strengths=True) for count in (50, 500))
    assert few == pytest.approx(10 * many)
    assert selector.penalty(50).item() == pytest.approx(10 * selector.penalty(500).item())


def test_what_is_remembered_scores_as_what_is_computed_anew(files, tmp_path):
    trainer = make_trainer(files, tmp_path, max_epochs=2)
    trainer.train_epoch()
    assert trainer.percepts.shape == (40, 8 + 13)
    assert trainer.tokens.shape == (40, 16, 16)
    remembered = trainer.score_all()
    trainer.percepts = trainer.tokens = None
    for one, other in zip(vars(remembered).values(), vars(trainer.score_all()).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_enough_ratings_let_the_encoders_learn_in_stage_2_only(files, tmp_path):
    trainer = make_trainer(files, tmp_path, max_epochs=2, unfreeze_from=80)
    before = encoders(trainer)
    trainer.train_epoch()
    assert equal(encoders(trainer), before)
    trainer.train_epoch()
    assert not equal(encoders(trainer), before)
    assert trainer.tokens is None


@pytest.mark.parametrize("unfreeze_from", [80, 81], ids=["learning", "frozen"])
def test_resumed_in_either_state_equals_never_stopped(files, tmp_path, unfreeze_from):
    whole = make_trainer(files, tmp_path, max_epochs=4, unfreeze_from=unfreeze_from)
    for epoch in (1, 2, 3, 4):
        if epoch == 4:
            (tmp_path / "epoch_3").mkdir()
            whole.save(tmp_path / "epoch_3")
        whole.train_epoch()
    again = make_trainer(files, tmp_path, max_epochs=4, unfreeze_from=unfreeze_from)
    again.load(tmp_path / "epoch_3")
    again.train_epoch()
    assert equal(list(again.selector.parameters()), list(whole.selector.parameters()))
    assert equal(list(again.policy.parameters()), list(whole.policy.parameters()))


def test_encodings_that_do_not_fit_are_not_kept(files, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_images, "LARGEST_CACHE", 1000)
    trainer = make_trainer(files, tmp_path, max_epochs=2)
    assert trainer.tokens is None
    before = encoders(trainer)
    trainer.train_epoch()
    assert equal(encoders(trainer), before)
