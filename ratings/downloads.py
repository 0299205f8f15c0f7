"""Files that leave the server: an image as a reader may see it, and the files of an export."""

import io

from django.http import FileResponse

from generation.models import GeneratedImage
from ratings.export import FILE_NAMES, ExportFiles
from ratings.models import Export


def blind_png(image: GeneratedImage) -> bytes:
    """PNG of the image's own size, always RGB, encoded anew: no metadata, no colour profile, no trace of the
    file's format. Raises ImageReadError where the stored file is missing or broken."""
    from PIL import Image  # heavy imports only when an image is asked for

    from medsyn.imaging import load

    pixels = load(image.path, modality=image.prompt.parsed.kind.prefix).to_rgb()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def download(export: Export, name: str) -> FileResponse:
    """One of an export's FILE_NAMES. Raises FileNotFoundError for another name or a file that is gone."""
    if name not in FILE_NAMES:
        raise FileNotFoundError(name)
    path = getattr(ExportFiles.beside(export.path), name)
    return FileResponse(
        path.open("rb"),
        as_attachment=True,
        filename=f"medsyn_export_{export.pk}_{path.name}",
        content_type="text/csv; charset=utf-8",
    )
