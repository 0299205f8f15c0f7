"""Which ratings an export holds: a choice of studies and modalities at one moment of their history."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, TextField, Value, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Concat
from django.utils import timezone

from medsyn.modalities import ALL_KINDS
from ratings.export.cells import formula_safe
from ratings.export.columns import Column
from ratings.export.pseudonyms import reader_names
from ratings.models import Assignment, Rating, RatingEvent, Study

_PLACE = "rating__assignment"


@dataclass(frozen=True)
class Selection:
    """A choice of ratings as they stood after one event. The same selection is the same ratings for good."""

    study: Study | None  # None: all studies
    modality: str  # one of medsyn.modalities.MODALITIES; empty: all
    include_simulated: bool
    last_event: int  # key of the newest RatingEvent that counts
    as_of: datetime  # gold grades set later are left out
    image_root: str  # stands before "/" and an image's file in the tables

    @classmethod
    def of_images(cls, study: Study, *, last_event: int) -> Self:
        """What figures of the images of ``study`` rest on: simulated experts count only in a simulated study."""
        return cls(
            study=study,
            modality="",
            include_simulated=study.is_simulated,
            last_event=last_event,
            as_of=timezone.now(),
            image_root="",
        )

    def with_simulated(self) -> Self:
        """The same with ratings of simulated experts."""
        return replace(self, include_simulated=True)

    def answered(self) -> QuerySet:
        """The newest event of every rating that stood then: a grade, or that the image cannot be judged."""
        later = RatingEvent.objects.filter(
            rating=OuterRef("rating"), pk__lte=self.last_event, revision__gt=OuterRef("revision")
        )
        events = RatingEvent.objects.filter(~Exists(later), pk__lte=self.last_event, state__in=Rating.ANSWERED)
        if self.study is not None:
            events = events.filter(**{f"{_PLACE}__study": self.study})
        if self.modality:
            slugs = [kind.slug for kind in ALL_KINDS if kind.modality == self.modality]
            events = events.filter(**{f"{_PLACE}__image__prompt__kind__in": slugs})
        return events if self.include_simulated else events.filter(is_simulated=False)

    def has_simulated(self) -> bool:
        """Whether some of these come from simulated experts."""
        return self.include_simulated and self.answered().filter(is_simulated=True).exists()

    def trainable(self) -> QuerySet:
        """Of these, what a selector may learn from: grades of first showings, of the kinds that are for training."""
        return self.answered().filter(
            state=Rating.State.SUBMITTED,
            **{f"{_PLACE}__kind__in": Assignment.TRAINABLE, f"{_PLACE}__occurrence": 1},
        )

    def table(self, events: QuerySet, columns: tuple[Column, ...], *, is_spreadsheet: bool) -> QuerySet:
        """The cells of ``columns``, a row per event, in the order in which the ratings were first given.

        ``is_spreadsheet``: people open the table, so that no path in it may be run as a formula.
        """
        settled = self._settled_cells(is_spreadsheet)
        cells = {f"cell_{number}": column.cell for number, column in enumerate(columns)}
        for (name, cell), column in zip(list(cells.items()), columns, strict=True):
            cells[name] = settled[column.name]() if cell is None else cell
        return events.order_by("rating_id").annotate(**cells).values_list(*cells)

    def _settled_cells(self, is_spreadsheet: bool) -> dict:
        """What depends on the selection, by name of the column."""
        root = formula_safe(self.image_root) if is_spreadsheet else self.image_root
        return {
            "image_path": lambda: Concat(Value(f"{root}/"), F(f"{_PLACE}__image__file"), output_field=TextField()),
            "reader": lambda: reader_names(self.study, _PLACE),
            "gold_grade": self._gold_grade,
        }

    def _gold_grade(self) -> Combinable:
        gold = f"{_PLACE}__image__gold"
        return Case(When(Q(**{f"{gold}__created_at__lte": self.as_of}), then=F(f"{gold}__grade")))
