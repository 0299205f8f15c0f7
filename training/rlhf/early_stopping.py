"""The best networks so far, and when to stop looking for better ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsyn.artifacts import ArtifactError, atomic_folder, read_manifest
from training.rlhf.calibration import negative_log_likelihood
from training.rlhf.labels import Validation
from training.rlhf.policy_loss import advantages, rewards
from training.rlhf.trainer import POLICY_FILE, SELECTOR_FILE, Scores, Trainer
from training.run_directory import RunDirectory

BEST = "best"
_FILES = {"selector": SELECTOR_FILE, "policy": POLICY_FILE}


def validation_losses(scores: Scores, validation: Validation, mean_reward: float) -> dict[str, float]:
    """By network, how far off it is on the validation images: lower is better.

    selector: minus the log-likelihood of what held-out raters said, seen through their confusion matrices, or the
    cross-entropy to the fold's soft labels; policy: minus the advantage it gathers over ``mean_reward``, that of the
    training images, minus the gap to another prompt where not poor.
    """
    items, labels = validation.items, validation.labels
    not_poor = 1 - labels[:, 0]
    gain = (advantages(rewards(labels), mean_reward) * (2 * scores.acceptance[items] - 1)).mean()
    gap = (scores.acceptance[items] - scores.other_acceptance[items]).nan_to_num(0.0)
    if validation.observed is None:
        selector = negative_log_likelihood(scores.good[items], not_poor).item()
    else:
        selector = validation.observed.negative_log_likelihood(scores.good)
    return {
        "selector": selector,
        "policy": -(gain + (not_poor * gap).mean()).item(),
    }


@dataclass(frozen=True)
class Stop:
    """The end of a run that no longer got better."""

    epoch: int
    reason: str


class BestNetworks:
    """The best selector and the best policy so far, each with its own epoch.

    They are written at once, so the training that goes on cannot change them; their folder has no step and is
    therefore no checkpoint to resume from. What a run that is repeated from a checkpoint finds here may be newer than
    the checkpoint: the epochs in between come out as they did, so nothing is decided otherwise.
    """

    def __init__(self, run: RunDirectory, trainer: Trainer, validation: Validation):
        self.folder, self._trainer, self._validation = run.path / BEST, trainer, validation
        self._mean_reward = rewards(trainer.soft_labels)[trainer.split.train].mean()
        self.entries: dict[str, dict[str, Any]] = {}
        if trainer.epoch:
            self.entries = self._stored(run.latest())

    def _stored(self, checkpoint: Path) -> dict[str, dict[str, Any]]:
        """What the folder holds; raises ArtifactError where it is older than the checkpoint says, or not there."""
        found = {}
        if (self.folder / "manifest.json").exists():
            found = read_manifest(self.folder)["networks"]
        for name, entry in read_manifest(checkpoint).get("best", {}).items():
            if name not in found or found[name]["epoch"] < entry["epoch"]:
                raise ArtifactError(
                    f"{self.folder} does not hold the {name} of epoch {entry['epoch']}, which {checkpoint} knows as "
                    "the best. Restore the folder to resume, or train in a new run directory."
                )
        return found

    def update(self) -> dict[str, float]:
        """Keep the networks that are better than before; returns the losses by network."""
        losses = validation_losses(self._trainer.scores, self._validation, self._mean_reward)
        better = [name for name in losses if name not in self.entries or losses[name] < self.entries[name]["loss"]]
        if better:
            new = {name: {"loss": losses[name], "epoch": self._trainer.epoch} for name in better}
            self._write({**self.entries, **new}, better)
        return losses

    def _write(self, entries: dict[str, dict[str, Any]], better: list[str]) -> None:
        self.entries = entries
        if not self._trainer.processes.writes:
            return
        networks = {"selector": self._trainer.selector, "policy": self._trainer.policy}
        with atomic_folder(self.folder, networks=entries) as folder:
            for name, file in _FILES.items():
                if name in better:
                    networks[name].save(folder / file)
                else:
                    (folder / file).write_bytes((self.folder / file).read_bytes())

    def stop(self, patience: int) -> Stop | None:
        """Whether neither network got better for ``patience`` epochs of the last stage; 0: training never stops."""
        trainer = self._trainer
        if not patience or not self.entries or trainer.epoch >= trainer.max_epochs:
            return None
        newest = max(entry["epoch"] for entry in self.entries.values())
        since = trainer.epoch - max(newest, first_epoch_of_last_stage(trainer) - 1)
        if since < patience:
            return None
        return Stop(
            trainer.epoch, f"no better selector or policy for {since} epochs, by the {self._validation.source}"
        )


def first_epoch_of_last_stage(trainer: Trainer) -> int:
    """Training does not stop before: a stage that has not begun cannot be judged."""
    return trainer.first_stage2_epoch if trainer.first_stage2_epoch <= trainer.max_epochs else 1
