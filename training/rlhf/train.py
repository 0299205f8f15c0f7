"""Train selector and policy from a ratings CSV.

    python -m training.rlhf.train --run_directory DIR [--config config.yaml] [--pipeline FOLDER]

DIR/config.json, if it is there, is the configuration; otherwise it is made from --config. Started again in the same
directory, training goes on from the newest checkpoint. SIGTERM stops it after the step at hand (exit code 143).
"""

import argparse
import dataclasses
import datetime
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from generation.scoring.network_file import NetworkFileError
from generation.scoring.policy import Policy
from generation.scoring.selector import Selector
from medsyn.artifacts import ArtifactError, read_manifest, write_json
from ratings.csv_schema import RatingsCSVError
from training import lifeline
from training.rlhf.board import open_board
from training.rlhf.config import ConfigError, RLHFConfig, from_dict, load_config
from training.rlhf.early_stopping import BEST, BestNetworks, Stop
from training.rlhf.inputs import Inputs, load_inputs
from training.rlhf.processes import Processes, WatchedRun
from training.rlhf.prompt_matching import score_every_prompt
from training.rlhf.report import describe_data, final_report, validation_auc
from training.rlhf.text_features import TextEncoderError
from training.rlhf.timing import RemainingTime, Timing
from training.rlhf.trainer import POLICY_FILE, SELECTOR_FILE, EpochResult, Trainer
from training.run_directory import CONFIG_NAME, RunDirectory, RunDirectoryBusy

logger = logging.getLogger("training.rlhf")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parse(arguments)
    lifeline.follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        config, run = _open_run(options)
        processes, device = Processes.launched(use_cuda=config.device.use_cuda)
        if processes.writes:
            with run.lock():
                run.write_config(config.to_dict())
                train(config, run, options, processes, device)
        else:
            train(config, WatchedRun(run.path), options, processes, device)
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
    parser.add_argument("--report_to", choices=("tensorboard", "none"), default="tensorboard")
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


def train(
    config: RLHFConfig, run: RunDirectory, options: argparse.Namespace, processes: Processes, device: torch.device
) -> None:
    """Train from the newest checkpoint, or from nothing, to the end; write the report."""
    _require_precision(config, device)
    timing = Timing()
    inputs = load_inputs(config, options, timing)
    with timing.of("features"):
        trainer = _make_trainer(config, inputs, device, options, processes)
    _resume(trainer, run, inputs)
    run.log(
        event="started",
        epoch=trainer.epoch,
        max_steps=trainer.max_steps,
        items=len(inputs.rated),
        device=_device_name(device),
        validation=inputs.targets.validation.source,
    )
    best = BestNetworks(run, trainer, inputs.targets.validation)
    stop = _train_epochs(config, run, trainer, inputs, best, options)
    if stop is not None:
        logger.info("Stopped after epoch %d: %s", stop.epoch, stop.reason)
        run.log(event="stopped_early", epoch=stop.epoch, reason=stop.reason)
    if processes.writes:
        trainer.processes = Processes()  # the others have ended
        _write_report(config, run, trainer, inputs, best, stop=stop, timing=timing)


def _train_epochs(
    config: RLHFConfig,
    run: RunDirectory,
    trainer: Trainer,
    inputs: Inputs,
    best: BestNetworks,
    options: argparse.Namespace,
) -> Stop | None:
    """Epoch after epoch to the last; returns where training stopped before it."""
    patience, frequency = config.training.early_stopping_patience, config.training.checkpoints.save_frequency
    remaining = RemainingTime(window=2 * trainer.steps_per_epoch)
    is_wanted = options.report_to == "tensorboard" and trainer.processes.writes
    with StopRequests() as requests, open_board(run.path, is_wanted=is_wanted, done=trainer.step) as board:
        while trainer.epoch < trainer.max_epochs and best.stop(patience) is None:
            started = time.monotonic()
            result = trainer.train_epoch(after_step=lambda: _after_step(trainer, run, requests, remaining))
            losses = best.update()
            values = _epoch_values(trainer, inputs, result, losses)
            run.log(**values, seconds=round(time.monotonic() - started, 3))
            board.write(values)
            is_over = trainer.epoch == trainer.max_epochs or best.stop(patience) is not None
            if trainer.processes.writes and (trainer.epoch % frequency == 0 or is_over):
                _save(trainer, run, inputs, best)
    return best.stop(patience)


