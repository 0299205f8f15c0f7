"""How a study is read: checked, changed until the first rating, afterwards only by a new version."""

import functools
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import Case, Count, F, OuterRef, Q, Subquery, When
from django.db.models.functions import Coalesce

from generation.models import GeneratedImage
from ratings.csv_schema import GRADES
from ratings.models import Anchor, Assignment, Protocol, Study, StudyImage
from ratings.services.errors import StudyError
from ratings.services.gold import require_usable
from ratings.services.lists import extend_list

MAX_DEFECTS = 9  # the rating page has as many keys for them
MAX_LABEL = 40  # characters of a defect's label
MAX_SCALE_TEXT = 300  # characters of what a grade means
MAX_OVERLAP = 1000  # readers per image
MAX_DISTANCE = 1000  # positions between two showings
MAX_TRAINING_IMAGES = 100
MAX_MIXED_IN = 0.8  # gold and real images together, of a block
_CODE = re.compile(r"[a-z][a-z0-9_]{0,29}")


def _scale_texts(given: Any) -> dict[str, str]:
    grades = {str(grade) for grade in GRADES}
    if not isinstance(given, Mapping) or not {str(key) for key in given} <= grades:
        raise StudyError(f"scale_texts is {given!r}; it must give a text for the grades 1, 2 and 3 and no others.")
    texts = {str(key): str(text).strip() for key, text in given.items()}
    too_long = [key for key, text in texts.items() if len(text) > MAX_SCALE_TEXT]
    if too_long:
        raise StudyError(f"The text of grade {too_long[0]} is too long: at most {MAX_SCALE_TEXT} characters.")
    return {grade: texts.get(grade, "") for grade in sorted(grades)}


def _defects(given: Any) -> list[list[str]]:
    try:
        pairs = [[str(code), str(label).strip()] for code, label in given]
    except (TypeError, ValueError) as error:
        raise StudyError(f"defects is {given!r}; it must be a list of pairs of code and label.") from error
    if len(pairs) > MAX_DEFECTS:
        raise StudyError(f"There are {len(pairs)} defects; the rating page has keys for {MAX_DEFECTS}.")
    for code, label in pairs:
        if not _CODE.fullmatch(code):
            raise StudyError(
                f"The defect's code is {code!r}; it must begin with a small letter, and hold nothing but small "
                "letters, digits and _, at most 30 of them."
            )
        if not 0 < len(label) <= MAX_LABEL:
            raise StudyError(f"The defect {code!r} needs a label of at most {MAX_LABEL} characters.")
    codes = [code for code, _ in pairs]
    doubled = sorted({code for code in codes if codes.count(code) > 1})
    if doubled:
        raise StudyError(f"The defect {doubled[0]!r} is in the list twice.")
    return pairs


def _share(name: str, most: float) -> Callable[[Any], float]:
    def check(given: Any) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= most:
            raise StudyError(f"{name} is {given!r}; it must be a number from 0 to {most}.")
        return float(given)

    return check


def _number(name: str, least: int, most: int, *, none: bool = False) -> Callable[[Any], int | None]:
    def check(given: Any) -> int | None:
        if given is None and none:
            return None
        if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
            raise StudyError(f"{name} is {given!r}; it must be a whole number from {least} to {most}.")
        return given

    return check


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "scale_texts": _scale_texts,
    "defects": _defects,
    "overlap_target": _number("overlap_target", 1, MAX_OVERLAP, none=True),
    "repeat_share": _share("repeat_share", 0.5),
    "repeat_distance": _number("repeat_distance", 1, MAX_DISTANCE),
    "gold_share": _share("gold_share", 0.5),
    "real_share": _share("real_share", 0.5),
    "calibration_share": _share("calibration_share", 1),
    "num_training_images": _number("num_training_images", 0, MAX_TRAINING_IMAGES),
}
PROTOCOL_FIELDS = tuple(_CHECKS)


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    unknown = fields.keys() - _CHECKS.keys()
    if unknown:
        raise StudyError(f"A protocol has no {', '.join(sorted(unknown))}; it has {', '.join(_CHECKS)}.")
    return {name: _CHECKS[name](given) for name, given in fields.items()}


def _require_whole(protocol: Protocol) -> None:
    mixed_in = protocol.gold_share + protocol.real_share
    if mixed_in > MAX_MIXED_IN:
        raise StudyError(
            f"gold_share and real_share are {mixed_in:g} together; more than {MAX_MIXED_IN:g} leaves too few images "
            "of the study's own."
        )


def _set_anchors(protocol: Protocol, anchors: Mapping[int, GeneratedImage | None]) -> None:
    unknown = [grade for grade in anchors if grade not in GRADES]
    if unknown:
        raise StudyError(f"An anchor is given for grade {unknown[0]!r}; the grades are 1, 2 and 3.")
    images = [image for image in anchors.values() if image is not None]
    rated = protocol.study.study_images.filter(image__in=images).values_list("image__public_id", flat=True)
    if rated := sorted(map(str, rated)):
        raise StudyError(
            f"The study has images that are to be its anchors: {', '.join(rated)}. Readers would judge them with the "
            "grade before them. Choose other images."
        )
    require_usable(images)
    protocol.anchors.filter(grade__in=list(anchors)).delete()
    Anchor.objects.bulk_create(
        Anchor(protocol=protocol, grade=grade, image=image) for grade, image in anchors.items() if image is not None
    )


