"""The images of an evaluation, drawn into a folder; a stopped evaluation goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generation.embedded_model import draws_phantoms
from generation.production import (
    Call,
    DrawnImage,
    Models,
    StepCallback,
    draw_baseline,
    sampling_parameters,
)
from generation.records import png_bytes, sidecar
from medsyn.artifacts import write_bytes, write_json
from training.evaluation.images import EvaluationError, GeneratedFile, generated_files

CALL_NAME = "drawing.json"  # what the images were asked for with


def draw_images(
    models: Models,
    call: Call,
    folder: Path,
    *,
    on_images: Callable[[int], None],
    on_step: StepCallback | None = None,
) -> list[GeneratedFile]:
    """Draw what ``folder`` lacks of the call's images, and return all of them in the order of the call.

    ``on_images(count)`` hears of every batch that is there, those of an earlier run first. Raises EvaluationError
    where the folder holds images of another call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, call_facts(models, call))
    stored = _stored(folder)
    on_images(len(stored))
    for batch in draw_baseline(models, call, stored=stored, on_step=on_step):
        for drawn in batch:
            _write(folder, models, call, drawn)
        on_images(len(batch))
    return generated_files(folder)


def call_facts(models: Models, call: Call) -> dict[str, Any]:
    """All that the pixels follow from, as JSON reads it back."""
    facts = {
        "prompts": list(call.prompts),
        "seed": call.seed,
        "weights_sha256": models.sha256,
        **sampling_parameters(call.parameters),
        "batch_size": call.parameters.batch_size,
        **models.arithmetic.as_dict(),
    }
    return json.loads(json.dumps(facts))


def _claim(folder: Path, facts: dict) -> None:
    """Write what is drawn here, or compare with what an earlier run wrote."""
    path = folder / CALL_NAME
    if not path.is_file():
        if any(folder.iterdir()):
            raise EvaluationError(f"{folder} holds other files. Name an empty or new folder with --output_dir.")
        write_json(path, facts)
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(key for key in known.keys() | facts.keys() if known.get(key) != facts.get(key))
    if different:
        raise EvaluationError(
            f"{folder} holds images of another evaluation: {', '.join(different)} differ. Name another folder with "
            "--output_dir, or remove this one."
        )


def _stored(folder: Path) -> set[int]:
    """Positions whose picture and sidecar are both there: the sidecar is written last."""
    return {
        int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit() and path.with_suffix(".png").is_file()
    }


def _write(folder: Path, models: Models, call: Call, drawn: DrawnImage) -> None:
    is_phantom = draws_phantoms(models.generator.folder)
    png = png_bytes(drawn.picture, prompt=drawn.prompt, seed=drawn.seed, is_phantom=is_phantom)
    path = folder / f"{drawn.position:06d}.png"
    write_bytes(path, png)
    write_json(path.with_suffix(".json"), sidecar(drawn, models, call, png=png, is_phantom=is_phantom))
