"""Training images that generated ones resemble, for administrators: only while the file is the one trained on."""

import io
from pathlib import Path

from PIL import Image

from generation.models import GeneratedImage
from medsyn.artifacts import file_sha256

_SIDE = 256  # pixels at which it is shown


class TrainingImageGone(RuntimeError):
    """The training image is not there any more, or is another file now."""


def _path(image: GeneratedImage) -> Path | None:
    """Where the training image lies; None outside of its data set's folder, whatever the row says."""
    folder = Path(image.resembles["dataset"]).resolve()
    path = (folder / image.resembles["name"]).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def is_there(image: GeneratedImage) -> bool:
    """Whether the file of the training image is where it was."""
    return _path(image) is not None


def training_picture(image: GeneratedImage) -> bytes:
    """PNG of the training image that ``image`` resembles most; raises TrainingImageGone."""
    from medsyn.imaging import ImageReadError, load  # image libraries: only when asked

    name, path = image.resembles["name"], _path(image)
    if path is None:
        raise TrainingImageGone(f"{name} is no longer in the data set's folder.")
    if file_sha256(path) != image.resembles["sha256"]:
        raise TrainingImageGone(f"{name} is another file now than the one that was trained on.")
    try:
        pixels = load(path, modality=image.prompt.parsed.kind.prefix).to_rgb(_SIDE)
    except ImageReadError as error:
        raise TrainingImageGone(f"{name} cannot be read: {error.reason}") from error
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
