"""What a simulated closed loop is asked to do, and the arms that it compares. Pure, no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PHANTOMS, EMBEDDED = "phantoms", "medsyn-tiny"  # generators that have a name; any other is a pipeline folder
PANELS = {"default": (1, 1, 1, 2, 2, 3), "pessimistic": (2, 2, 2, 2, 2, 2)}  # expertise of the experts

NO_FILTER, PUBLISHED, REPAIRED, OURS = "none", "published", "repaired", "ours"
NO_SOFT_LABELS, NO_POLICY, NO_LOWER_BOUND = "no-soft-labels", "no-policy", "no-lower-bound"
ORACLE = "oracle"
ARMS = {  # in the order of reports
    NO_FILTER: "no filter",
    PUBLISHED: "predecessors' rule, as published",
    REPAIRED: "predecessors' rule, repaired",
    NO_SOFT_LABELS: "ours without soft labels",
    NO_POLICY: "ours without the policy",
    NO_LOWER_BOUND: "ours without the lower bound",
    OURS: "ours",
    ORACLE: "oracle (the gold quality itself)",
}
# Arms that have images of their own rated, in a study of their own; the others learn from the ratings of "ours" or
# from none.
READ_ARMS = (PUBLISHED, REPAIRED, OURS)
OF_OURS = (NO_SOFT_LABELS, NO_POLICY, NO_LOWER_BOUND)
ACCEPTED, REFUSED = "accepted", "refused"  # what comes of a generator update


class LoopError(ValueError):
    """The loop cannot be run as asked; the text says what to change."""


@dataclass(frozen=True)
class LoopSettings:
    """One simulated loop; the same settings and seed give the same results."""

    rounds: int = 3  # of rating and training
    panel: str = "default"  # one of PANELS
    images: int = 80  # that every arm has rated in a round
    ratings_per_image: int = 3  # experts who rate an image
    generator: str = PHANTOMS  # PHANTOMS, EMBEDDED or a pipeline folder
    arms: tuple[str, ...] = tuple(ARMS)
    serve: float = 0.3  # share of the candidates that every arm serves: its best
    calibration_share: float = 0.4  # of a round's images: drawn at random, never trained on
    served_share: float = 0.3  # of a round's images from the second round on: served by the arm's own filter
    repeat_share: float = 0.1  # hidden second showings, as a share of the first ones
    fresh: int = 1000  # images that a release is measured on
    unrated: int = 500  # images that thresholds come from
    mismatch_rate: float = 0.15  # phantoms only: prompts that name another finding
    epochs: int = 40  # of selector and policy
    steps: int | None = None  # of the sampler; None: what the generator's maker recommends
    alpha: float = 0.10  # of the certificates
    delta: float = 0.10
    update_generator: bool = (
        False  # between rounds, by the release of "ours", whose images then come from the new one
    )
    update_images: int = 300  # drawn to learn from, and again from the old and the new generator to decide
    update_steps: int = 200  # of the optimiser
    real_data: str = ""  # dataset CSV that the generator was trained on, replayed in updates; "": phantoms

    def __post_init__(self):
        faults = [text for text, holds in self._faults().items() if holds]
        if faults:
            raise LoopError(" ".join(faults))

    def _faults(self) -> dict[str, bool]:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        return {
            f"There is no arm {', '.join(unknown)}; there are {', '.join(ARMS)}.": bool(unknown),
            "No arm is named.": not self.arms,
            f"There is no panel {self.panel!r}; there are {', '.join(PANELS)}.": self.panel not in PANELS,
            f"{self.rounds} rounds: at least 1 is needed.": self.rounds < 1,
            f"{self.images} images a round: at least 20 are needed to train on.": self.images < 20,
            f"{self.ratings_per_image} ratings an image: 1 to 6, the size of the panel.": not (
                1 <= self.ratings_per_image <= 6
            ),
            f"A share of {self.serve} cannot be served: more than 0, at most 1.": not 0 < self.serve <= 1,
            "fresh and unrated images: at least 30 of each.": min(self.fresh, self.unrated) < 30,
            "Phantoms are drawn by no network: there is nothing to update. Name another generator.": (
                self.update_generator and self.generator == PHANTOMS
            ),
            "The generator is updated by the release of ours: add that arm.": (
                self.update_generator and OURS not in self.arms
            ),
        }

    @property
    def read_arms(self) -> tuple[str, ...]:
        """Arms with a study: those asked for, and "ours" where another arm rests on its ratings.

        Certificates and panel figures of arms without one come from the calibration images of the last of these.
        """
        return tuple(arm for arm in READ_ARMS if arm in self.arms or (arm == OURS and self._needs_ours))

    @property
    def _needs_ours(self) -> bool:
        return any(arm in OF_OURS for arm in self.arms) or not any(arm in READ_ARMS for arm in self.arms)

    def study_of(self, arm: str) -> str:
        """The arm in whose study an arm's ratings are."""
        return arm if arm in self.read_arms else self.read_arms[-1]

    @property
    def num_served(self) -> int:
        """Images of a round that an arm's own filter chose; none in the first."""
        return round(self.served_share * self.images)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise LoopError(f"No settings of a loop: {', '.join(unknown)}.")
        return cls(**{**values, "arms": tuple(values.get("arms", ARMS))})

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "arms": list(self.arms)}


@dataclass(frozen=True)
class LoopFolder:
    """Where a loop keeps its files."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "loop.json"

    def seed_folder(self, seed: int) -> Path:
        return self.path / f"seed-{seed:03d}"

    def var_dir(self, seed: int) -> Path:
        """Database, images and releases of that seed alone."""
        return self.seed_folder(seed) / "var"

    def log_file(self, seed: int) -> Path:
        return self.seed_folder(seed) / "log.txt"

    def result_file(self, seed: int, arm: str, number: int) -> Path:
        """What was measured of an arm's release of a round; round 0: before any rating."""
        return self.seed_folder(seed) / "results" / f"round-{number}-{arm}.json"

    def result_files(self, seed: int, settings: LoopSettings) -> list[Path]:
        return [self.result_file(seed, arm, number) for number in range(settings.rounds + 1) for arm in settings.arms]
