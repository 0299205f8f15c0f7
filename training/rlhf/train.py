"""Train selector and policy from a ratings CSV.

    python -m training.rlhf.train --run_directory DIR [--config config.yaml] [--pipeline FOLDER]

DIR/config.json, if it is there, is the configuration; otherwise it is made from --config. Started again in the same
directory, training goes on from the newest checkpoint. SIGTERM stops it after the step at hand (exit code 143).
"""

import argparse
import datetime
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.scoring.network_file import NetworkFileError
from generation.scoring.policy import Policy
from generation.scoring.selector import Selector
from medsyn.artifacts import ArtifactError, atomic_folder, digest_of, file_sha256, read_manifest, write_json
from ratings.agreement.rater_model import RaterModel
from ratings.csv_schema import RatingsCSVError
from training import lifeline
from training.rlhf.config import EMBEDDED_GENERATOR, ConfigError, RLHFConfig, from_dict, load_config
from training.rlhf.dataset import RatedImages, Split, load_rated_images, soft_labels, split_images
from training.rlhf.report import describe_raters, final_report, validation_auc
from training.rlhf.text_features import (
    PromptFeatures,
    TextEncoderError,
    encode_prompts,
    pipeline_image_size,
)
from training.rlhf.trainer import POLICY_FILE, SELECTOR_FILE, EpochResult, Trainer
from training.run_directory import CONFIG_NAME, RunDirectory, RunDirectoryBusy

logger = logging.getLogger("training.rlhf")
BEST = "best"
REPORT_NAME = "report.json"
EXIT_STOPPED = 143  # 128 + SIGTERM
EXIT_FAULT = 2  # the input, not the program, was at fault
_USER_FAULTS = (
    ArtifactError,
    ConfigError,
    FileNotFoundError,
    NetworkFileError,
    RatingsCSVError,
    RunDirectoryBusy,
    TextEncoderError,
)


class Stopped(Exception):
    """Training was asked to stop."""


@dataclass(frozen=True)
class Inputs:
    """All that a run starts from besides its configuration."""

    rated: RatedImages
    labels: Tensor  # (N, 3) soft labels
    raters: RaterModel
    rater_names: tuple[str, ...]
    split: Split
    features: PromptFeatures
    image_size: int  # pixels
    fingerprint: str  # digest of ratings, images, text encoder, given networks and configuration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parse(arguments)
    lifeline.follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        config, run = _open_run(options)
        with run.lock():
            run.write_config(config.to_dict())
            train(config, run, options)
    except Stopped as reason:
        logger.info("%s", reason)
        return EXIT_STOPPED
    except _USER_FAULTS as error:
        logger.error("%s", error)
        return EXIT_FAULT
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.rlhf.train", description=__doc__.splitlines()[0])
    parser.add_argument("--run_directory", type=Path, help="default: <training.checkpoints.save_dir>/<timestamp>")
    parser.add_argument("--config", type=Path, help="YAML file for a new run; default: config.yaml")
    parser.add_argument("--pipeline", type=Path, help="the generator's folder; default: model_paths.stable_diffusion")
    parser.add_argument("--selector_checkpoint", type=Path, help="trained selector to begin with: skips stage 1")
    parser.add_argument("--policy_checkpoint", type=Path, help="trained policy to begin with")
    parser.add_argument("--report_to", choices=("tensorboard", "none"), default="none")
    return parser.parse_args(arguments)


def _open_run(options: argparse.Namespace) -> tuple[RLHFConfig, RunDirectory]:
    """The configuration and directory of the run: of one begun earlier, or of a new one."""
    stored = options.run_directory / CONFIG_NAME if options.run_directory else None
    if stored is not None and stored.exists():
        config = from_dict(_read_json(stored), source=str(stored))
        if options.config is not None and _absolute(load_config(options.config)) != config:
            raise ConfigError(
                str(stored), [f"differs from {options.config}. Leave --config out to resume, or use a new directory"]
            )
        return config, RunDirectory(options.run_directory)
    config = _absolute(load_config(options.config or Path("config.yaml")))
    timestamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return config, RunDirectory(options.run_directory or Path(config.training.checkpoints.save_dir) / timestamp)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(str(path), [f"not valid JSON: {error}"]) from None


def _absolute(config: RLHFConfig) -> RLHFConfig:
    """The ratings file by its full path, so that a run can be resumed from anywhere."""
    return replace(config, data=replace(config.data, ratings_file=str(Path(config.data.ratings_file).absolute())))


