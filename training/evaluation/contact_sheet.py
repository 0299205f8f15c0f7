"""Real images beside generated ones, kind by kind, for the eye."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.evaluation.images import ImageSet, finest_label

COLUMNS = 8
PHANTOM_STATEMENT = "Procedural phantoms, not medical images."
_TILE, _GAP, _MARGIN = 128, 4, 132  # pixels; the margin holds the rows' names
_GROUP_GAP = 14  # pixels between kinds
_FOOTER = 28  # pixels
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(real: ImageSet, generated: ImageSet, *, seed: int) -> Image.Image:
    """Two rows for each kind: real above, generated below; a column shows the same finding where both have it."""
    kinds = sorted(set(generated.kinds))
    above = "phantom" if real.are_phantoms else "real"
    rng = np.random.default_rng([seed, 3])
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for kind in kinds:
        pairs = _pairs(real, generated, kind, rng)
        rows.append((f"{kind}\n{above}", [None if i is None else _tile(real, i) for i, _ in pairs]))
        rows.append((f"{kind}\ngenerated", [_tile(generated, j) for _, j in pairs]))
    return _paint(rows, PHANTOM_STATEMENT if real.are_phantoms else "")


def _pairs(real: ImageSet, generated: ImageSet, kind: str, rng: np.random.Generator) -> list[tuple[int | None, int]]:
    """Positions of a real and a generated image each; None where the kind has no real image left.

    Findings in turn, so that a row shows as many of them as it can.
    """
    made = _in_turn([i for i, k in enumerate(generated.kinds) if k == kind], generated.captions, rng)[:COLUMNS]
    free = [i for i, k in enumerate(real.kinds) if k == kind]
    free = [free[i] for i in rng.permutation(len(free))]
    pairs: list[tuple[int | None, int]] = []
    for position in made:
        wanted = finest_label(generated.captions[position])
        same = next((i for i in free if finest_label(real.captions[i]) == wanted), free[0] if free else None)
        if same is not None:
            free.remove(same)
        pairs.append((same, position))
    return pairs


def _in_turn(positions: Sequence[int], captions: Sequence[str], rng: np.random.Generator) -> list[int]:
    seen: dict[str, int] = {}
    ranked = []
    for position in (positions[i] for i in rng.permutation(len(positions))):
        label = finest_label(captions[position])
        ranked.append((seen.get(label, 0), label, position))
        seen[label] = seen.get(label, 0) + 1
    return [position for _, _, position in sorted(ranked)]


def _tile(images: ImageSet, position: int) -> Image.Image:
    picture = Image.fromarray(images.pixels[position].permute(1, 2, 0).numpy())
    picture.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    return picture


def _paint(rows: Sequence[tuple[str, Sequence[Image.Image | None]]], footer: str) -> Image.Image:
    width = _MARGIN + COLUMNS * (_TILE + _GAP)
    height = len(rows) * (_TILE + _GAP) + len(rows) // 2 * _GROUP_GAP + (_FOOTER if footer else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(15), 0
    for number, (name, tiles) in enumerate(rows):
        pen.multiline_text((6, top + _TILE // 2 - 18), name, fill=_INK, font=font, spacing=4)
        for column, tile in enumerate(tiles):
            if tile is not None:
                sheet.paste(tile, (_MARGIN + column * (_TILE + _GAP), top))
        top += _TILE + _GAP + (_GROUP_GAP if number % 2 else 0)
    pen.text((6, top), footer, fill=_INK, font=font)
    return sheet
