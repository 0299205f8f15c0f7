"""medsyn-tiny: where it lies, and which other models descend from it. Pure, without torch."""

import json
from pathlib import Path

# What phantoms say of themselves, and the images of a generator that has seen nothing else.
PHANTOM_STATEMENT = "Synthetic: a procedural phantom, not a medical image. It shows no patient."
EMBEDDED_MODEL_DIR = Path(__file__).resolve().parent / "weights" / "medsyn-tiny"


def draws_phantoms(pipeline_folder: Path | None) -> bool:
    """Whether a pipeline is medsyn-tiny or was fine-tuned from it on phantoms alone: its images are phantoms too.

    The pipeline's own configuration says so (MedSynPipeline, ``draws_phantoms``). Fine-tuning hands it on, and drops
    it where an image does not say that it is a phantom: what has seen patients may draw them.
    """
    index = pipeline_folder / "model_index.json" if pipeline_folder else None
    return bool(index and index.is_file() and json.loads(index.read_text()).get("draws_phantoms", False))