def train(config: RLHFConfig, run: RunDirectory, options: argparse.Namespace) -> None:
    """Train from the newest checkpoint, or from nothing, to the end; write the report."""
    _require_one_process()
    device = _device(config)
    started = time.monotonic()
    inputs = _load_inputs(config, options)
    trainer = _make_trainer(config, inputs, device, options)
    _resume(trainer, run, inputs)
    run.log(event="started", epoch=trainer.epoch, max_steps=trainer.max_steps, items=len(inputs.rated))
    best = _Best(run, trainer)
    with _StopWatch() as stop, _tensorboard(run, options) as board:
        while trainer.epoch < trainer.max_epochs:
            result = trainer.train_epoch(after_step=lambda: _after_step(trainer, run, stop))
            values = _epoch_values(trainer, inputs, result)
            run.log(**values)
            board.write(values)
            best.update()
            if trainer.epoch % config.training.checkpoints.save_frequency == 0 or trainer.epoch == trainer.max_epochs:
                _save(trainer, run, inputs)
    _write_report(config, run, trainer, inputs, seconds=time.monotonic() - started)


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "accelerate launch",
            ["selector and policy train in one process: use --num_processes 1. A few hundred ratings take minutes"],
        )


def _device(config: RLHFConfig) -> torch.device:
    device = torch.device("cuda" if config.device.use_cuda and torch.cuda.is_available() else "cpu")
    if config.device.precision == "float16" and device.type == "cpu":
        raise ConfigError("device", ["precision float16 needs a GPU. Use float32, or bfloat16"])
    return device


def _load_inputs(config: RLHFConfig, options: argparse.Namespace) -> Inputs:
    generator = options.pipeline or Path(config.model_paths.stable_diffusion)
    if options.pipeline is None and config.model_paths.stable_diffusion == EMBEDDED_GENERATOR:
        generator = EMBEDDED_MODEL_DIR
    image_size = min(config.synthetic_system.image_size[0], pipeline_image_size(generator) or 1 << 30)
    rated = load_rated_images(
        Path(config.data.ratings_file),
        image_size=image_size,
        settings=config.raters,
        num_workers=config.data.num_workers,
    )
    labels, raters, names = soft_labels(rated, expert_weights=config.raters.expert_weights)
    features = encode_prompts(config.model_paths.med_text_encoder or generator, rated.prompts)
    fingerprint = digest_of(
        {
            "config": config.to_dict(),
            "items": list(zip(rated.image_ids, rated.prompt_index.tolist(), strict=True)),
            "prompts": rated.prompts,
            "ratings": [rated.item_of_rating.tolist(), rated.grades.tolist(), rated.raters.tolist()],
            "text_encoder": features.encoder_sha256,
            "given": [
                path and file_sha256(path) for path in (options.selector_checkpoint, options.policy_checkpoint)
            ],
        }
    )
    split = split_images(rated, seed=config.training.seed)
    return Inputs(rated, labels, raters, names, split, features, image_size, fingerprint)


def _make_trainer(config: RLHFConfig, inputs: Inputs, device: torch.device, options: argparse.Namespace) -> Trainer:
    selector = Selector.load(options.selector_checkpoint) if options.selector_checkpoint else None
    policy = Policy.load(options.policy_checkpoint) if options.policy_checkpoint else None
    if policy is not None and policy.config.text_encoder_sha256 != inputs.features.encoder_sha256:
        raise NetworkFileError(f"{options.policy_checkpoint} was trained with another text encoder.")
    return Trainer(
        config,
        inputs.rated,
        inputs.labels,
        inputs.split,
        inputs.features,
        image_size=inputs.image_size,
        device=device,
        selector=selector,
        policy=policy,
    )


def _resume(trainer: Trainer, run: RunDirectory, inputs: Inputs) -> None:
    latest = run.latest()
    if latest is None:
        run.rewind(-1)
        return
    if read_manifest(latest).get("fingerprint") != inputs.fingerprint:
        raise ArtifactError(
            f"{latest} was trained from other ratings, images, networks or settings than those given now. "
            "Restore them to resume, or train in a new run directory."
        )
    trainer.load(latest)
    run.rewind(trainer.step)
    logger.info("Resumed from %s", latest)


class _StopWatch:
    """Knows whether this process was asked to end, by SIGTERM."""

    def __enter__(self):
        self._is_asked = False
        self._handler_before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._handler_before)

    def _ask(self, *_: Any) -> None:
        self._is_asked = True

    def check(self) -> None:
        """Raise Stopped if it should end."""
        if self._is_asked:
            raise Stopped("Stopped by SIGTERM. Start again in the same directory to resume.")


