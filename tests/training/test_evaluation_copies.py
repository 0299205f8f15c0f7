"""Copies in the evaluation: p values of generated and real images; what was held out, and trained on; by kind."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from generation.memorisation import LEVEL, MemoryIndex, small_pictures
from tests.training.test_check_dataset import scene
from training.evaluation.copies import (
    Resemblances,
    copy_figures,
    left_out_p_values,
    read_resemblances,
    similarities,
)
from training.evaluation.copies_plot import copies_plot
from training.evaluation.drawing import CALL_NAME
from training.evaluation.evaluate import Measured, Protocol, evaluate, evaluate_kinds
from training.evaluation.features import FrozenEncoder
from training.evaluation.figures import table_by_kind
from training.evaluation.held_out import held_out_rows
from training.evaluation.images import EvaluationError, GeneratedFile, ImageSet
from training.finetuning.arguments import Arguments
from training.finetuning.batches import rows_sha256
from training.finetuning.dataset import hold_out, load_dataset

FUNDUS, CT = "Fundus: left eye, drusen", "Chest CT: nodule"


def image_set(count: int, *, first: int = 0, caption: str = FUNDUS, size: int = 32) -> ImageSet:
    pixels = np.stack([np.asarray(scene(first + number, size)) for number in range(count)])
    groups = tuple(f"patient {first + number}" for number in range(count))
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), (caption,) * count, groups)


def both(one: ImageSet, other: ImageSet) -> ImageSet:
    return ImageSet(torch.cat([one.pixels, other.pixels]), one.captions + other.captions, one.groups + other.groups)


# --- p values ---


def test_the_real_images_own_p_values_follow_the_definition_and_leave_their_group_out():
    rng = np.random.default_rng(3)
    similarity, kinds = rng.normal(size=260), ["a"] * 200 + ["b"] * 60
    groups = [f"g{number // 2}" for number in range(260)]
    found = left_out_p_values(similarity, kinds, groups)
    for place in (0, 77, 199, 200, 259):  # a has 99 of its own, b has not: judged by all
        others = [i for i in range(260) if groups[i] != groups[place] and (place >= 200 or kinds[i] == "a")]
        at_least = sum(similarity[i] >= similarity[place] for i in others)
        assert found[place] == pytest.approx((1 + at_least) / (1 + len(others)))
    assert 0 < (found[:200] <= LEVEL).mean() <= 0.015
    # Two pictures of one patient that are both very near do not vouch for each other.
    similarity[:2] = 100
    assert left_out_p_values(similarity, kinds, groups)[:2] == pytest.approx([1 / 199] * 2)


def sidecars(folder: Path, memory: list[dict | None]) -> list[GeneratedFile]:
    facts = [{} if each is None else {"memory": each} for each in memory]
    return [GeneratedFile(folder / f"{i}.png", FUNDUS, i, {}, "m", False, each) for i, each in enumerate(facts)]


def test_planted_copies_are_counted_and_what_was_not_checked_says_why(tmp_path):
    trained, real, fresh = image_set(12), image_set(30, first=100), image_set(18, first=400)
    pictures = small_pictures(trained.pixels.float() / 255)
    nothing = ("",) * 12
    index = MemoryIndex(pictures, nothing, nothing, nothing, torch.linspace(0, 0.95, 220), ("fundus",) * 220)
    generated = both(trained.subset(np.arange(2)), fresh)
    judged = index.judge(generated.pixels.float() / 255, ["fundus"] * 20)
    facts = [{"similarity": each.similarity, "p_value": each.p_value} for each in judged]
    (tmp_path / CALL_NAME).touch()
    found = read_resemblances(sidecars(tmp_path, facts), real, index)
    share, nearness = copy_figures(real, generated, found, seed=0)
    assert share.value.value == pytest.approx(2 / 20) and share.chance == LEVEL
    assert share.real.value == 0 and len(share.details["p_values_real"]) == 30
    assert found.real == pytest.approx(similarities(real.pixels, index)) and nearness.num_images == 20

    assert read_resemblances(sidecars(tmp_path, facts), real, None).real is None
    unchecked = read_resemblances(sidecars(tmp_path, [None, facts[1]]), real, index)
    assert "no memory index" in unchecked
    assert "fewer than 200" in read_resemblances(sidecars(tmp_path, [facts[0] | {"p_value": None}]), real, index)
    (tmp_path / CALL_NAME).unlink()
    assert "leaves copies out" in read_resemblances(sidecars(tmp_path, facts), real, index)
    absent = copy_figures(real, generated, unchecked, seed=0)
    assert [figure.value for figure in absent] == [None, None] and absent[0].absent_because == unchecked


def test_the_plot_draws_each_kind_and_its_shares():
    p_values = np.array([0.005, 0.5, 1.0, 0.25])
    found = Resemblances(np.zeros(4), p_values, np.zeros(2), np.array([0.5, 1.0]))
    drawn = ElementTree.fromstring(
        copies_plot(found, ["Fundus", "Fundus"], ["Fundus", "Fundus", "Fundus", "Chest CT"])
    )
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "Fundus: 3 images, 33.3\u00a0% blocked" in texts and "Chest CT: 1 images, 0.0\u00a0% blocked" in texts
    assert "real, other patients" in texts
    lines = [path.get("d") for path in drawn.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke-width")]
    assert "M44 230H45.0V163.3H144.0V96.7H244.0V30.0H244" in lines


# --- by kind ---


def test_each_kind_is_measured_as_if_it_were_alone():
    real = both(image_set(44), image_set(44, first=100, caption=CT))
    made = both(
        image_set(42, first=200), both(image_set(41, first=300, caption=CT), image_set(1, caption="OCT: DME"))
    )
    encoder = FrozenEncoder("every 97th pixel", "", 32, lambda images: images.flatten(1)[:, ::97])
    protocol = Protocol(encoder, 3, 0, None)
    measured = Measured.of(real, made, None, protocol)
    by_kind = evaluate_kinds(measured, protocol)
    assert list(by_kind) == ["Chest CT", "Fundus"], "one OCT is too few"
    alone = Measured.of(
        real.subset(np.arange(44)), made.subset(np.arange(42)), None, protocol, "nothing is known of them."
    )
    figures = {figure.name: figure for figure in evaluate(alone, protocol)}
    for figure in by_kind["Fundus"]:
        if figure.value is not None:
            expected = figures[figure.name].value.value
            # The ladder's noise is drawn for all images at once: only it may differ.
            assert figure.value.value == pytest.approx(expected, abs=1e-6), figure.name
    assert evaluate_kinds(alone, protocol) == {}
    lines = table_by_kind(by_kind).splitlines()
    assert lines[0].split() == ["by", "kind", "(real)", "Chest", "CT", "Fundus"]
    assert any(line.startswith("KID (every 97th pixel)") and line.count("(") == 3 for line in lines)


# --- what was held out, and what was not ---


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory as fine-tuning writes it, but for the training."""
    for number in range(10):
        scene(number).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{CT},CT,p{number // 2}" for number in range(10)]
    (tmp_path / "data.csv").write_text("\n".join(["path,Text,modality,patient", *rows]) + "\n")
    arguments = Arguments(train_data_dir=tmp_path / "data.csv", output_dir=tmp_path, held_out_share=0.4, seed=5)
    trained, _ = hold_out(load_dataset(tmp_path / "data.csv")[0], 0.4, 5)
    (tmp_path / "config.json").write_text(json.dumps(arguments.as_json() | {"rows_sha256": rows_sha256(trained)}))
    return tmp_path


def test_what_a_run_held_out_is_found_again(run):
    found = held_out_rows(run)
    assert len(found) == 4 and len({row.group for row in found}) == 2
    assert found == hold_out(load_dataset(run / "data.csv")[0], 0.4, 5)[1]


def test_a_data_set_that_has_changed_is_refused(run):
    Image.new("RGB", (8, 8)).save(run / f"{held_out_rows(run)[0].path.stem}.png")
    held_out_rows(run)  # of the images held out any may change: none of them was trained on
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(run / f"{number}.png")
    with pytest.raises(EvaluationError, match="is not what it was"):
        held_out_rows(run)
    (run / "data.csv").unlink()
    with pytest.raises(EvaluationError, match="cannot be read again"):
        held_out_rows(run)


def test_a_run_that_held_out_nothing_is_refused(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"held_out_share": 0.0}))
    with pytest.raises(EvaluationError, match="kept no images from training"):
        held_out_rows(run)
    with pytest.raises(EvaluationError, match="is no run directory"):
        held_out_rows(run / "nowhere")


def test_images_that_were_trained_on_are_no_reference(run):
    from training.management.commands.evaluate_generator import _Reference

    rows = load_dataset(run / "data.csv")[0]
    trained, held_out = hold_out(rows, 0.4, 5)

    class Models:
        name = "model"

        class memory:
            sha256s = tuple(row.image_sha256 for row in trained)

    reference = _Reference(held_out, {}, 4, 0)
    reference.check_unseen(Models)
    with pytest.raises(EvaluationError, match="trained on 6 of the 10 reference images"):
        replace(reference, rows=rows).check_unseen(Models)
