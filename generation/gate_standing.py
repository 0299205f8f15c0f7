"""Whether a release's gates are at work: what they promised, and what its own images have shown since. No torch."""

from dataclasses import dataclass
from pathlib import Path

from generation.models import GeneratedImage, Release
from generation.scoring.gate_plan import GATES_NAME, Estimate, GatePlan, share_estimate
from medsyn.percent import percent

FEWEST_UNGATED = 10  # accepted ones from which the running recall may switch the gates off


@dataclass(frozen=True)
class GateStanding:
    """What people and the worker need to know of a release's gates."""

    is_on: bool
    sentence: str  # for people
    plan: GatePlan | None = None  # None: the release has no gates
    recall: Estimate | None = None  # of ungated accepted images, the share that the gates would have let through
    ungated_accepted: int = 0


def gate_standing(release: Release) -> GateStanding:
    """The gates switch themselves off once recall on ungated images is surely under the promise, and stay off.

    With them off no image is ungated in their sense any more, so nothing can bring them back but new gates.
    """
    if not release.gates_sha256:
        return GateStanding(False, "This release has no gates: every candidate is drawn to its end.")
    plan = GatePlan.from_dict(release.manifest["gates"])
    if plan.off_reason:
        return GateStanding(False, plan.off_reason, plan)
    ungated = GeneratedImage.objects.accepted().ungated().filter(release=release)
    number = ungated.count()
    recall = share_estimate(ungated.filter(gates_would_stop=False).count(), number)
    if number >= FEWEST_UNGATED and recall.high < plan.promised_recall:
        return GateStanding(
            False,
            f"Switched off: of {number} accepted images that no gate could stop, the gates would have let through "
            f"{percent(recall.value, 0)} (at most {percent(recall.high, 0)}); {percent(plan.promised_recall)} was "
            "promised. Train new gates.",
            plan,
            recall,
            number,
        )
    steps = " and ".join(str(gate.step) for gate in plan.gates)
    return GateStanding(
        True,
        f"After step {steps} hopeless candidates are stopped: {plan.gain.value:.2f} times fewer UNet evaluations "
        f"({percent(0.95)} {plan.gain.low:.2f} to {plan.gain.high:.2f}) at {percent(plan.recall.value, 0)} recall, "
        "when trained.",
        plan,
        recall,
        number,
    )


def gates_file_of(release: Release) -> Path | None:
    """The file to load for drawing; None where the release has none or they are switched off."""
    return release.folder / GATES_NAME if gate_standing(release).is_on else None
