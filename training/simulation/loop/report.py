"""The report of a simulated loop: figures over seeds with intervals, as JSON and Markdown. Pure.

An interval is Student's t over seeds at 95 %: mean +- t(n - 1) s / sqrt(n), cut to 0..1 for shares. Seeds are
independent repetitions of everything: images, experts, training. With one seed there is none.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from medsyn.percent import percent
from training.simulation.loop.settings import (
    ACCEPTED,
    ARMS,
    NO_FILTER,
    OURS,
    PUBLISHED,
    REPAIRED,
    LoopFolder,
    LoopSettings,
)

CONFIDENCE = 0.95
LABEL = "Simulated experts on generated phantoms: no clinical evidence."


@dataclass(frozen=True)
class Figure:
    """One number of a result file."""

    key: str  # path in the file, joined by dots
    title: str
    as_percent: bool = True
    better: str = ""  # "lower", "higher" or "": neither


FIGURES = (
    Figure("served.poor", "Poor among served, by gold", better="lower"),
    Figure("served.excellent", "Excellent among served, by gold", better="higher"),
    Figure("panel.poor", "Poor among served, by the panel", better="lower"),
    Figure("panel.excellent", "Excellent among served, by the panel", better="higher"),
    Figure("auc_poor", "AUC for poor", as_percent=False, better="higher"),
    Figure("candidates.poor", "Poor among all candidates, by gold", better="lower"),
    Figure("candidates.excellent", "Excellent among all candidates, by gold", better="higher"),
    Figure("served.yield", "Share served"),
    Figure("served.diversity", "MS-SSIM within a kind (lower: more diverse)", as_percent=False),
    Figure("copies.share", "Copies of training images among served", better="lower"),
    Figure("own_threshold.poor", "Poor by gold at threshold 0.6", better="lower"),
    Figure("own_threshold.excellent", "Excellent by gold at threshold 0.6", better="higher"),
    Figure("own_threshold.yield", "Share served at threshold 0.6"),
    Figure("served.candidates_per_accepted", "Candidates per accepted image", as_percent=False, better="lower"),
    Figure("served.unet_evaluations_per_accepted", "UNet evaluations per accepted image", as_percent=False),
    Figure("agreement", "Krippendorff's alpha of the panel", as_percent=False),
    Figure("ratings.all", "Ratings spent so far", as_percent=False),
)
_COMPARED = ("served.poor", "served.excellent", "panel.poor", "panel.excellent", "auc_poor")
_AGAINST = (REPAIRED, PUBLISHED, NO_FILTER)


def read_results(folder: LoopFolder, settings: LoopSettings, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every result there is so far."""
    paths = [path for seed in seeds for path in folder.result_files(seed, settings)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def value_of(result: Mapping[str, Any], key: str) -> float | None:
    """The number at a dotted path; None where a part of it is missing."""
    found: Any = result
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean with its t interval over seeds."""
    number, mean = len(values), float(np.mean(values)) if len(values) else None
    if number < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": number}
    half = student.ppf((1 + CONFIDENCE) / 2, number - 1) * np.std(values, ddof=1) / np.sqrt(number)
    return {"mean": mean, "low": float(mean - half), "high": float(mean + half), "seeds": number}


def summarise(results: Sequence[Mapping[str, Any]], settings: LoopSettings) -> dict[str, Any]:
    """The whole report as JSON."""
    by_place: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_place.setdefault((result["arm"], result["round"]), {})[result["seed"]] = result
    rounds = range(settings.rounds + 1)
    return {
        "label": LABEL,
        "settings": settings.to_dict(),
        "interval": "Student's t over seeds, 95 %",
        "seeds": sorted({result["seed"] for result in results}),
        "arms": {
            arm: [_figures(by_place.get((arm, number), {})) | {"round": number} for number in rounds]
            for arm in settings.arms
        },
        **{
            key: {arm: certificates([by_place.get((arm, n), {}) for n in rounds], name) for arm in settings.arms}
            for key, name in (("certificates", "certificate"), ("certificates_alone", "certificate_alone"))
        },
        "ours_ahead_of": {
            other: [_differences(by_place, other, number) | {"round": number} for number in rounds]
            for other in _AGAINST
            if OURS in settings.arms and other in settings.arms
        },
        "round_by_round": {arm: _steps(by_place, arm, settings.rounds) for arm in settings.arms},
        "updates": [updates(by_place.get((OURS, number), {})) | {"round": number} for number in rounds[2:]]
        if settings.update_generator
        else [],
    }


def _figures(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for figure in FIGURES:
        values = [value_of(result, figure.key) for result in by_seed.values()]
        found[figure.key] = interval([value for value in values if value is not None])
        if figure.as_percent and found[figure.key]["low"] is not None:  # a share lies between 0 and 1
            found[figure.key] |= {
                "low": max(found[figure.key]["low"], 0.0),
                "high": min(found[figure.key]["high"], 1.0),
            }
    return found


def certificates(by_round: Sequence[Mapping[int, Mapping[str, Any]]], name: str) -> dict[str, Any]:
    """Counts over seeds and rounds: tested, refused, held, broken; mean yield of those certified."""
    told = [result.get(name) for by_seed in by_round for result in by_seed.values()]
    tested = [each for each in told if each]
    certified = [each for each in tested if each["certified"]]
    return {
        "tested": len(tested),
        "refused": len(tested) - len(certified),
        "held": sum(each["held"] for each in certified),
        "broken": sum(not each["held"] for each in certified),
        "mean_yield": float(np.mean([each["yield"] for each in certified])) if certified else None,
    }


def updates(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Of the generator updates before a round: how many there were over the seeds, and how many were accepted."""
    told = [result["update"] for result in by_seed.values() if result.get("update")]
    return {"decided": len(told), "accepted": told.count(ACCEPTED)}


def _differences(by_place: Mapping, other: str, number: int) -> dict[str, Any]:
    """Ours less the other, seed by seed."""
    return _paired(by_place.get((OURS, number), {}), by_place.get((other, number), {}))


def _steps(by_place: Mapping, arm: str, rounds: int) -> list[dict[str, Any]]:
    """An arm's round less the round before, seed by seed."""
    return [
        _paired(by_place.get((arm, number), {}), by_place.get((arm, number - 1), {})) | {"round": number}
        for number in range(1, rounds + 1)
    ]


def _paired(ones: Mapping[int, Mapping], others: Mapping[int, Mapping]) -> dict[str, Any]:
    found = {}
    for key in _COMPARED:
        pairs = [(value_of(ones[seed], key), value_of(others[seed], key)) for seed in ones if seed in others]
        found[key] = interval([one - other for one, other in pairs if one is not None and other is not None])
    return found


# --- Markdown ---


def markdown(summary: Mapping[str, Any]) -> str:
    """The report for people; the plot lies beside it."""
    settings, seeds = summary["settings"], summary["seeds"]
    lines = [
        "# Closed loop",
        "",
        f"**{summary['label']}** Seeds: {len(seeds)}; panel *{settings['panel']}*, generator "
        f"*{settings['generator']}*, {settings['images']} images a round, {settings['ratings_per_image']} ratings an "
        "image. Every arm serves the "
        f"best {percent(settings['serve'])} of its candidates and has as many ratings. Round 0: before any rating. "
        f"Brackets: {summary['interval']}. All figures: simulated experts.",
        "",
        "![Curves](curves.svg)",
        "",
    ]
    for figure in FIGURES:
        lines += _table(summary, figure)
    lines += _update_table(summary["updates"])
    lines += _certificate_tables(summary)
    for other, rows in summary["ours_ahead_of"].items():
        lines += _difference_table(f"Ours less {ARMS[other]} (simulated experts)", rows)
    for arm, rows in summary["round_by_round"].items():
        if arm == OURS:
            lines += _difference_table("Ours: each round less the round before (simulated experts)", rows)
    return "\n".join(lines) + "\n"


def _table(summary: Mapping[str, Any], figure: Figure) -> list[str]:
    """Arms by rounds; nothing where no seed has the figure."""
    rows = summary["arms"]
    if not any(entry[figure.key]["seeds"] for entries in rows.values() for entry in entries):
        return []
    numbers = [entry["round"] for entry in next(iter(rows.values()))]
    lines = [f"## {figure.title} (simulated experts)", ""]
    lines += [f"| arm | {' | '.join(f'round {number}' for number in numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for arm, entries in rows.items():
        cells = [_cell(entry[figure.key], as_percent=figure.as_percent) for entry in entries]
        lines.append(f"| {ARMS[arm]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _update_table(rows: Sequence[Mapping[str, int]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Updates of the generator of ours (simulated experts)",
        "",
        "| before round | decided | accepted |",
        "|---|---|---|",
    ]
    lines += [f"| {row['round']} | {row['decided']} | {row['accepted']} |" for row in rows]
    return [*lines, ""]


def _certificate_tables(summary: Mapping[str, Any]) -> list[str]:
    settings = summary["settings"]
    lines = [
        "## Certificates (simulated experts)",
        "",
        f"alpha {settings['alpha']}, delta {settings['delta']}. Held: at most alpha of the fresh images served are "
        "poor by gold.",
        "",
        "All releases of a seed tested on one growing calibration set; the v-th spends 6 / (pi v)^2 of delta:",
        "",
        *_certificate_table(summary["certificates"]),
        "Each release by itself, as if it were the only one tested, with all of delta:",
        "",
    ]
    return lines + _certificate_table(summary["certificates_alone"])


def _certificate_table(by_arm: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| arm | tested | refused | held | broken | mean yield of the certified |", "|---|---|---|---|---|---|"]
    for arm, found in by_arm.items():
        share = "-" if found["mean_yield"] is None else percent(found["mean_yield"], 0)
        counts = " | ".join(str(found[name]) for name in ("tested", "refused", "held", "broken"))
        lines.append(f"| {ARMS[arm]} | {counts} | {share} |")
    return [*lines, ""]


def _difference_table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    named = {figure.key: figure for figure in FIGURES}
    heads = " | ".join(f"round {row['round']}" for row in rows)
    lines = [f"## {title}", "", f"| figure | {heads} |"]
    lines.append("|---" * (len(rows) + 1) + "|")
    for key in _COMPARED:
        cells = [_cell(row[key], as_percent=named[key].as_percent, signed=True) for row in rows]
        lines.append(f"| {named[key].title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(found: Mapping[str, Any], *, as_percent: bool, signed: bool = False) -> str:
    if found["mean"] is None:
        return "-"
    write = _writer(found["mean"], as_percent=as_percent, signed=signed)
    if found["low"] is None:
        return write(found["mean"])
    return f"{write(found['mean'])} [{write(found['low'])}, {write(found['high'])}]"


def _writer(mean: float, *, as_percent: bool, signed: bool) -> Callable[[float], str]:
    if as_percent:
        return lambda value: percent(value, 1, is_signed=signed)
    sign = "+" if signed else ""
    return lambda value: f"{value:{sign}.0f}" if abs(mean) >= 100 else f"{value:{sign}.3f}"
