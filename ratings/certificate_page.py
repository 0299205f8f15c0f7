"""A certificate's page: its figures in words and its power curve as a drawing."""

from dataclasses import dataclass
from math import log
from typing import Any

from generation.models import Certificate
from medsyn.percent import percent

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 470, 12, 150  # of the plot's view box, 480 by 190
_WANTED_POWER = 0.8
PARTS = {  # part of the frozen pipeline: how the page calls it
    "generator": "Generator",
    "selector": "Selector",
    "policy": "Policy",
    "gates": "Gates",
    "sampler": "Sampler",
    "steps": "Steps",
    "guidance": "Guidance scale",
    "guidance interval": "Guided part of the run",
    "negative prompt": "Negative prompt",
    "height": "Height",
    "width": "Width",
    "precision": "Precision",
    "device": "Kind of device",
    "preprocessing": "Preprocessing version",
    "score": "Certified score",
}
_DIGESTS = ("generator", "selector", "policy", "gates")


@dataclass(frozen=True)
class Tick:
    """A number below the plot."""

    x: float  # units of the view box
    text: str


@dataclass(frozen=True)
class PowerPlot:
    """Probability of a certificate against the number of rated images, in units of the view box."""

    points: str  # of a polyline
    ticks: tuple[Tick, ...]
    now: Tick  # what is rated
    wanted: Tick | None  # where the probability reaches 0.8; None: nowhere in the plot
    y_wanted: float  # height of that probability
    described: str  # the curve in a sentence


def certificate_page(certificate: Certificate) -> dict[str, Any]:
    """What the template of a certificate shows besides its row."""
    manifest, drift = certificate.manifest, certificate.drift
    return {
        "plot": power_plot(certificate),
        "kappa": manifest["kappa"],
        "held": next((step for step in manifest["steps"] if step["threshold"] == certificate.threshold), None),
        "parts": [(label, shown(part, certificate)) for part, label in PARTS.items()],
        "drift": drift,
        "num_observed": certificate.observations.count(),
        "num_observed_poor": certificate.observations.filter(is_poor=True).count(),
    }


def shown(part: str, certificate: Certificate) -> str:
    """A part of the frozen pipeline as text."""
    value = certificate.frozen.get(part, "unrecorded")
    if part in _DIGESTS:
        return value[:16] or "none"
    if part == "guidance interval":
        return f"{value[0]:g} to {value[1]:g} of the steps"
    if part in ("height", "width") and value is None:
        return f"{certificate.manifest['own_size'].get(part, '?')} px, the model's own"
    return str(value) if value != "" else "none"


def power_plot(certificate: Certificate) -> PowerPlot | None:
    """The power curve that the test left behind; None where it has fewer than two points."""
    curve = certificate.manifest["power"]
    if len(curve) < 2:
        return None
    first, last = log(curve[0][0]), log(curve[-1][0])

    def x(number: float) -> float:
        place = (log(max(number, 1)) - first) / (last - first)
        return round(_LEFT + (_RIGHT - _LEFT) * min(max(place, 0.0), 1.0), 1)

    def y(power: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * power, 1)

    enough = next((number for number, power in curve if power >= _WANTED_POWER), None)
    numbers = [
        n for n in (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000) if curve[0][0] <= n <= curve[-1][0]
    ]
    return PowerPlot(
        points=" ".join(f"{x(number)},{y(power)}" for number, power in curve),
        ticks=tuple(Tick(x(number), f"{number}") for number in numbers),
        now=Tick(x(certificate.num_images), f"{certificate.num_images}"),
        wanted=None if enough is None else Tick(x(enough), f"{enough}"),
        y_wanted=y(_WANTED_POWER),
        described=_described(curve, enough),
    )


def _described(curve: list, enough: int | None) -> str:
    begins = f"From {curve[0][0]} to {curve[-1][0]} rated images the probability of a certificate goes "
    begins += f"from {percent(curve[0][1], 0)} to {percent(curve[-1][1], 0)}"
    wanted = percent(_WANTED_POWER)
    return f"{begins}; it reaches {wanted} at {enough}." if enough else f"{begins}; it does not reach {wanted}."
