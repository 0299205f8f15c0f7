"""Improve a generator with what selector and policy like of its images; take the result, or leave it.

    python -m training.rlhf.generator_update --run_directory DIR --rlhf_run RUN [--real_data data.csv]

1 draw images, unlabelled, from seeds of their own; 2 score them; 3 choose the best of each prompt group; 4 fine-tune
low-rank adapters on those beside a replay of real images; 5 draw a fresh sample from the old and from the new
generator, same prompts and seeds; 6 accept or refuse. Accepted: DIR/pipeline is the new generator. Refused: there is
no DIR/pipeline, and report.json says why. Each stage goes on where it was stopped (exit code 143 after SIGTERM).

    config.json report.json metrics.jsonl      the settings, the decision with its figures, losses and progress
    synthetic/ scores.json training.csv        the images drawn, their scores, what was learnt from
    real/                                      the phantoms that were replayed, where no dataset was named
    training/                                  run directory of the fine-tuning; its pipeline until it is accepted
    before/ after/                             the two samples
"""

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from generation.diffusion.loading import ModelMismatch, ModelNotFound, ModelSource
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.parameters import Parameters, recommended_in
from generation.production import Call, ModelChoice, Models, judge, load_models
from generation.scoring.network_file import NetworkFileError
from medsyn.artifacts import ArtifactError, file_sha256, write_json
from medsyn.modalities import parse_prompt
from ratings.csv_schema import RatingsCSVError
from training.evaluation.drawing import draw_images
from training.evaluation.features import embed, medsyn_encoder
from training.evaluation.images import (
    EvaluationError,
    GeneratedFile,
    ImageSet,
    finest_label,
    read_generated,
    read_reference,
)
from training.evaluation.ms_ssim import PairTable
from training.finetuning import loop, train
from training.finetuning.arguments import Arguments
from training.finetuning.dataset import DatasetError
from training.finetuning.diffusion_kto import KtoLoss
from training.finetuning.preparation import prepare
from training.finetuning.reward_weighted import MixedLoss, mix
from training.finetuning.session import TrainingError
from training.finetuning.stopping import EXIT_CODE, StopRequest
from training.finetuning.trained_parts import CheckpointError
from training.rlhf.config import EMBEDDED_GENERATOR
from training.rlhf.generator_update.acceptance import (
    Decision,
    PairedRates,
    copies_of_training_images,
    coverage_change,
    diversity_change,
)
from training.rlhf.generator_update.data import (
    RealData,
    Wanted,
    load_real_data,
    panel_verdicts,
    write_training_csv,
)
from training.rlhf.generator_update.selection import Scored, prompt_groups, weigh
from training.rlhf.generator_update.settings import KTO, UpdateError, UpdateSettings
from training.rlhf.trainer import POLICY_FILE, SELECTOR_FILE
from training.run_directory import CONFIG_NAME, RunDirectory, RunDirectoryBusy

logger = logging.getLogger("training.rlhf")

