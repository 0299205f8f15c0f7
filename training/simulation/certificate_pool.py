"""A pool of drawn images with scores, panel and gold verdicts: how often a certificate's promise holds on it. Pure.

    python -m training.simulation.certificate_pool --output DIR [--generator FOLDER]
        [--samples FOLDER] [--reference FOLDER] [--selector_checkpoint FILE --policy_checkpoint FILE]

Draws images with prompts at random (DIR/images, goes on where it was stopped) and judges them by the gold function.
Without a release's selector and policy the first --train images are rated by simulated experts and both are trained
on those ratings alone (DIR/run). All other images are scored and rated by the same experts; DIR/pool.npz holds score,
poor (by the panel) and gold. Then the pool is split --repeats times into rated, unrated and at least 2000 fresh
images (training.simulation.certificate_coverage), and DIR/coverage.json says how often the promise held on these.
"""

import argparse
import csv
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from generation.certificate import Promise, panel_says_poor
from generation.diffusion.loading import ModelSource
from generation.diffusion.phantoms import FINDINGS, caption
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.parameters import Parameters, recommended_in
from generation.production import Call, ModelChoice, load_models
from medsyn.artifacts import atomic_path, file_sha256, write_json
from medsyn.modalities import parse_prompt
from ratings.csv_schema import COLUMNS, RatingRow, tidy_path, write_ratings
from training.evaluation.drawing import draw_images
from training.evaluation.images import GeneratedFile, generated_files, read_generated
from training.rlhf import train
from training.rlhf.evaluation import auc
from training.rlhf.trainer import POLICY_FILE, SELECTOR_FILE
from training.run_directory import RunDirectory
from training.simulation.certificate_coverage import Coverage, repeat_draw
from training.simulation.judge import Judge, classes_of, gold_quality
from training.simulation.loop.arms import Judges, config_of, scores
from training.simulation.loop.images import Encoded, LoopImages
from training.simulation.loop.panel import Panel, Truth
from training.simulation.loop.settings import OURS, PANELS, LoopSettings

logger = logging.getLogger("training.simulation")
_FIRST_SEED = 1_900_000_000  # away from those of every training
_PROMPT_STREAM = 25
_JUDGED_TOGETHER = 64
_TIDY_COLUMNS = (
    "state", "reader", "image_sha256", "patient", "seed", "gold_grade", "assignment_kind", "occurrence",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    generator = (given.generator or EMBEDDED_MODEL_DIR).resolve()
    images = (
        drawn_images(generator, given.output / "images", number=given.images, seed=given.seed, steps=given.steps)
        if given.samples is None
        else stored_images(given.samples)
    )
    truth = Truth((images if given.reference is None else stored_images(given.reference)).quality)
    panel = Panel.draw(given.panel, truth, seed=given.seed)
    judges, taught = Judges(given.selector_checkpoint, given.policy_checkpoint), 0
    if given.selector_checkpoint is None:
        taught = given.train
        judges = train_judges(images.subset(np.arange(taught)), panel, given, generator)
    rest = images.subset(np.arange(taught, len(images)))
    pool = scored_pool(rest, judges, panel, generator, ratings_per_image=given.ratings_per_image)
    with atomic_path(given.output / "pool.npz") as path, path.open("wb") as file:
        np.savez(file, **pool)
    report = coverage(pool, given)
    write_json(given.output / "coverage.json", report)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.simulation.certificate_pool", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--generator", type=Path, help="pipeline folder (medsyn-tiny)")
    parser.add_argument("--selector_checkpoint", type=Path, help="of a release; without it one is trained")
    parser.add_argument("--policy_checkpoint", type=Path)
    parser.add_argument("--samples", type=Path, help="folder with images and their JSON, instead of drawing")
    parser.add_argument(
        "--reference",
        type=Path,
        help="folder as --samples: poor and excellent on the scale of these images (default: of those drawn)",
    )
    parser.add_argument("--images", type=int, default=3500, help="drawn in all")
    parser.add_argument("--train", type=int, default=500, help="of them, to train selector and policy on")
    parser.add_argument("--rated", type=int, default=500, help="of the others, calibration images of a repeat")
    parser.add_argument("--unrated", type=int, default=500, help="of the others, for the thresholds of a repeat")
    parser.add_argument("--ratings_per_image", type=int, default=3)
    parser.add_argument("--panel", choices=sorted(PANELS), default="default")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--steps", type=int, help="of the sampler; default: what the generator's maker recommends")
    parser.add_argument("--alpha", type=float, default=0.10)
    parser.add_argument("--delta", type=float, default=0.10)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def drawn_images(generator: Path, folder: Path, *, number: int, seed: int, steps: int | None) -> LoopImages:
    """``number`` images of captions drawn at random, with the judge's gold quality; drawn before, read again."""
    source = ModelSource(str(generator))
    models = load_models(ModelChoice(source, None, None, device="auto", precision="auto"))
    wanted = recommended_in(dict(models.generator.pipeline.config)) | (
        {} if steps is None else {"num_inference_steps": steps}
    )
    rng = np.random.default_rng([seed, _PROMPT_STREAM])
    classes = [FINDINGS[rng.integers(len(FINDINGS))] for _ in range(number)]
    prompts = tuple(parse_prompt(caption(each, int(rng.integers(2**31)))).text for each in classes)
    call = Call(prompts, 1, _FIRST_SEED + seed * number, "baseline", Parameters(**wanted, batch_size=16))
    with tqdm(total=number, unit="image", desc="Drawing") as bar:
        files = draw_images(models, call, folder, on_images=bar.update)
    return _judged(files)


def stored_images(folder: Path) -> LoopImages:
    """Images that were drawn elsewhere: PNG files with the JSON beside them that every command writes. Raises
    EvaluationError."""
    return _judged(generated_files(folder))


