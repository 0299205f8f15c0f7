"""The pool on which certificates are tried: ratings that training takes as exported ones, and counts that add up."""

import json

import numpy as np
import pytest
from PIL import Image

from medsyn.artifacts import file_sha256
from training.rlhf.config import RaterSettings
from training.rlhf.dataset import load_rated_images
from training.rlhf.tidy import TIDY_FILE
from training.simulation.certificate_pool import _parser, coverage, gold_of, grades_of, stored_images, write_rated
from training.simulation.loop.images import LoopImages
from training.simulation.loop.panel import Panel, Truth
from training.simulation.pool import draw_pool


@pytest.fixture(scope="module")
def images() -> LoopImages:
    pool = draw_pool(12, seed=5)
    return LoopImages(tuple(f"{number}.png" for number in range(12)), pool.pixels, pool.prompts, pool.quality)


def test_training_knows_who_gave_each_rating(images, tmp_path):
    panel = Panel.draw("default", Truth(np.linspace(-1, 0, 101)), seed=0)
    told = grades_of(images, panel, ratings_per_image=2)
    assert all(len({reader for reader, _ in grades}) == 2 for grades in told)
    write_rated(images, told, panel, tmp_path / "ratings.csv")
    rated = load_rated_images(tmp_path / "ratings.csv", image_size=64, settings=RaterSettings())
    assert rated.seen.rater_source == TIDY_FILE and len(rated) == 12
    assert sorted(rated.grades.tolist()) == sorted(grade for grades in told for _, grade in grades)
    assert set(rated.raters) == {f"reader {reader}" for grades in told for reader, _ in grades}


def test_samples_drawn_elsewhere_are_judged_by_the_same_judge(images, tmp_path):
    for number, (pixels, prompt) in enumerate(zip(images.pixels, images.prompts, strict=True)):
        path = tmp_path / f"{number:06d}.png"
        Image.fromarray(pixels).save(path)
        facts = {"prompt": prompt, "seed": number, "weights_sha256": {}, "model": "m", "synthetic": "Synthetic."}
        path.with_suffix(".json").write_text(json.dumps(facts | {"sha256": file_sha256(path)}))
    stored = stored_images(tmp_path)
    assert np.array_equal(stored.quality, gold_of(images.pixels, images.prompts))
    assert stored.quality[images.quality == 0].mean() > stored.quality[images.quality < -0.5].mean()


def test_coverage_tells_refused_held_and_broken_apart():
    rng = np.random.default_rng(0)
    poor = rng.random(2700) < 0.3
    score = rng.random(2700) * 0.5 + 0.5 * ~poor
    given = _parser().parse_args(["--output", "x", "--rated", "200", "--unrated", "500", "--repeats", "20"])
    kept = coverage({"score": score, "poor": poor, "gold": poor}, given)
    assert kept["by_gold"]["held"] >= 16 and kept["fresh"] == 2000 and kept["auc_poor"] == 1
    told = kept["by_gold"]
    assert told["held"] + told["num_broken"] + told["num_refused"] == 20
    blind = coverage({"score": score, "poor": np.zeros(2700, bool), "gold": poor}, given)
    assert blind["by_gold"]["num_broken"] == 20, "a panel that sees nothing breaks every promise"
    noise = coverage({"score": rng.random(2700), "poor": poor, "gold": poor}, given)
    assert noise["by_gold"]["num_refused"] >= 18 and json.dumps(noise)
