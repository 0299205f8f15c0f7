"""Images whose grade is known, and real ones: marked, mixed into studies, shown in training rounds."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet, prefetch_related_objects

from generation.models import GeneratedImage
from medsyn.modalities import kind_from_name
from ratings.csv_schema import GRADES
from ratings.models import Anchor, Assignment, CalibrationImage, GoldGrade, Protocol, Study, StudyImage
from ratings.reading_list import proportional_quotas, rank
from ratings.services.errors import StudyError

MIN_TRAINING_IMAGES = 3  # fewer teach nothing: then there is no training round
_ROLE = StudyImage.Role


@transaction.atomic
def set_gold(*, image: GeneratedImage, grade: int, set_by, rationale: str = "") -> GoldGrade:
    """Record that an image is known to have ``grade`` (1 to 3); ``rationale`` is shown in training rounds.

    Raises StudyError for another grade, and where a different one is in use already: readers were or will be
    measured by it.
    """
    if grade not in GRADES:
        raise StudyError(f"The grade is {grade!r}; it must be 1 (poor), 2 (acceptable) or 3 (excellent).")
    require_usable([image])
    known = GoldGrade.objects.select_for_update().filter(image=image).first()
    if known is not None and known.grade != grade:
        _require_unused(image)
    gold, _ = GoldGrade.objects.update_or_create(
        image=image, defaults={"grade": grade, "rationale": rationale.strip(), "set_by": set_by}
    )
    return gold


def require_usable(images: Iterable[GeneratedImage], *, study: Study | None = None) -> None:
    """Raises StudyError for copies of training images, which are shown to no reader, and for images that were drawn
    for calibration in another study than ``study``: nothing learns from them."""
    images = list(images)
    blocked = [image for image in images if image.verdict == GeneratedImage.Verdict.BLOCKED]
    if blocked:
        raise StudyError(
            f"{len(blocked)} of the images ({blocked[0].public_id} first) copy images of patients that their "
            "generator was trained on: nobody but administrators may see them. Leave them out."
        )
    drawn = CalibrationImage.objects.filter(image__in=images).select_related("image", "study")
    if study is not None:
        drawn = drawn.exclude(study=study)
    first = drawn.first()
    if first is not None:
        raise StudyError(
            f"{drawn.count()} of the images ({first.image.public_id} first) were drawn for calibration, in "
            f"{first.study}: they can be used for nothing else. Leave them out."
        )


@transaction.atomic
def clear_gold(*, image: GeneratedImage) -> None:
    """Forget an image's known grade; nothing happens where it has none. Raises StudyError while it is in use."""
    if GoldGrade.objects.select_for_update().filter(image=image).exists():
        _require_unused(image)
        GoldGrade.objects.filter(image=image).delete()


def _require_unused(image: GeneratedImage) -> None:
    """In use: as a gold image of a study, or in somebody's training round."""
    studies = Study.objects.filter(study_images__image=image, study_images__role=_ROLE.GOLD)
    taught = Study.objects.filter(assignments__image=image, assignments__kind=Assignment.Kind.TRAINING)
    names = sorted({*studies.values_list("name", flat=True), *taught.values_list("name", flat=True)})
    if names:
        raise StudyError(
            f"The known grade of image {image.public_id} is in use in {', '.join(names)}: readers are measured by "
            "it. Mark another image instead."
        )


def _was_taught() -> Exists:
    """Images that were shown with their grade in some training round: they test nobody any more."""
    return Exists(Assignment.objects.filter(image=OuterRef("pk"), kind=Assignment.Kind.TRAINING))


def _drawn(pool: QuerySet, number: int, kinds: Counter, what: str, seed: tuple) -> list[GeneratedImage]:
    """``number`` images of the pool, their kinds in proportion to ``kinds``. Raises StudyError that says how many
    of which kind are missing."""
    quotas = proportional_quotas(number, kinds)
    by_kind = defaultdict(list)
    rows = pool.filter(prompt__kind__in=quotas).values_list("prompt__kind", "public_id")
    for kind, key in rows:
        by_kind[kind].append(key)
    missing = {kind: quota - len(by_kind[kind]) for kind, quota in quotas.items() if quota > len(by_kind[kind])}
    if missing:
        counts = ", ".join(f"{missing[kind]} of kind {kind_from_name(kind).prefix}" for kind in sorted(missing))
        remedy = {"gold": "Mark more images as gold", "real": "Import more real images"}[what]
        raise StudyError(
            f"The protocol mixes {number} {what} images in, and some are missing: {counts}. {remedy}, or lower the "
            f"share of {what} images."
        )
    chosen = [
        key
        for kind, quota in quotas.items()
        for key in sorted(by_kind[kind], key=lambda key: rank(*seed, what, key))[:quota]
    ]
    return list(GeneratedImage.objects.filter(public_id__in=chosen))


