"""What can be wrong with a request to a study."""

from ratings.models import Rating, Study


class StudyError(ValueError):
    """What was asked does not fit the study; the text says why and what to do."""


class StudyClosed(StudyError):
    """The study takes no ratings any more."""

    def __init__(self, study: Study):
        super().__init__(f"The study {study.name!r} is closed: it takes no ratings. An administrator can open it.")


class StaleRevision(Exception):
    """The rating changed since the client last saw it; ``rating`` is how it stands now (None: never given)."""

    def __init__(self, rating: Rating | None):
        self.rating = rating
        super().__init__("This image was rated elsewhere in the meantime; that rating stands.")


class VoidRating(StaleRevision):
    """The rating was declared void; only whoever runs the study can make it count again."""

    def __str__(self) -> str:
        return "This rating was declared void by whoever runs the study; it cannot be changed."


class UnknownDefects(StudyError):
    """An answer names defects that no protocol of the study has; the text names them and those there are."""


class PlaceGivenAway(StudyError):
    """The place was given back to the pool, and as many readers as are wanted have the image by now."""

    def __init__(self):
        super().__init__(
            "This image was given to other readers in the meantime, and enough of them have it. The answer was not "
            "stored."
        )
