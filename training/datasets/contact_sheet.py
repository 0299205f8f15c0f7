"""A contact sheet: some images of every kind side by side, each with its line and caption."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsyn.imaging import load
from training.finetuning.dataset import Row

_TILE = 160  # pixels of an image
_LABEL = 46  # pixels below it
_MARGIN = 8
_HEADING = 26
_FONT_SIZE = 11
_CHARACTERS = 26  # of a label's line
_LABEL_LINES = 3
_INK, _PAPER, _FAINT = (230, 233, 236), (22, 25, 29), (150, 157, 166)


def choose_rows(rows: Sequence[Row], *, per_kind: int, seed: int = 0) -> dict[str, list[Row]]:
    """Up to ``per_kind`` rows of each kind, drawn by ``seed``, in file order; kinds by name."""
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row.prompt.kind.prefix].append(row)
    rng = np.random.default_rng(seed)
    chosen = {}
    for kind, members in sorted(by_kind.items()):
        places = rng.choice(len(members), size=min(per_kind, len(members)), replace=False)
        chosen[kind] = [members[place] for place in sorted(places)]
    return chosen


def contact_sheet(rows: Sequence[Row], *, per_kind: int = 8, seed: int = 0) -> Image.Image:
    """RGB picture: a band for each kind with its name and number of rows, below it ``per_kind`` images at most.

    The rows' images must be readable: what ``load`` raises comes through.
    """
    if not rows or per_kind < 1:
        raise ValueError("A contact sheet needs at least one row, and at least one image of each kind.")
    chosen = choose_rows(rows, per_kind=per_kind, seed=seed)
    counts = {kind: sum(row.prompt.kind.prefix == kind for row in rows) for kind in chosen}
    columns = max(len(members) for members in chosen.values())
    band = _HEADING + _TILE + _LABEL + _MARGIN
    sheet = Image.new("RGB", (_MARGIN + columns * (_TILE + _MARGIN), _MARGIN + len(chosen) * band), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (kind, members) in enumerate(chosen.items()):
        top = _MARGIN + place * band
        draw.text((_MARGIN, top), f"{kind}: {counts[kind]} rows", fill=_INK, font=ImageFont.load_default(16))
        for column, row in enumerate(members):
            _put(sheet, draw, row, _MARGIN + column * (_TILE + _MARGIN), top + _HEADING)
    return sheet


def _put(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, left: int, top: int) -> None:
    picture = load(row.path, modality=row.prompt.kind.prefix).to_rgb(_TILE)
    sheet.paste(Image.fromarray(picture), (left, top))
    text = f"line {row.line}: {row.prompt.description}"
    label = textwrap.wrap(text, _CHARACTERS, max_lines=_LABEL_LINES, placeholder=" ...")
    font = ImageFont.load_default(_FONT_SIZE)
    draw.multiline_text((left, top + _TILE + 3), "\n".join(label), fill=_FAINT, font=font, spacing=2)