def known_defects(study: Study) -> list[str]:
    """Codes of the defects of the current protocol, in its order, then those of earlier versions: a page that was
    open when the protocol was revised may still send them, and no answer is lost for that."""
    if study.frozen_at is None:
        return list(_defects_up_to(study.public_id, study.protocol_version))
    return list(_frozen_defects(study.public_id, study.protocol_version))


def _defects_up_to(study_id: uuid.UUID, version: int) -> tuple[str, ...]:
    versions = Protocol.objects.filter(study__public_id=study_id, version__lte=version).order_by("-version")
    lists = versions.values_list("defects", flat=True)
    return tuple(dict.fromkeys(code for defects in lists for code, _ in defects))


# What is frozen does not change: each process asks once, not with every answer.
_frozen_defects = functools.lru_cache(maxsize=1000)(_defects_up_to)


def make_protocol(
    study: Study,
    *,
    created_by,
    fields: Mapping[str, Any] | None = None,
    anchors: Mapping[int, GeneratedImage | None] | None = None,
) -> Protocol:
    """The first version of a new study's protocol. Raises StudyError for a field that is none or out of range."""
    protocol = Protocol(study=study, created_by=created_by, **_checked(fields or {}))
    _require_whole(protocol)
    protocol.save()
    _set_anchors(protocol, anchors or {})
    return protocol


@transaction.atomic
def revise_protocol(
    *,
    study: Study,
    created_by,
    reason: str = "",
    anchors: Mapping[int, GeneratedImage | None] | None = None,
    **changes,
) -> Protocol:
    """Change how a study is read, and return the protocol that holds from now on.

    Until somebody rates under it the current version itself changes; afterwards a new version is made, for which a
    ``reason`` is needed: every rating keeps the version under which it was given. ``anchors``: image by grade, None
    takes a grade's anchor away; grades that are not named keep theirs. ``changes``: fields of PROTOCOL_FIELDS.

    A new overlap target holds for all images, though not below the readers who have an image already; without one
    every reader gets every image. Shares hold for images that are added, repeats for places that are made, the
    training round for readers who join from now on.

    Raises StudyError for a missing reason, a field that is none or out of range, or an anchor that is among the
    study's images.
    """
    checked = _checked(changes)
    locked = Study.objects.select_for_update().get(pk=study.pk)
    protocol = locked.protocols.get(version=locked.protocol_version)
    target = protocol.overlap_target
    if locked.frozen_at is not None:
        protocol = _next_version(locked, protocol, created_by, reason.strip())
    elif reason.strip():
        protocol.reason = reason.strip()
    for name, value in checked.items():
        setattr(protocol, name, value)
    _require_whole(protocol)
    protocol.save()
    _set_anchors(protocol, anchors or {})
    if protocol.overlap_target != target:
        _apply_overlap(locked, protocol)
    study.refresh_from_db(fields=["protocol_version", "frozen_at"])
    study.__dict__.pop("protocol", None)  # the cached one
    return protocol


def _next_version(study: Study, protocol: Protocol, created_by, reason: str) -> Protocol:
    """A copy of ``protocol`` with its anchors, as the study's version from now on."""
    if not reason:
        raise StudyError(
            "The study is being rated: its protocol changes only by a new version. Say why it is made (reason)."
        )
    fields = {name: getattr(protocol, name) for name in PROTOCOL_FIELDS}
    study.protocol_version, study.frozen_at = protocol.version + 1, None
    study.save(update_fields=["protocol_version", "frozen_at"])
    new = Protocol.objects.create(
        study=study, version=study.protocol_version, reason=reason, created_by=created_by, **fields
    )
    anchors = protocol.anchors.all()
    Anchor.objects.bulk_create(Anchor(protocol=new, grade=each.grade, image_id=each.image_id) for each in anchors)
    return new


def _apply_overlap(study: Study, protocol: Protocol) -> None:
    """Every image's room follows the target, but never falls below the readers who have it."""
    target = protocol.overlap_target
    if target is None:
        study.study_images.update(max_readers=None)
        _fill_lists(study, protocol)
        return
    held = Assignment.objects.filter(study=study, image=OuterRef("image"), occurrence=1, released_at=None)
    held = held.exclude(kind=Assignment.Kind.TRAINING).order_by().values("image").annotate(number=Count("pk"))
    study.study_images.update(max_readers=None, num_readers=Coalesce(Subquery(held.values("number")), 0))
    study.study_images.update(
        max_readers=Case(When(Q(num_readers__gt=target), then=F("num_readers")), default=target)
    )


def _fill_lists(study: Study, protocol: Protocol) -> None:
    """Every reader gets the images that the pool had not given them, block by block."""
    for reader_id in study.memberships.order_by("pk").values_list("reader_id", flat=True):
        missing: dict[int, list[StudyImage]] = {}
        for entry in study.study_images.not_given_to(reader_id).select_related("image"):
            missing.setdefault(entry.block, []).append(entry)
        for block in sorted(missing):
            extend_list(study, protocol, reader_id, block, missing[block])
