"""medsyn-tiny: where it lies, and which other models descend from it. Pure, without torch."""

from pathlib import Path

from medsyn.artifacts import file_sha256

EMBEDDED_MODEL_DIR = Path(__file__).resolve().parent / "weights" / "medsyn-tiny"
_TOKENIZER = "tokenizer/tokenizer.json"


def draws_phantoms(pipeline_folder: Path | None) -> bool:
    """Whether a pipeline is medsyn-tiny or was fine-tuned from it: its images are phantoms, whatever it saw later.

    Fine-tuning leaves the tokenizer as it was, and medsyn-tiny's vocabulary was made for it from the captions of
    the phantoms: who has it comes from there.
    """
    if pipeline_folder is None:
        return False
    if pipeline_folder.resolve() == EMBEDDED_MODEL_DIR:
        return True
    theirs, ours = pipeline_folder / _TOKENIZER, EMBEDDED_MODEL_DIR / _TOKENIZER
    return theirs.is_file() and ours.is_file() and file_sha256(theirs) == file_sha256(ours)