def _after_step(trainer: Trainer, run: RunDirectory, stop: _StopWatch) -> None:
    progress = {"done": trainer.step, "total": trainer.max_steps, "unit": "steps"}
    run.log(step=trainer.step, epoch=trainer.epoch + 1, progress=progress)
    stop.check()


def _epoch_values(trainer: Trainer, inputs: Inputs, result: EpochResult) -> dict[str, Any]:
    return {
        "step": trainer.step,
        "max_steps": trainer.max_steps,
        "epoch": trainer.epoch,
        "stage": trainer.stage_of(trainer.epoch),
        "policy_loss": result.policy_loss,
        "selector_loss": result.selector_loss,
        "synthetic_loss": None,  # the generator is not trained here
        "pass_rate": trainer.pass_rate(),
        **trainer.learning_rates(),
        **validation_auc(trainer.scores, inputs.rated, inputs.split),
    }


def _save(trainer: Trainer, run: RunDirectory, inputs: Inputs) -> None:
    name = f"epoch_{trainer.epoch}"
    with run.checkpoint(name, step=trainer.step, epoch=trainer.epoch, fingerprint=inputs.fingerprint) as folder:
        trainer.save(folder)
    logger.info("Saved %s", run.path / name)


class _Best:
    """The best selector and the best policy so far, by the calibration fold, each with its own epoch.

    They are written at once, so the training that goes on cannot change them; their folder has no step and is
    therefore no checkpoint to resume from.
    """

    def __init__(self, run: RunDirectory, trainer: Trainer):
        self.folder, self._trainer = run.path / BEST, trainer
        self._entries: dict[str, dict[str, float]] = {}
        if trainer.epoch and (self.folder / "manifest.json").exists():
            self._entries = read_manifest(self.folder)["networks"]

    def update(self) -> None:
        losses = self._trainer.calibration_losses()
        better = [name for name in losses if name not in self._entries or losses[name] < self._entries[name]["loss"]]
        if not better:
            return
        entries = {**self._entries}
        entries.update({name: {"loss": losses[name], "epoch": self._trainer.epoch} for name in better})
        networks = {"selector": self._trainer.selector, "policy": self._trainer.policy}
        files = {"selector": SELECTOR_FILE, "policy": POLICY_FILE}
        with atomic_folder(self.folder, networks=entries) as folder:
            for name, file in files.items():
                if name in better:
                    networks[name].save(folder / file)
                else:
                    (folder / file).write_bytes((self.folder / file).read_bytes())
        self._entries = entries


def _write_report(config: RLHFConfig, run: RunDirectory, trainer: Trainer, inputs: Inputs, *, seconds: float) -> None:
    """Figures of the best networks on the held-out images, the last ones' beside them."""
    last = validation_auc(trainer.scores, inputs.rated, inputs.split)
    pass_rate = trainer.pass_rate()
    trainer.selector.load_state_dict(Selector.load(run.path / BEST / SELECTOR_FILE).state_dict())
    trainer.policy.load_state_dict(Policy.load(run.path / BEST / POLICY_FILE).state_dict())
    report = {
        "checkpoint": BEST,
        "best": read_manifest(run.path / BEST)["networks"],
        "last": {"checkpoint": f"epoch_{trainer.epoch}", **last},
        **final_report(config, inputs.rated, inputs.split, trainer.score_all()),
        "pass_rate": pass_rate,
        "raters": describe_raters(inputs.raters, inputs.rater_names),
        "text_encoder_sha256": inputs.features.encoder_sha256,
        "image_size": inputs.image_size,
        "seconds": round(seconds, 1),
    }
    write_json(run.path / REPORT_NAME, report)
    run.log(event="finished", epoch=trainer.epoch, step=trainer.step, seconds=report["seconds"])
    logger.info("Report: %s", run.path / REPORT_NAME)


class _NoBoard:
    """Stands where no TensorBoard is wanted."""

    def __enter__(self):
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def write(self, values: dict[str, Any]) -> None:
        return None


class _Board(_NoBoard):
    """Scalars of every epoch for TensorBoard, below the run directory."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and seldom wanted

        self._writer = SummaryWriter(folder)

    def __exit__(self, *_: Any) -> None:
        self._writer.close()

    def write(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is not None and name not in ("step", "max_steps"):
                self._writer.add_scalar(name, value, values["step"])


def _tensorboard(run: RunDirectory, options: argparse.Namespace) -> _NoBoard:
    return _Board(run.path / "tensorboard") if options.report_to == "tensorboard" else _NoBoard()


if __name__ == "__main__":
    sys.exit(main())