def _require_precision(config: RLHFConfig, device: torch.device) -> None:
    if config.device.precision == "float16" and device.type == "cpu":
        raise ConfigError("device", ["precision float16 needs a GPU. Use float32, or bfloat16"])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _make_trainer(
    config: RLHFConfig, inputs: Inputs, device: torch.device, options: argparse.Namespace, processes: Processes
) -> Trainer:
    selector = Selector.load(options.selector_checkpoint) if options.selector_checkpoint else None
    policy = Policy.load(options.policy_checkpoint) if options.policy_checkpoint else None
    if policy is not None and policy.config.text_encoder_sha256 != inputs.features.encoder_sha256:
        raise NetworkFileError(f"{options.policy_checkpoint} was trained with another text encoder.")
    return Trainer(
        config,
        inputs.rated,
        inputs.targets.labels,
        inputs.split,
        inputs.features,
        image_size=inputs.image_size,
        device=device,
        selector=selector,
        relabel=inputs.targets.relabel,
        policy=policy,
        processes=processes,
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


class StopRequests:
    """Knows whether this process was asked to end, by SIGTERM."""

    def __enter__(self):
        self._is_asked = False
        self._handler_before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._handler_before)

    def _ask(self, *_: Any) -> None:
        self._is_asked = True

    def check(self, trainer: Trainer) -> None:
        """Raise Stopped if it should end: with several processes all do, after the same step."""
        if trainer.processes.total(float(self._is_asked), trainer.device):
            raise Stopped("Stopped by SIGTERM. Start again in the same directory to resume.")


def _after_step(trainer: Trainer, run: RunDirectory, requests: StopRequests, remaining: RemainingTime) -> None:
    progress = {"done": trainer.step, "total": trainer.max_steps, "unit": "steps"}
    seconds = remaining.after(trainer.step, trainer.max_steps)
    estimate = {} if seconds is None else {"seconds_left": round(seconds, 1)}
    run.log(
        step=trainer.step, epoch=trainer.epoch + 1, progress=progress, device=_device_name(trainer.device), **estimate
    )
    requests.check(trainer)


def _epoch_values(trainer: Trainer, inputs: Inputs, result: EpochResult, losses: dict[str, float]) -> dict[str, Any]:
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
        **{f"{network}_validation_loss": loss for network, loss in losses.items()},
        **validation_auc(trainer.scores, inputs.rated, inputs.split),
    }


def _save(trainer: Trainer, run: RunDirectory, inputs: Inputs, best: BestNetworks) -> None:
    name = f"epoch_{trainer.epoch}"
    facts = {"epoch": trainer.epoch, "fingerprint": inputs.fingerprint, "best": best.entries}
    with run.checkpoint(name, step=trainer.step, **facts) as folder:
        trainer.save(folder)
    logger.info("Saved %s", run.path / name)


def _write_report(
    config: RLHFConfig,
    run: RunDirectory,
    trainer: Trainer,
    inputs: Inputs,
    best: BestNetworks,
    *,
    stop: Stop | None,
    timing: Timing,
) -> None:
    """Figures of the best networks on the held-out images, the last ones' beside them."""
    last = validation_auc(trainer.scores, inputs.rated, inputs.split)
    pass_rate = trainer.pass_rate()
    with timing.of("score"):
        trainer.selector.load_state_dict(Selector.load(best.folder / SELECTOR_FILE).state_dict())
        trainer.policy.load_state_dict(Policy.load(best.folder / POLICY_FILE).state_dict())
        scores = trainer.score_all()
        every_prompt = score_every_prompt(trainer.policy, inputs.rated, inputs.split.held_out, inputs.features)
    with timing.of("report"):
        figures = final_report(config, inputs.rated, inputs.split, scores, every_prompt)
    seconds = {**timing.seconds, **_stage_seconds(run)}
    report = {
        "checkpoint": BEST,
        "best": best.entries,
        "last": {"checkpoint": f"epoch_{trainer.epoch}", **last},
        **figures,
        **describe_data(inputs.rated, inputs.targets),
        "pass_rate": pass_rate,
        "text_encoder_sha256": inputs.features.encoder_sha256,
        "image_size": inputs.image_size,
        "stopped_early": None if stop is None else dataclasses.asdict(stop),
        "timing": {name: round(value, 2) for name, value in seconds.items()},
        "seconds": round(sum(seconds.values()), 1),
    }
    write_json(run.path / REPORT_NAME, report)
    run.log(event="finished", epoch=trainer.epoch, step=trainer.step, seconds=report["seconds"])
    logger.info("Report: %s", run.path / REPORT_NAME)
    if config.synthetic_system.enable_training:
        logger.info(
            "Now update the generator (the application does so by itself): python -m training.rlhf.generator_update "
            "--rlhf_run %s --run_directory %s",
            run.path,
            run.path.with_name(f"{run.path.name}-update"),
        )


def _stage_seconds(run: RunDirectory) -> dict[str, float]:
    """Seconds of the epochs by stage, those before a resumption included."""
    seconds: dict[str, float] = {}
    for line in run.metrics():
        if "stage" in line and "seconds" in line:
            name = f"stage{line['stage']}"
            seconds[name] = seconds.get(name, 0.0) + line["seconds"]
    return seconds


if __name__ == "__main__":
    sys.exit(main())
