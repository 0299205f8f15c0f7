"""medsyn-tiny: where it lies, and which other models descend from it. Pure, without torch."""

import json
from pathlib import Path

EMBEDDED_MODEL_DIR = Path(__file__).resolve().parent / "weights" / "medsyn-tiny"


def draws_phantoms(pipeline_folder: Path | None) -> bool:
    """Whether a pipeline is medsyn-tiny or was fine-tuned from it: its images are phantoms, whatever it saw later.

    The pipeline's own configuration says so (MedSynPipeline, ``draws_phantoms``), and fine-tuning hands it on.
    """
    index = pipeline_folder / "model_index.json" if pipeline_folder else None
    return bool(index and index.is_file() and json.loads(index.read_text()).get("draws_phantoms", False))
