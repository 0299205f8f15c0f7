"""What a generator update is worth: the poor rate of unfiltered images by the gold judge, after no, one, two rounds.

    pytest tests/benchmarks/test_generator_update.py -m benchmark -s

The generator is one that learnt from spoilt phantoms (training.simulation.weak_generator). Selector and policy learn
from simulated ratings of its images; the judge that stands behind those ratings, and that measures here, is seen by
neither. "Poor" is fixed once, as the lower 30 % of the first generator's rated images by gold quality. All
generators draw the same prompts and seeds. A sabotaged update (learning rate a hundredfold) must be refused; updates
from the worst images and from images chosen at random tell what the replay of real images does by itself.

MEDSYN_UPDATE_BENCHMARK names a folder that keeps everything: started again, the benchmark goes on where it was.
Five draws of rated images, panel, training and updates, of one weak generator: MEDSYN_UPDATE_SEEDS=1 takes one.
MEDSYN_WEAK_GENERATOR names a pipeline folder made before; without it one is made first (10 minutes).
"""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from generation.diffusion.loading import ModelSource
from generation.parameters import Parameters, recommended_in
from generation.production import Call, ModelChoice, load_models
from medsyn.artifacts import atomic_path, write_json
from medsyn.modalities import parse_prompt
from training.evaluation.drawing import draw_images
from training.evaluation.features import embed, medsyn_encoder
from training.evaluation.images import (
    ImageSet,
    draw_phantoms,
    finest_label,
    generated_files,
    phantom_captions,
    read_generated,
)
from training.evaluation.ms_ssim import PairTable
from training.rlhf.generator_update import process, selection
from training.rlhf.generator_update.acceptance import PairedRates, coverage_change, diversity_change
from training.rlhf.generator_update.selection import choose, prompt_groups
from training.rlhf.train import main as train_selector_and_policy
from training.simulation.experts import rate
from training.simulation.judge import Judge, classes_of, gold_quality
from training.simulation.pool import draw_panel
from training.simulation.weak_generator import make_weak_generator

pytestmark = pytest.mark.benchmark

NUM_RATED, RATINGS_PER_IMAGE = 320, 6
POOR_SHARE = 0.3  # of the first generator's images: fixes the gold threshold
# Steps and guidance of the sampler are the generator's own: with fewer steps images are smoother, so more alike.
SETTINGS = {"num_synthetic": 400, "sample_size": 400, "max_steps": 200, "precision": "auto", "learning_rate": 1e-4}
RATED_SEED, SEED_STRIDE = 700_000_000, 1_000_000  # of the rated images; away from all that updates draw
SEEDS = range(int(os.environ.get("MEDSYN_UPDATE_SEEDS", "5")))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    given = os.environ.get("MEDSYN_UPDATE_BENCHMARK")
    return Path(given) if given else tmp_path_factory.mktemp("generator_update")


@pytest.fixture(scope="module")
def weak(kept) -> Path:
    given = os.environ.get("MEDSYN_WEAK_GENERATOR")
    return Path(given) if given else make_weak_generator(kept / "weak")


@pytest.fixture(scope="module", params=SEEDS)
def seed(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def folder(kept, seed) -> Path:
    return kept / f"seed{seed}"


def of_round(number: int, seed: int) -> int:
    """The seed of an update's round."""
    return 10 * seed + number


def draw(generator: Path, prompts: Sequence[str], seed: int, folder: Path) -> ImageSet:
    """One image for each prompt, drawn as the updates draw."""
    choice = ModelChoice(ModelSource(str(generator)), None, None, "cpu", SETTINGS["precision"])
    sampling = recommended_in(json.loads((generator / "model_index.json").read_text()))
    call = Call(tuple(prompts), 1, seed, "baseline", Parameters(**sampling, batch_size=16))
    return read_generated(draw_images(load_models(choice), call, folder, on_images=lambda count: None))


def quality(images: ImageSet) -> np.ndarray:
    """Gold quality (N,) that no learner sees."""
    judge, parts = Judge.load(), []
    for start in range(0, len(images), 32):
        pixels = images.pixels[start : start + 32].float() / 255
        parts.append(gold_quality(judge, pixels, classes_of(images.captions[start : start + 32])))
    return torch.cat(parts).numpy()


@pytest.fixture(scope="module")
def rated(folder, weak, seed) -> tuple[Path, float]:
    """The ratings CSV of the first generator's images, and the gold quality below which an image is poor."""
    captions = phantom_captions(NUM_RATED, seed=901 + seed)
    images = draw(weak, captions, RATED_SEED + seed * SEED_STRIDE, folder / "rated")
    found = quality(images)
    path, rng = folder / "ratings.csv", np.random.default_rng(seed)
    panel = draw_panel(seed=seed)
    grades = np.stack([rate(found, expert, rng) for expert in panel])
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "rating", "modality", "expert_level", "prompt"))
        for number, prompt in enumerate(images.captions):
            for rater in rng.permutation(len(panel))[:RATINGS_PER_IMAGE]:
                modality = parse_prompt(prompt).modality
                name = f"rated/{number:06d}.png"
                writer.writerow((name, grades[rater, number], modality, panel[rater].level, prompt))
    return path, float(np.quantile(found, POOR_SHARE))


