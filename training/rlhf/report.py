"""The figures of a finished run: report.json. Everything in it is measured on the held-out images."""

import dataclasses
from typing import Any

import numpy as np

from ratings.agreement.coefficients import agreement_weights, kappa_of_tables
from ratings.agreement.rater_model import MIN_OVERLAP, RaterModel
from ratings.agreement.table import NUM_GRADES
from training.rlhf.config import RLHFConfig
from training.rlhf.dataset import RatedImages, rater_levels
from training.rlhf.evaluation import auc, evaluate_scores, gather_ratings, human_ceiling
from training.rlhf.labels import Targets
from training.rlhf.prompt_matching import PromptScores, matched_prompt_auc
from training.rlhf.reliability import HeldOut, histogram, pass_curve, reliability, worst
from training.rlhf.splits import Split
from training.rlhf.tidy import EXPERT_LEVELS
from training.rlhf.trainer import Scores


def held_out_grades(rated: RatedImages, split: Split) -> list[np.ndarray]:
    return gather_ratings(rated.item_of_rating, rated.grades, split.held_out.numpy())


def validation_auc(scores: Scores, rated: RatedImages, split: Split) -> dict[str, float | None]:
    """By network, the AUC for "poor" against the single ratings of the held-out images."""
    grades = held_out_grades(rated, split)
    counts = [len(given) for given in grades]
    poor = np.concatenate(grades) == 1
    return {
        "validation_auc": auc(np.repeat(1 - scores.serving[split.held_out].numpy(), counts), poor),
        "policy_validation_auc": auc(np.repeat(1 - scores.alignment[split.held_out].numpy(), counts), poor),
    }


def describe_data(rated: RatedImages, targets: Targets) -> dict[str, Any]:
    """What the run saw: files, ratings, raters, and what chose the epoch."""
    seen, validation = rated.seen, targets.validation
    gold_images = {image for image, grade in zip(rated.image_ids, rated.known, strict=True) if grade}
    is_known = seen.rater_source != EXPERT_LEVELS
    return {
        "data": {
            **dataclasses.asdict(seen),
            "ratings": len(rated.grades),
            "raters": len(targets.rater_names) if is_known else None,
            "gold_images": len(gold_images),
            "groups": len(np.unique(rated.groups)),
            "lost_to_held_out_raters": targets.num_lost,
            "labels": "own ratings" if targets.relabel is None else "own ratings and those of other images",
        },
        "validation": {
            "source": validation.source,
            "reason": validation.reason,
            "raters": list(validation.raters),
            "images": len(validation.items),
            "ratings": validation.ratings,
        },
        "raters": describe_raters(rated, targets.raters, targets.rater_names),
    }


def describe_raters(rated: RatedImages, model: RaterModel, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """By rater, the estimated confusion matrix (rows: truth, columns: said) and what follows from it.

    Accuracy and kappa (quadratic weights) are those of the rater against the truth, under the model's prevalences.
    """
    levels = rater_levels(rated)
    disagreement = 1 - agreement_weights("quadratic", NUM_GRADES)
    described = []
    for number, name in enumerate(names):
        table = model.prevalence[:, None] * model.confusion[number]
        described.append(
            {
                "rater": name,
                "level": int(levels[number]),
                "overlap": int(model.overlap[number]),
                "ratings": int((rated.raters == name).sum()),
                "confusion": np.round(model.confusion[number], 4).tolist(),
                "accuracy": round(float(np.trace(table)), 4),
                "kappa": round(float(kappa_of_tables(table, disagreement)), 4),
                "is_prior": bool(model.overlap[number] < MIN_OVERLAP),
            }
        )
    return described


def final_report(
    config: RLHFConfig, rated: RatedImages, split: Split, scores: Scores, every_prompt: PromptScores
) -> dict[str, Any]:
    """Figures of the networks that ``scores`` and ``every_prompt`` (of the held-out images) come from."""
    seed, threshold = config.training.seed, config.generation.quality_threshold
    held_out = _held_out(rated, split, scores)
    grades = held_out.grades
    served = (held_out.serving >= threshold) & (held_out.alignment >= threshold)
    same_kind = every_prompt.is_same_kind
    return {
        "counts": _counts(rated, split),
        "selector": evaluate_scores(held_out.good, grades, seed=seed),
        "policy": {
            "auc_poor": evaluate_scores(held_out.alignment, grades, seed=seed)["auc_poor"],
            "auc_matched_prompt": matched_prompt_auc(every_prompt, every_prompt.is_other, seed=seed).to_dict(),
            "auc_matched_prompt_same_kind": matched_prompt_auc(every_prompt, same_kind, seed=seed).to_dict(),
        },
        "human_ceiling_auc_poor": human_ceiling(grades, seed=seed),
        "held_out_share_served": {"threshold": threshold, "share": float(served.mean())},
        "reliability": {"selector": reliability(held_out.good, grades)},
        "histograms": {
            "selector": histogram(held_out.serving, grades),
            "policy": histogram(held_out.alignment, grades),
        },
        "pass_curve": pass_curve(held_out),
        "worst": worst(held_out, threshold=threshold),
        "serving": {
            "quality_threshold": threshold,
            "num_candidates": config.generation.num_candidates,
            "max_attempts": config.synthetic_system.max_attempts,
            "num_inference_steps": config.synthetic_system.num_inference_steps,
            "guidance_scale": config.synthetic_system.guidance_scale,
        },
    }


def _held_out(rated: RatedImages, split: Split, scores: Scores) -> HeldOut:
    items = split.held_out
    places = items.tolist()
    return HeldOut(
        good=scores.good[items].numpy(),
        serving=scores.serving[items].numpy(),
        alignment=scores.alignment[items].numpy(),
        grades=held_out_grades(rated, split),
        paths=[rated.paths[item] for item in places],
        sha256=[rated.image_ids[item] for item in places],
        prompts=[rated.prompts[rated.prompt_index[item]] for item in places],
    )


def _counts(rated: RatedImages, split: Split) -> dict[str, Any]:
    return {
        "ratings": len(rated.grades),
        "items": len(rated),
        "images": len(set(rated.image_ids)),
        "prompts": len(rated.prompts),
        "train": len(split.train),
        "calibration": len(split.calibration),
        "held_out": len(split.held_out),
        "by_grade": {str(grade): int((rated.grades == grade).sum()) for grade in (1, 2, 3)},
        "by_expert_level": {str(level): int((rated.levels == level).sum()) for level in (1, 2, 3)},
    }