def _judged(files: Sequence[GeneratedFile]) -> LoopImages:
    images = read_generated(files)
    pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    evaluations = files[0].facts.get("unet_evaluations")
    names = tuple(file.path.name for file in files)
    return LoopImages(names, pixels, images.captions, gold_of(pixels, images.captions), evaluations)


def gold_of(pixels: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Gold quality (N,) of uint8 pictures (N, S, S, 3) by the judge network."""
    judge, classes, found = Judge.load(), classes_of(prompts), []
    for start in range(0, len(pixels), _JUDGED_TOGETHER):
        few = slice(start, start + _JUDGED_TOGETHER)
        tensor = torch.from_numpy(pixels[few]).permute(0, 3, 1, 2).float() / 255
        found.append(gold_quality(judge, tensor, classes[few]))
    return torch.cat(found).double().numpy()


def grades_of(images: LoopImages, panel: Panel, *, ratings_per_image: int) -> list[list[tuple[int, int]]]:
    """For each image (expert, grade) of that many experts, drawn evenly."""
    rng = np.random.default_rng([panel.seed, _PROMPT_STREAM, len(images)])
    found = []
    for name, quality in zip(images.names, images.quality.tolist(), strict=True):
        readers = rng.permutation(len(panel.experts))[:ratings_per_image].tolist()
        found.append([(reader, panel.grade(reader, quality, image=name, showing=1)) for reader in readers])
    return found


def train_judges(images: LoopImages, panel: Panel, given: argparse.Namespace, generator: Path) -> Judges:
    """Selector and policy trained, by the project's own process, on simulated ratings of these images."""
    ratings_file = given.output / "rated" / "ratings.csv"
    told = grades_of(images, panel, ratings_per_image=given.ratings_per_image)
    write_rated(images, told, panel, ratings_file)
    run = RunDirectory(given.output / "run")
    if not (run.path / train.REPORT_NAME).exists():
        config = config_of(LoopSettings(epochs=given.epochs), seed=given.seed).to_dict()
        config["data"]["ratings_file"] = str(ratings_file.resolve())
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_config(config)
        options = ["--run_directory", str(run.path), "--pipeline", str(generator), "--report_to", "none"]
        status = train.main(options)
        if status:
            raise RuntimeError(f"Training in {run.path} ended with exit code {status}; its log says why.")
    best = run.path / "best"
    return Judges(best / SELECTOR_FILE, best / POLICY_FILE)


def write_rated(
    images: LoopImages, told: Sequence[Sequence[tuple[int, int]]], panel: Panel, ratings_file: Path
) -> None:
    """The images, what experts said of them, and who said it, as the application exports it."""
    ratings_file.parent.mkdir(parents=True, exist_ok=True)
    rows, tidy = [], []
    for name, pixels, prompt, grades in zip(images.names, images.pixels, images.prompts, told, strict=True):
        path = ratings_file.with_name(f"{Path(name).stem}.png")
        Image.fromarray(pixels).save(path)
        digest, modality = file_sha256(path), parse_prompt(prompt).kind.modality
        for reader, grade in grades:
            row = RatingRow(path.name, grade, modality, panel.experts[reader].level, prompt)
            rows.append(row)
            five = (row.image_path, grade, modality, row.expert_level, prompt)
            tidy.append((*five, "submitted", f"reader {reader}", digest, "", "", "", "main", 1))
    with ratings_file.open("w", newline="", encoding="utf-8") as file:
        write_ratings(file, rows)
    with tidy_path(ratings_file).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(*COLUMNS, *_TIDY_COLUMNS), *tidy])


def scored_pool(
    images: LoopImages, judges: Judges, panel: Panel, generator: Path, *, ratings_per_image: int
) -> dict[str, np.ndarray]:
    """score (P,), poor (P,) by the panel's rule, gold (P,) poor in truth, kind (P,) slug."""
    told = grades_of(images, panel, ratings_per_image=ratings_per_image)
    verdicts = [
        panel_says_poor([grade for _, grade in grades], image_key=name, seed=panel.seed)
        for name, grades in zip(images.names, told, strict=True)
    ]
    return {
        "score": scores(OURS, judges, Encoded(images, generator)),
        "poor": np.array(verdicts),
        "gold": panel.truth.is_poor(images.quality),
        "kind": np.array(images.kind_slugs),
    }


def coverage(pool: dict[str, np.ndarray], given: argparse.Namespace) -> dict:
    """What the repeats came to, fresh images judged by gold, and by the panel beside it."""
    options = {
        "num_images": given.rated,
        "promise": Promise(alpha=given.alpha, delta=given.delta),
        "num_repeats": given.repeats,
        "num_unrated": given.unrated,
        "seed": given.seed,
    }
    by_gold = repeat_draw(pool["score"], pool["poor"], is_truly_poor=pool["gold"], **options)
    by_panel = repeat_draw(pool["score"], pool["poor"], **options)
    return {
        "label": "simulated experts",
        "pool": len(pool["score"]),
        "fresh": len(pool["score"]) - given.rated - given.unrated,
        "rated": given.rated,
        "alpha": given.alpha,
        "delta": given.delta,
        "poor_by_gold": float(pool["gold"].mean()),
        "poor_by_panel": float(pool["poor"].mean()),
        "auc_poor": auc(-pool["score"], pool["gold"]),
        "by_gold": _told(by_gold),
        "by_panel": _told(by_panel),
    }


def _told(found: Coverage) -> dict:
    """As JSON, which knows no NaN."""
    values = asdict(found) | {"held": found.num_repeats - found.num_refused - found.num_broken}
    return values | {"mean_risk": None if math.isnan(found.mean_risk) else found.mean_risk}


if __name__ == "__main__":
    sys.exit(main())