@pytest.fixture(scope="module")
def scorers(folder, weak, rated, seed) -> Path:
    """The finished run that trained selector and policy."""
    run = folder / "rlhf"
    if not (run / "report.json").is_file():
        config = folder / "config.yaml"
        values = {
            "model_paths": {"stable_diffusion": str(weak)},
            "training": {"max_epochs": 24, "seed": seed},
            "data": {"ratings_file": str(rated[0]), "num_workers": 0},
            "synthetic_system": {"image_size": [128, 128]},
        }
        config.write_text(yaml.safe_dump(values))
        begun = ["--config", str(config)] if not (run / "config.json").is_file() else []
        assert train_selector_and_policy(["--run_directory", str(run), *begun]) == 0
    return run


def update(run: Path, scorers: Path, generator: Path, seed: int, **changes) -> dict:
    """One update's report."""
    if not (run / "report.json").is_file():
        AcceleratorState._reset_state(reset_partial_state=True)
        best = scorers / json.loads((scorers / "report.json").read_text())["checkpoint"]
        values = {
            "generator": generator,
            "selector_file": best / "selector_checkpoint.safetensors",
            "policy_file": best / "policy_checkpoint.safetensors",
            "seed": seed,
            **SETTINGS,
            **changes,
        }
        flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        assert process.main(["--run_directory", str(run), *flags]) == 0
    return json.loads((run / "report.json").read_text())


def result_of(run: Path) -> Path:
    """What the update made, accepted or not."""
    folders = [run / "pipeline", run / "training" / "pipeline"]
    return next(folder for folder in folders if folder.is_dir())


def measure(before: ImageSet, after: ImageSet, limit: float) -> dict:
    """``after`` beside ``before``, pairs of one prompt and seed, by the gold judge and in the frozen encoder."""
    poor = PairedRates(quality(before) < limit, quality(after) < limit)
    labels = prompt_groups([finest_label(text) for text in before.captions], before.kinds)
    tables = [PairTable(each.pixels, labels, seed=0) for each in (before, after)]
    encoder = medsyn_encoder()
    real = draw_phantoms(300, seed=77, size=(128, 128))
    features = [embed(encoder, each.pixels) for each in (real, before, after)]
    return {
        "poor": poor.to_dict(),
        "diversity": diversity_change(*tables, labels, seed=0).to_dict(),
        "coverage": coverage_change(*features).to_dict(),
    }


def say(name: str, found: dict, report: dict | None = None) -> None:
    poor, diversity, coverage = found["poor"]["after"], found["diversity"], found["coverage"]
    print(
        f"{name}: gold poor {poor['value']:.3f} [{poor['low']:.3f}, {poor['high']:.3f}], "
        f"p {found['poor']['p_fall']:.4f}; "
        f"diversity {diversity['after']:.3f} ({diversity['relative']:+.1%}, from {diversity['low']:+.1%}); "
        f"coverage {coverage['after']:.3f} ({coverage['relative']:+.1%}, from {coverage['low']:+.1%})"
        + (f"; accepted {report['accepted']} {report['objections']}" if report else "")
    )


