"""What a filtered job spent and found, place by place, and the scores that its threshold slider works with."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generation.filtering import Ledger, Verdict
from generation.models import GenerationJob

PLACES_SHOWN = 100


@dataclass(frozen=True)
class PlaceLine:
    """One image asked for, and what was tried for it."""

    number: int  # from 1, as people count
    prompt: str
    attempts: int  # begun
    candidates: int  # drawn to the end, or stopped early
    stopped: int  # ended early by a gate
    best: float | None  # highest min(selector, policy) of its candidates; None: none was judged
    state: str  # "filled", "not found", "open"


@dataclass(frozen=True)
class JobFigures:
    judged: int  # candidates with scores
    accepted: int
    stopped: int  # candidates that gates ended early
    dropped: int  # candidates given up because another one of their place had passed
    unet_evaluations: int | None  # of all candidates; None where they were not counted
    attempts: list[int]  # of each place that is settled
    not_found: int  # places whose attempts are spent
    places: list[PlaceLine]  # the hardest first, at most PLACES_SHOWN
    num_places: int

    @property
    def per_accepted(self) -> float | None:
        """UNet evaluations for each accepted image, those of rejected and stopped candidates included."""
        return self.unet_evaluations / self.accepted if self.unet_evaluations and self.accepted else None

    @property
    def mean_attempts(self) -> float | None:
        return statistics.fmean(self.attempts) if self.attempts else None

    @property
    def most_attempts(self) -> int | None:
        return max(self.attempts, default=None)


def job_figures(job: GenerationJob, ledger: Ledger, prompts: Sequence[str]) -> JobFigures | None:
    """Of a filtered job and its ledger; None before the first verdict. ``prompts``: texts in the job's order."""
    lines = [_line(job, ledger, prompts, place) for place in range(ledger.num_places)]
    begun = [line for line in lines if line.candidates]
    if not begun:
        return None
    hardness = {"not found": 0, "filled": 1, "open": 2}
    spent = ledger.spent
    return JobFigures(
        judged=sum(line.candidates - line.stopped for line in lines),
        accepted=len(ledger.filled_places),
        stopped=spent.stopped,
        dropped=spent.dropped,
        unet_evaluations=spent.unet_evaluations or None,
        attempts=[line.attempts for line in lines if line.state != "open"],
        not_found=sum(line.state == "not found" for line in lines),
        places=sorted(begun, key=lambda line: (hardness[line.state], -line.candidates))[:PLACES_SHOWN],
        num_places=ledger.num_places,
    )


def _line(job: GenerationJob, ledger: Ledger, prompts: Sequence[str], place: int) -> PlaceLine:
    verdicts = ledger.drawn_for(place)
    settled = ledger.settled(place)
    if any(verdict.accepted for verdict in verdicts):
        state = "filled"
    else:
        state = "not found" if settled >= ledger.rule.candidates_per_place else "open"
    return PlaceLine(
        number=place + 1,
        prompt=prompts[place // job.num_images],
        attempts=-(-settled // ledger.rule.num_candidates),
        candidates=settled,
        stopped=ledger.spent_on(place).stopped,
        best=max((_deciding(verdict) for verdict in verdicts), default=None),
        state=state,
    )


def _deciding(verdict: Verdict) -> float:
    """Both scores must reach the threshold, so the lower one decides."""
    return min(verdict.selector_score, verdict.policy_score)


def scores_of(job: GenerationJob) -> dict[str, Any]:
    """What the threshold slider needs, as JSON values: [place, selector, policy] of each judged candidate."""
    per_place = 1
    if job.mode == job.Mode.RLHF:
        per_place = job.parameters["max_attempts"] * job.parameters["num_candidates"]
    rows = job.images.unblocked().exclude(selector_score=None).order_by("position")  # a copy passes at no threshold
    rows = rows.values_list("position", "selector_score", "policy_score")
    return {
        "threshold": job.parameters.get("quality_threshold"),
        "places": job.progress_total,
        "candidates": [[position // per_place, selector, policy] for position, selector, policy in rows],
    }