PIPELINE_NAME = "pipeline"
REPORT_NAME = "report.json"
TRAINING_NAME = "training"  # run directory of the fine-tuning
BEFORE, AFTER = "before", "after"
_JUDGED = 32  # images scored at a time
_WARMUP_SHARE = 0.05  # of the steps
_EXPECTED = (
    ArtifactError, CheckpointError, DatasetError, EvaluationError, FileNotFoundError, ModelMismatch, ModelNotFound,
    NetworkFileError, RatingsCSVError, RunDirectoryBusy, TrainingError, UpdateError,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 decided (accepted or not), 1 impossible (the log says why), 143 stopped."""
    options = vars(_parser().parse_args(argv))
    return loop.run_program(lambda stop: _run(options, stop), _EXPECTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.rlhf.generator_update", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--run_directory", type=Path, required=True)
    parser.add_argument("--rlhf_run", type=Path, help="finished run of training.rlhf.train: names the first three")
    for item in dataclasses.fields(UpdateSettings):
        kind = next(kind for kind in (int, float, str) if kind.__name__ in str(item.type))
        parser.add_argument(f"--{item.name}", type=kind, default=argparse.SUPPRESS)
    return parser


def _run(options: dict[str, Any], stop: StopRequest) -> int:
    directory = RunDirectory(options.pop("run_directory"))
    with directory.lock():
        settings = _settings(directory, options)
        update = Update(settings, directory, stop)
        if update.is_decided:
            logger.info("%s is decided already.", directory.path)
            return 0
        return update.run()


def _settings(directory: RunDirectory, options: dict[str, Any]) -> UpdateSettings:
    """Those of the run begun here earlier, or new ones; the panel's ratings may come later."""
    given = {**_of_rlhf_run(options.pop("rlhf_run", None)), **options}
    if (directory.path / CONFIG_NAME).is_file():
        stored = directory.read_config()
        changed = [name for name in given if name != "panel_ratings" and given[name] != stored.get(name)]
        if changed:
            raise UpdateError(
                f"{directory.path} holds an update with other settings: {', '.join(changed)} differ. Take another "
                "--run_directory, or leave the flags out to go on."
            )
        given = {**stored, **given}
    settings = UpdateSettings.from_dict(given)
    directory.write_config(settings.to_dict())
    return settings


def _of_rlhf_run(folder: Path | None) -> dict[str, str]:
    """Generator, selector and policy of a finished training of selector and policy."""
    if folder is None:
        return {}
    paths = {name: folder / name for name in (CONFIG_NAME, REPORT_NAME)}
    for path in paths.values():
        if not path.is_file():
            raise UpdateError(f"{path} is missing: {folder} is no finished run of training.rlhf.train.")
    values = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    generator = values[CONFIG_NAME]["model_paths"]["stable_diffusion"]
    if generator == EMBEDDED_GENERATOR:
        generator = str(EMBEDDED_MODEL_DIR)
    best = folder.resolve() / values[REPORT_NAME]["checkpoint"]
    return {
        "generator": generator,
        "selector_file": str(best / SELECTOR_FILE),
        "policy_file": str(best / POLICY_FILE),
    }


class _Progress:
    """How far the whole update is, images and steps alike, with an estimate of the time left."""

    _STEP_COST = 4.0  # images that a step takes as long as, until one was measured

    def __init__(self, directory: RunDirectory, settings: UpdateSettings) -> None:
        self._directory = directory
        self._left = {"images": settings.num_synthetic + 2 * settings.sample_size, "steps": settings.max_steps}
        self._total = sum(self._left.values())
        self._seconds: dict[str, float] = {}  # by unit, of one
        self._since = time.monotonic()

    def start(self) -> None:
        """Work of a new kind begins: what was done since the last count is no part of it."""
        self._since = time.monotonic()

    def count(self, unit: str, number: int, *, drawn_now: bool = True) -> dict[str, Any]:
        """Note ``number`` done; what a line of the metrics says of it. Those found on disk tell nothing of time."""
        self._left[unit] = max(self._left[unit] - number, 0)
        now = time.monotonic()
        if drawn_now and number:
            measured = (now - self._since) / number
            self._seconds[unit] = 0.8 * self._seconds.get(unit, measured) + 0.2 * measured
        self._since = now
        done = self._total - sum(self._left.values())
        line: dict[str, Any] = {"progress": {"done": done, "total": self._total, "unit": "images and steps"}}
        image = self._seconds.get("images")
        if image is not None:
            step = self._seconds.get("steps", self._STEP_COST * image)
            line["seconds_left"] = round(self._left["images"] * image + self._left["steps"] * step)
        return line

    def log(self, stage: str, line: dict[str, Any]) -> None:
        self._directory.log(stage=stage, **line)


class _MirroredDirectory(RunDirectory):
    """The fine-tuning's run directory, whose lines go to the update's metrics as well."""

    def __init__(self, path: Path, update: RunDirectory, progress: _Progress) -> None:
        super().__init__(path)
        self._update, self._progress = update, progress

    def log(self, **values: Any) -> None:
        super().log(**values)
        self._update.log(**{**values, "stage": "training", **self._progress.count("steps", 1)})


class Update:
    """One update in its run directory; the caller holds the lock."""

    def __init__(self, settings: UpdateSettings, directory: RunDirectory, stop: StopRequest) -> None:
        self.settings, self.directory, self._stop = settings, directory, stop
        self._accelerator = loop.make_accelerator(settings.mixed_precision)
        if self._accelerator.num_processes > 1:
            raise UpdateError("A generator update runs in one process: start it with --num_processes 1.")
        self._progress = _Progress(directory, settings)

    @property
    def candidate(self) -> Path:
        """The new generator until it is accepted."""
        return self.directory.path / TRAINING_NAME / PIPELINE_NAME

    @property
    def accepted(self) -> Path:
        return self.directory.path / PIPELINE_NAME

    @property
    def is_decided(self) -> bool:
        """Whether there is a report that rests on the panel's ratings as they are now (or on none)."""
        path = self.directory.path / REPORT_NAME
        if not path.is_file():
            return False
        return json.loads(path.read_text(encoding="utf-8")).get("panel_sha256") == self._panel_sha256()

    def _panel_sha256(self) -> str | None:
        return file_sha256(Path(self.settings.panel_ratings)) if self.settings.panel_ratings else None

    def run(self) -> int:
        started = time.monotonic()
        self._judges = self._judging()
        models = self._drawing(self.settings.generator_folder)
        size = models.generator.pipeline.image_size
        real = load_real_data(self.settings, self.directory.path / "real", image_size=size)
        if not self.candidate.is_dir() and not self.accepted.is_dir():
            weights, num_real = self.choose_images(models, real)
            if not self._train(weights, num_real):
                return EXIT_CODE
        else:
            self._progress.count("images", self.settings.num_synthetic, drawn_now=False)
            self._progress.count("steps", self.settings.max_steps, drawn_now=False)
        decision = self.decide(models, real)
        self._settle(decision, seconds=time.monotonic() - started)
        return 0

    # --- drawing and scoring ---

    def _drawing(self, folder: Path) -> Models:
        """A generator without judges, in the precision that images are drawn in."""
        source = ModelSource(pretrained_model=str(folder))
        return load_models(ModelChoice(source, None, None, str(self._accelerator.device), self.settings.precision))

    def _judging(self) -> Models:
        """The judges with the text encoder that the policy reads, which an update leaves as it is: in full precision,
        in which the policy knows it."""
        settings = self.settings
        return load_models(
            ModelChoice(
                source=ModelSource(pretrained_model=settings.generator),
                selector_file=Path(settings.selector_file),
                policy_file=Path(settings.policy_file),
                device=str(self._accelerator.device),
                precision="float32",
            )
        )

    def _draw(self, models: Models, wanted: Wanted, name: str) -> list[GeneratedFile]:
        """One image for each prompt into the folder ``name``; those that are there already are kept."""
        settings = self.settings
        index = json.loads((models.generator.folder / "model_index.json").read_text(encoding="utf-8"))
        given = {
            key: value
            for key in ("num_inference_steps", "guidance_scale")
            if (value := getattr(settings, key)) is not None
        }
        sampling = {**recommended_in(index), **given, "batch_size": settings.drawing_batch}
        call = Call(wanted.prompts, 1, wanted.seed, "baseline", Parameters(**sampling))
        reports = 0

        def on_images(count: int) -> None:
            nonlocal reports
            self._progress.log(name, self._progress.count("images", count, drawn_now=reports > 0))
            reports += 1
            self._leave_if_asked()

        self._progress.start()
        return draw_images(models, call, self.directory.path / name, on_images=on_images)

    def _leave_if_asked(self) -> None:
        if self._stop.is_requested:
            raise SystemExit(EXIT_CODE)

    def _score(self, images: ImageSet) -> list[Scored]:
        scored = []
        for start in range(0, len(images), _JUDGED):
            prompts = images.captions[start : start + _JUDGED]
            pixels = images.pixels[start : start + _JUDGED].permute(0, 2, 3, 1).numpy()
            serving, alignment = judge(self._judges, prompts, [Image.fromarray(each) for each in pixels])
            scored += [Scored(*values) for values in zip(prompts, serving, alignment, strict=True)]
        return scored

    def choose_images(self, models: Models, real: RealData) -> tuple[list[int], int]:
        """Draw, score and choose; write scores.json and training.csv. The weights of those chosen, in that file's
        order, and how many real rows precede."""
        files = self._draw(models, real.wanted(self.settings, for_decision=False), "synthetic")
        images = read_generated(files)
        scored = self._score(images)
        groups = prompt_groups([finest_label(each.prompt) for each in scored], images.kinds)
        weights = weigh(
            [each.score for each in scored],
            groups,
            share=self.settings.share,
            with_unwanted=self.settings.objective == KTO,
        ).tolist()
        write_json(self.directory.path / "scores.json", [
            {
                "file": file.path.name, "seed": file.seed, "prompt": file.prompt, "group": group,
                "selector": each.serving, "policy": each.alignment, "weight": weight,
            }
            for file, each, group, weight in zip(files, scored, groups, weights, strict=True)
        ])  # fmt: skip
        kept = [file for file, weight in zip(files, weights, strict=True) if weight]
        write_training_csv(self.directory.path / "training.csv", real.replayed, kept)
        logger.info("%d of %d images chosen from %d prompt groups", len(kept), len(files), len(set(groups)))
        return [weight for weight in weights if weight], len(real.replayed)

    # --- learning ---

    def _arguments(self) -> Arguments:
        settings, path = self.settings, self.directory.path
        return Arguments(
            train_data_dir=path / "training.csv",
            output_dir=path / TRAINING_NAME,
            pretrained_model_name_or_path=settings.generator,
            latent_cache_dir=path / "latent_cache",
            train_batch_size=settings.train_batch_size,
            max_train_steps=settings.max_steps,
            learning_rate=settings.learning_rate,
            lr_scheduler="constant_with_warmup",
            lr_warmup_steps=round(_WARMUP_SHARE * settings.max_steps),
            mixed_precision=settings.mixed_precision,
            use_lora=True,
            rank=settings.rank,
            seed=settings.seed,
            checkpointing_steps=settings.checkpointing_steps,
            checkpoints_total_limit=2,
            report_to="tensorboard",
        )

    def _train(self, weights: Sequence[int], num_real: int) -> bool:
        """Fine-tune to the last step and write the candidate; False where it was asked to stop and has saved."""
        session = prepare(self._arguments(), self._accelerator)
        self.directory.rewind(session.step)
        session.directory = _MirroredDirectory(session.directory.path, self.directory, self._progress)
        session.real_rows = session.examples.rows[:num_real]
        session.examples = mix(session.examples, num_real=num_real, weights=weights)
        self._progress.count("steps", session.step, drawn_now=False)
        objective = KtoLoss(self.settings.kto_beta) if self.settings.objective == KTO else MixedLoss()
        work = dataclasses.replace(train.work_of(session), loss=objective, figures=objective.figures)
        self._stop.defer()
        self._progress.start()
        with loop.curves(session):
            finished = loop.train(session, work, self._stop)
        if finished:
            train.finish(session)
        return finished

    # --- deciding ---

    def decide(self, models: Models, real: RealData) -> Decision:
        """Draw the two samples and compare them."""
        wanted = real.wanted(self.settings, for_decision=True)
        files = [self._draw(models, wanted, BEFORE)]
        new = self.candidate if self.candidate.is_dir() else self.accepted
        files.append(self._draw(self._drawing(new), wanted, AFTER))
        samples = [read_generated(each) for each in files]
        self._scores = [self._score(sample) for sample in samples]
        poor, poor_by = self._poor(files)
        compared = _comparisons(samples, real, seed=self.settings.seed, tick=self._leave_if_asked)
        return Decision(poor=poor, poor_by=poor_by, **compared)

    def poor_by_selector(self) -> PairedRates:
        """Of the samples that `decide` scored."""
        limit = self.settings.poor_threshold
        return PairedRates(*(np.array([each.score < limit for each in scores]) for scores in self._scores))

    def _poor(self, files: Sequence[Sequence[GeneratedFile]]) -> tuple[PairedRates, str]:
        if not self.settings.panel_ratings:
            limit = self.settings.poor_threshold
            return self.poor_by_selector(), f"the smaller of selector and policy score is under {limit:g}"
        rated, poor = panel_verdicts(Path(self.settings.panel_ratings), files)
        return PairedRates(poor[0][rated], poor[1][rated]), "most of the panel's ratings say poor"

    def _settle(self, decision: Decision, *, seconds: float) -> None:
        """The folder first: where the process dies between the two, the next start decides once more."""
        report = {
            **decision.to_dict(),
            "poor_by_selector": self.poor_by_selector().to_dict(),
            "learning": json.loads((self.directory.path / TRAINING_NAME / REPORT_NAME).read_text(encoding="utf-8")),
            "synthetic": self._synthetic_figures(),
            "generator": self.settings.generator,
            "panel_sha256": self._panel_sha256(),
            "seconds": round(seconds, 1),
        }
        source, target = self.candidate, self.accepted
        if not decision.is_accepted:
            source, target = target, source
        if source.is_dir() and not target.is_dir():
            source.replace(target)
        write_json(self.directory.path / REPORT_NAME, report)
        self.directory.log(event="finished", accepted=decision.is_accepted, seconds=report["seconds"])
        for sentence in decision.objections:
            logger.warning("Refused: %s", sentence)
        if decision.is_accepted:
            logger.info("Accepted. The updated generator is %s", self.accepted)

    def _synthetic_figures(self) -> dict[str, Any]:
        rows = json.loads((self.directory.path / "scores.json").read_text(encoding="utf-8"))
        scores = np.array([min(row["selector"], row["policy"]) for row in rows])
        chosen = np.array([row["weight"] > 0 for row in rows])
        return {
            "drawn": len(rows),
            "chosen": int(chosen.sum()),
            "groups": len({row["group"] for row in rows}),
            "mean_score": float(scores.mean()),
            "mean_score_chosen": float(scores[chosen].mean()),
            "first_seed": min(row["seed"] for row in rows),
        }


def _comparisons(
    samples: Sequence[ImageSet], real: RealData, *, seed: int, tick: Callable[[], None]
) -> dict[str, Any]:
    """Diversity, coverage and copies of the two samples; ``tick`` is called between them."""
    labels = prompt_groups([finest_label(text) for text in samples[0].captions], samples[0].kinds)
    tables = []
    for sample in samples:
        tables.append(PairTable(sample.pixels, labels, seed=seed))
        tick()
    encoder = medsyn_encoder()
    reference, *features = (embed(encoder, pixels) for pixels in (real.reference, *(each.pixels for each in samples)))
    tick()
    size = tuple(samples[0].pixels.shape[2:])
    training = read_reference(real.replayed, size=size).pixels
    copies = [
        copies_of_training_images(sample.pixels, training=training, held_out=real.reference) for sample in samples
    ]
    return {
        "diversity": diversity_change(*tables, labels, seed=seed, real=_real_table(real, labels, seed)),
        "coverage": coverage_change(reference, *features),
        "copies": PairedRates(*copies),
    }


def _real_table(real: RealData, labels: Sequence[str], seed: int) -> PairTable | None:
    """The held-out real images in the samples' prompt groups; None where too few of them share a group."""
    kinds = [f"other {parse_prompt(text).kind.prefix}" for text in real.reference_captions]
    found = [finest_label(text) for text in real.reference_captions]
    groups = [label if label in labels else kind for label, kind in zip(found, kinds, strict=True)]
    table = PairTable(real.reference, groups, seed=seed)
    return table if table.of_label.keys() & set(labels) else None