def test_one_and_two_rounds_lower_the_poor_rate_of_unfiltered_images(folder, weak, rated, scorers, seed):
    first = update(folder / "round1", scorers, weak, seed=of_round(1, seed))
    start = folder / "round1" / "pipeline" if first["accepted"] else weak
    second = update(folder / "round2", scorers, start, seed=of_round(2, seed))
    samples = {"after": read_sample(folder / "round2" / "after")}
    prompts = samples["after"].captions
    drawn_from = json.loads(next((folder / "round2" / "after").glob("000000.json")).read_text())["seed"]
    for name, generator in (("none", weak), ("round1", result_of(folder / "round1"))):
        samples[name] = draw(generator, prompts, drawn_from, folder / "measured" / name)
    none = samples["none"]
    found = {
        "no update": measure(none, none, rated[1]),
        "one round": measure(none, samples["round1"], rated[1]),
        "two rounds": measure(none, samples["after"], rated[1]),
    }
    for name, values in found.items():
        say(name, values, {"one round": first, "two rounds": second}.get(name))
    write_json(folder / "rounds.json", found)
    assert first["accepted"], first["objections"]
    assert found["one round"]["poor"]["p_fall"] <= 0.05
    assert found["two rounds"]["poor"]["after"]["value"] < found["no update"]["poor"]["after"]["value"]


def read_sample(folder: Path) -> ImageSet:
    return read_generated(generated_files(folder))


def worst(scores: Sequence[float], groups: Sequence[str], *, share: float) -> np.ndarray:
    return choose([-score for score in scores], groups, share=share)


def at_random(scores: Sequence[float], groups: Sequence[str], *, share: float) -> np.ndarray:
    return choose(np.random.default_rng(0).random(len(scores)), groups, share=share)


def from_round_one(folder: Path, run: Path) -> None:
    """The images that round one drew serve here too: same generator, same seeds."""
    for name in ("synthetic", "before", "real"):
        if not (run / name).exists() and (folder / "round1" / name).exists():
            shutil.copytree(folder / "round1" / name, run / name)


def test_a_sabotaged_update_is_rolled_back(folder, weak, rated, scorers, seed):
    """A learning rate a hundred times too high."""
    update(folder / "round1", scorers, weak, seed=of_round(1, seed))
    run = folder / "hundredfold_rate"
    from_round_one(folder, run)
    report = update(run, scorers, weak, seed=of_round(1, seed), learning_rate=1e-2)
    say("hundredfold rate", measure(read_sample(run / "before"), read_sample(run / "after"), rated[1]), report)
    assert not report["accepted"] and not (run / "pipeline").exists()


@pytest.mark.parametrize(("name", "rule"), [("worst chosen", worst), ("random choice", at_random)])
def test_what_the_choice_of_images_adds_to_the_replay_of_real_ones(
    folder, weak, rated, scorers, seed, monkeypatch, name, rule
):
    """Half of every batch is real, whatever is chosen beside it: other choices gain too, and less."""
    update(folder / "round1", scorers, weak, seed=of_round(1, seed))
    run = folder / name.replace(" ", "_")
    from_round_one(folder, run)
    monkeypatch.setattr(selection, "choose", rule)
    report = update(run, scorers, weak, seed=of_round(1, seed))
    chosen = measure(read_sample(folder / "round1" / "before"), read_sample(folder / "round1" / "after"), rated[1])
    control = measure(read_sample(run / "before"), read_sample(run / "after"), rated[1])
    say("chosen by selector and policy", chosen)
    say(name, control, report)
    assert chosen["poor"]["after"]["value"] < control["poor"]["after"]["value"]


def test_learning_from_unwanted_images_too(folder, weak, rated, scorers, seed):
    """Diffusion-KTO on the images that round one chose from."""
    update(folder / "round1", scorers, weak, seed=of_round(1, seed))
    run = folder / "kto"
    from_round_one(folder, run)
    report = update(run, scorers, weak, seed=of_round(1, seed), objective="kto")
    weighted = measure(read_sample(folder / "round1" / "before"), read_sample(folder / "round1" / "after"), rated[1])
    kto = measure(read_sample(run / "before"), read_sample(run / "after"), rated[1])
    say("reward-weighted", weighted)
    say("Diffusion-KTO", kto, report)
    assert kto["poor"]["p_fall"] <= 0.05
