"""The figures of a finished run: report.json. Everything in it is measured on the held-out images."""

from typing import Any

import numpy as np

from ratings.agreement.rater_model import RaterModel
from training.rlhf.config import RLHFConfig
from training.rlhf.dataset import RatedImages, Split
from training.rlhf.evaluation import auc, bootstrap, evaluate_scores, gather_ratings, human_ceiling
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


def matched_prompt_auc(scores: Scores, split: Split, *, seed: int) -> dict[str, float | None]:
    """How often an image scores higher with its own prompt than an image with another prompt."""
    own = scores.alignment[split.held_out].numpy()
    other = scores.other_alignment[split.held_out].numpy()
    if np.isnan(other).any():
        return {"value": None, "low": None, "high": None}
    labels = np.repeat([1, 0], len(own))

    def statistic(images: np.ndarray) -> float | None:
        return auc(np.concatenate([own[images], other[images]]), labels)

    return bootstrap(statistic, len(own), seed=seed).to_dict()


def describe_raters(model: RaterModel, names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"rater": name, "overlap": int(overlap), "confusion": np.round(confusion, 4).tolist()}
        for name, overlap, confusion in zip(names, model.overlap, model.confusion, strict=True)
    ]


def final_report(config: RLHFConfig, rated: RatedImages, split: Split, scores: Scores) -> dict[str, Any]:
    """Figures of the networks that ``scores`` come from."""
    grades = held_out_grades(rated, split)
    seed = config.training.seed
    threshold = config.generation.quality_threshold
    held_out = split.held_out
    served = (scores.serving[held_out] >= threshold) & (scores.alignment[held_out] >= threshold)
    return {
        "counts": {
            "ratings": len(rated.grades),
            "items": len(rated),
            "images": len(set(rated.image_ids)),
            "prompts": len(rated.prompts),
            "train": len(split.train),
            "calibration": len(split.calibration),
            "held_out": len(held_out),
            "by_grade": {str(grade): int((rated.grades == grade).sum()) for grade in (1, 2, 3)},
            "by_expert_level": {str(level): int((rated.levels == level).sum()) for level in (1, 2, 3)},
        },
        "selector": evaluate_scores(scores.good[held_out].numpy(), grades, seed=seed),
        "policy": {
            "auc_poor": evaluate_scores(scores.alignment[held_out].numpy(), grades, seed=seed)["auc_poor"],
            "auc_matched_prompt": matched_prompt_auc(scores, split, seed=seed),
        },
        "human_ceiling_auc_poor": human_ceiling(grades, seed=seed),
        "held_out_share_served": {"threshold": threshold, "share": served.float().mean().item()},
        "serving": {
            "quality_threshold": threshold,
            "num_candidates": config.generation.num_candidates,
            "max_attempts": config.synthetic_system.max_attempts,
            "num_inference_steps": config.synthetic_system.num_inference_steps,
            "guidance_scale": config.synthetic_system.guidance_scale,
        },
    }
