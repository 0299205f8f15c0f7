"""The rows that a fine-tuning run kept from training: the same split again, and proof that it is the same."""

import json
from pathlib import Path
from typing import Any

from training.evaluation.images import EvaluationError
from training.finetuning.batches import rows_sha256
from training.finetuning.dataset import DatasetError, Row, hold_out, load_dataset

_CONFIG = "config.json"  # of the run directory


def held_out_rows(run: Path) -> list[Row]:
    """What --held_out_share kept from the training of a run directory; raises EvaluationError.

    Drawn again from the run's data set by its flags. That nothing is among them that was trained on shows in the
    digest of the other rows, which the run wrote down.
    """
    config = _config(run)
    if not config.get("held_out_share"):
        raise EvaluationError(
            f"{run} kept no images from training. Give others with --real, or train with --held_out_share."
        )
    try:
        rows, _ = load_dataset(
            Path(config["train_data_dir"]),
            image_column=config["image_column"],
            caption_column=config["caption_column"],
            skip_bad_rows=config["skip_bad_rows"],
            max_rows=config["max_train_samples"],
            seed=config["seed"],
        )
        trained, held_out = hold_out(rows, config["held_out_share"], config["seed"])
    except (DatasetError, ValueError) as error:
        raise EvaluationError(f"The data set of {run} cannot be read again: {error}") from error
    if rows_sha256(trained) != config["rows_sha256"]:
        raise EvaluationError(
            f"{config['train_data_dir']} is not what it was when {run} was trained, so what was held out cannot be "
            "told. Restore it, or give images that were not trained on with --real."
        )
    return held_out


def _config(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{run} is no run directory of manage.py finetune: {error}") from error
