"""What is written beside pixels: the PNG with its texts, the sidecar, and what it takes to draw an image again."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from generation.embedded_model import PHANTOM_STATEMENT
from generation.filtering import Verdict
from generation.production import Call, DrawnImage, Models, gates_in_use, sampling_parameters
from medsyn.modalities import parse_prompt


def png_bytes(picture: Image.Image, *, prompt: str, seed: int, is_phantom: bool) -> bytes:
    """The picture as PNG that says in its text chunks what it is; equal pictures give equal bytes."""
    text = PngInfo()
    text.add_text("Software", "MedSyn")
    text.add_text("Comment", origin_statement(is_phantom=is_phantom))
    text.add_itxt("Description", prompt)
    text.add_text("Seed", str(seed))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def origin_statement(*, is_phantom: bool) -> str:
    if is_phantom:
        return PHANTOM_STATEMENT
    return "Synthetic: made by a generative model. It shows no patient and is not for diagnosis."


def sidecar(
    drawn: DrawnImage, models: Models, call: Call, *, png: bytes, is_phantom: bool, attempts: Sequence[Verdict] = ()
) -> dict[str, Any]:
    """The facts about an image as JSON; ``attempts`` are the verdicts of its place so far, its own included."""
    facts = {
        "synthetic": origin_statement(is_phantom=is_phantom),
        "prompt": drawn.prompt,
        "kind": parse_prompt(drawn.prompt).kind.prefix,
        "modality": parse_prompt(drawn.prompt).modality,
        "seed": drawn.seed,
        "sha256": hashlib.sha256(png).hexdigest(),
        "width": drawn.picture.width,
        "height": drawn.picture.height,
        "model": models.name,
        "weights_sha256": models.sha256,
        "mode": call.mode,
        "unet_evaluations": drawn.unet_evaluations,
        "prompt_cut": drawn.prompt_cut,
        "parameters": recorded_parameters(drawn, models, call),
    }
    if drawn.resemblance is not None:  # without the training image's name: it may say who the patient is
        facts["memory"] = {"similarity": drawn.resemblance.similarity, "p_value": drawn.resemblance.p_value}
    if drawn.verdict is not None:
        facts |= {
            "verdict": drawn.outcome,
            "attempt": drawn.attempt,
            "scores": {"selector": drawn.verdict.selector_score, "policy": drawn.verdict.policy_score},
            "attempts": [_attempt(call, verdict) for verdict in attempts],
        }
    return facts


def recorded_parameters(drawn: DrawnImage, models: Models, call: Call) -> dict[str, Any]:
    """What has to be known, beside weights, prompt and seed, to draw the image again."""
    parameters = sampling_parameters(call.parameters) | {
        "height": drawn.picture.height,
        "width": drawn.picture.width,
        **models.arithmetic.as_dict(),
        "batch_seeds": [call.seed + position for position in drawn.batch],
        "batch_prompts": [call.prompt_of(position) for position in drawn.batch],
    }
    if drawn.shape is not None:
        parameters |= {"batch_rows": drawn.shape.rows, "batch_tokens": drawn.shape.tokens}
    if drawn.prompt_cut:
        parameters["prompt_cut"] = drawn.prompt_cut  # for people: what the image's page says was not read
    if call.mode == "rlhf":
        names = ("quality_threshold", "max_attempts", "num_candidates")
        parameters |= {name: getattr(call.parameters, name) for name in names}
        parameters["use_gates"] = gates_in_use(models, call) is not None
    return parameters


def _attempt(call: Call, verdict: Verdict) -> dict[str, Any]:
    candidate = call.rule.candidate(verdict.number, call.seed)
    return {
        "attempt": candidate.attempt,
        "stage": candidate.stage,
        "seed": candidate.seed,
        "selector": verdict.selector_score,
        "policy": verdict.policy_score,
        "accepted": verdict.accepted,
    }