@dataclass(frozen=True)
class Block:
    """Images to be added to a study together, by what they are there for."""

    main: tuple[GeneratedImage, ...]
    gold: tuple[GeneratedImage, ...]
    real: tuple[GeneratedImage, ...]

    @classmethod
    def of(cls, images: Iterable[GeneratedImage]) -> "Block":
        """Sorted by what they are: a real image is real also where its grade is known."""
        images = list(images)
        graded = set(GoldGrade.objects.filter(image__in=images).values_list("image_id", flat=True))
        return cls(
            main=tuple(image for image in images if not image.is_real and image.pk not in graded),
            gold=tuple(image for image in images if not image.is_real and image.pk in graded),
            real=tuple(image for image in images if image.is_real),
        )


def mixed_block(study: Study, protocol: Protocol, block: int, images: Sequence[GeneratedImage]) -> Block:
    """The given images with gold and real ones drawn to them, so that these are the protocol's shares of the whole
    block: of m other images it has round(m / (1 - gold_share - real_share)).

    Given images that are gold or real themselves count as such. Drawn are, with the study's seed, images of the same
    kinds that the study does not have, that are no anchors, and that no training round ever showed. Raises StudyError
    where the pools are too small.
    """
    given = Block.of(images)
    shares = protocol.gold_share + protocol.real_share
    if not given.main or not shares:
        return given
    mixed = round(len(given.main) / (1 - shares)) - len(given.main)
    num_gold = round(mixed * protocol.gold_share / shares)
    prefetch_related_objects(given.main, "prompt")
    kinds = Counter(image.prompt.kind for image in given.main)
    seed = (study.order_seed, block)
    taken = [image.pk for image in images]
    pool = GeneratedImage.objects.exclude(study_images__study=study).exclude(pk__in=taken)
    anchors = Anchor.objects.filter(protocol__study=study).values("image")
    pool = pool.exclude(pk__in=anchors)  # readers have or had them before them as examples
    pool = pool.exclude(_was_taught())
    gold = _drawn(
        pool.filter(gold__isnull=False, is_real=False), max(num_gold - len(given.gold), 0), kinds, "gold", seed
    )
    num_real = max(mixed - num_gold - len(given.real), 0)
    real = _drawn(pool.filter(is_real=True), num_real, kinds, "real", seed)
    return Block(given.main, (*given.gold, *gold), (*given.real, *real))


def calibration_of(
    study: Study,
    protocol: Protocol,
    block: Block,
    number: int,
    *,
    among: Iterable[GeneratedImage] | None = None,
) -> set[int]:
    """Keys of the main images of block ``number`` that are set apart for calibration: a uniform draw.

    ``among``: those that may be, where the others were not chosen at random; None: all. Raises StudyError where they
    are fewer than the protocol sets apart.
    """
    count = round(protocol.calibration_share * len(block.main))
    drawn_from = block.main
    if among is not None:
        allowed = {image.pk for image in among}
        drawn_from = tuple(image for image in block.main if image.pk in allowed)
    if len(drawn_from) < count:
        raise StudyError(
            f"The protocol sets {count} of the new images apart for calibration, and only {len(drawn_from)} of them "
            "were drawn at random. Let more be drawn at random."
        )
    seed = (study.order_seed, number, "calibration")
    return {image.pk for image in sorted(drawn_from, key=lambda image: rank(*seed, image.public_id))[:count]}


def has_been_trained(reader) -> bool:
    """Whether the reader ever answered every place of a training round."""
    rounds = Assignment.objects.filter(reader=reader).in_training().progress_by("study_id")
    return any(row["training_total"] == row["training_done"] for row in rounds)


def training_pool(study: Study) -> QuerySet:
    """Gold grades of images that a training round of the study may show: of its kinds, and neither among its images
    nor its anchors, whose grade can be looked up while rating."""
    kinds = study.images.order_by().values_list("prompt__kind", flat=True).distinct()
    anchors = Anchor.objects.filter(protocol__study=study).values("image")
    pool = GoldGrade.objects.exclude(image__study_images__study=study).exclude(image__in=anchors)
    return pool.filter(image__prompt__kind__in=list(kinds)) if kinds else pool


def training_images(study: Study, protocol: Protocol, reader) -> list[GeneratedImage]:
    """What a reader's training round in the study shows, in no order: as many as the protocol asks for or the pool
    has, the grades in turn as far as they go; none if there are fewer than MIN_TRAINING_IMAGES.

    No image of a study that the reader reads, whichever: its grade would be told before it is asked for. Otherwise
    the same for every reader as long as the pool stays, and first those that served for training before: the grade of
    an image that was told is known, and the fewer of them the better.
    """
    read = StudyImage.objects.filter(image=OuterRef("image"), study__memberships__reader=reader)
    pool = training_pool(study).filter(~Exists(read)).select_related("image").annotate(was_taught=_taught_of_gold())
    by_grade = defaultdict(list)
    for gold in sorted(pool, key=lambda gold: (not gold.was_taught, rank(study.order_seed, gold.image.public_id))):
        by_grade[gold.grade].append(gold.image)
    in_turn = [
        images[turn]
        for turn in range(max(map(len, by_grade.values()), default=0))
        for _, images in sorted(by_grade.items())
        if turn < len(images)
    ]
    chosen = in_turn[: protocol.num_training_images]
    return chosen if len(chosen) >= MIN_TRAINING_IMAGES else []


def _taught_of_gold() -> Exists:
    return Exists(Assignment.objects.filter(image=OuterRef("image"), kind=Assignment.Kind.TRAINING))
