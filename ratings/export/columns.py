"""What the columns of the exported tables hold and mean: the one description, from which the files and their data
dictionary are written."""

from dataclasses import dataclass

from django.db.models import F
from django.db.models.expressions import Combinable

from medsyn.modalities import ALL_KINDS
from ratings import csv_schema
from ratings.answer_codes import CANNOT_JUDGE_REASONS
from ratings.export.cells import Entry, FlagEntry, Identity, JoinedCodes, Moment, code, flag, one_of, safe_text

_PLACE = "rating__assignment"
_IMAGE = f"{_PLACE}__image"
_PREFIXES = {kind.slug: kind.prefix for kind in ALL_KINDS}
_MODALITIES = {kind.slug: kind.modality for kind in ALL_KINDS}


@dataclass(frozen=True)
class Column:
    """A column of a table with one row per rating."""

    name: str
    cell: Combinable | None  # over RatingEvent, see ratings.export.cells; None: each export settles it
    meaning: str  # what the data dictionary says, with unit and range


def _kind_prefix() -> Combinable:
    return one_of(f"{_IMAGE}__prompt__kind", _PREFIXES)


def _modality() -> Combinable:
    return one_of(f"{_IMAGE}__prompt__kind", _MODALITIES)


_RATINGS_CELLS = {
    "image_path": None,
    "rating": F("value"),
    "modality": _modality(),
    "expert_level": F("expert_level"),
    "prompt": F(f"{_IMAGE}__prompt__text"),
}
RATINGS_COLUMNS = tuple(Column(name, _RATINGS_CELLS[name], "") for name in csv_schema.COLUMNS)

TIDY_COLUMNS = (
    Column("study", safe_text(f"{_PLACE}__study__name"), "Name of the study"),
    Column("study_uuid", Identity(f"{_PLACE}__study__public_id"), "Identity of the study"),
    Column("reader", None, "Pseudonym of the reader; stable within the study, unrelated between"),
    Column("expert_level", F("expert_level"), "Level of the reader when rating: 1 trainee, 2 specialist, 3 senior"),
    Column("state", F("state"), "submitted: rated; cannot_judge: not, and why. Void and withdrawn ones are left out"),
    Column("rating", F("value"), "1 poor, 2 acceptable, 3 excellent; empty: the reader could not judge"),
    Column(
        "cannot_judge",
        code("cannot_judge"),
        f"Why the reader could not judge: {', '.join(CANNOT_JUDGE_REASONS)}; empty: rated. Not a grade",
    ),
    Column("defects", JoinedCodes("defects"), "Codes of the study's defect list, joined by ';'; empty: none named"),
    Column("comment", safe_text("comment"), "The reader's own words"),
    Column("image_uuid", Identity(f"{_IMAGE}__public_id"), "Identity of the image"),
    Column("image_sha256", F(f"{_IMAGE}__sha256"), "sha256 of the image file's bytes"),
    Column("image_path", None, "The image file, as in the ratings CSV"),
    Column("kind", _kind_prefix(), "Kind of image"),
    Column("modality", _modality(), "Its modality"),
    Column("prompt", safe_text(f"{_IMAGE}__prompt__text"), "What the image was to show"),
    Column("source", F(f"{_IMAGE}__source"), "generated: made here; imported: brought in as a file"),
    Column("is_real", flag(f"{_IMAGE}__is_real"), "1: an image of a patient, not synthetic"),
    Column("patient", safe_text(f"{_IMAGE}__patient"), "Pseudonym that keeps a patient's images together; or empty"),
    Column("phantom", flag(f"{_IMAGE}__is_phantom"), "1: a procedural phantom, not a medical image"),
    Column("checkpoint", safe_text(f"{_IMAGE}__model_name"), "Name of the generator"),
    Column("weights_sha256", code(f"{_IMAGE}__weights_sha256"), "sha256 of the generator's weights"),
    Column("release", F(f"{_IMAGE}__release__digest"), "Release that made the image; empty: none"),
    Column("seed", F(f"{_IMAGE}__seed"), "Seed of the image; empty: imported"),
    Column("gold_grade", None, "Grade the image is known to have, 1 to 3; empty: not known when exporting"),
    Column("assignment_kind", F(f"{_PLACE}__kind"), "main, repeat, calibration, gold, real or training"),
    Column("occurrence", F(f"{_PLACE}__occurrence"), "1: first showing of the image to the reader; 2: a repeat"),
    Column("block", F(f"{_PLACE}__block"), "Batch in which the image joined the study, from 0"),
    Column("position", F(f"{_PLACE}__position"), "Place in the reader's own list, from 0"),
    Column("shown_at", Moment("shown_at"), "When the image was painted, by the reader's clock (ISO 8601, UTC)"),
    Column("first_input_at", Moment("first_input_at"), "First key or pointer press after that, by the same clock"),
    Column("answered_at", Moment("answered_at"), "When the reader answered, by the same clock"),
    Column("active_ms", F("active_ms"), "Milliseconds the image was looked at in a visible page; empty: unknown"),
    Column("submitted_at", Moment("submitted_at"), "When the server stored the rating (ISO 8601, UTC)"),
    Column("viewport_width", Entry("display", entry="viewport_width"), "Width of the page, CSS pixels; or empty"),
    Column("viewport_height", Entry("display", entry="viewport_height"), "Height of the page, CSS pixels"),
    Column("device_pixel_ratio", Entry("display", entry="device_pixel_ratio"), "Screen pixels per CSS pixel"),
    Column("window_width", Entry("display", entry="window_width"), "Window of grey levels when answering, see unit"),
    Column("window_center", Entry("display", entry="window_center"), "Its centre"),
    Column("window_unit", Entry("display", entry="window_unit"), "HU, or %: 0 to 100 is what was shown at first"),
    Column("zoom", Entry("display", entry="zoom"), "CSS pixels per pixel of the image when answering"),
    Column("inverted", FlagEntry("display", entry="inverted"), "1: shown inverted when answering"),
    Column("window_touched", FlagEntry("display", entry="window_touched"), "1: the window was changed, or inverted"),
    Column("zoom_touched", FlagEntry("display", entry="zoom_touched"), "1: the reader zoomed or panned"),
    Column("revision", F("revision"), "1: given once and left; each change, remark or undo raises it by one"),
    Column("protocol_version", F("protocol_version"), "Version of the study's protocol when rating"),
    Column("simulated", flag("is_simulated"), "1: given by a simulated expert, no clinical evidence"),
)
