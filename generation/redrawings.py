"""Images drawn again from their rows: the verb, and what the outcome means in words."""

from django.db import transaction

from generation import tasks
from generation.models import GeneratedImage, Redrawing
from generation.parameters import ParameterError
from medsyn.percent import percent


def redraw_image(*, image: GeneratedImage, user) -> Redrawing:
    """Queue the image to be drawn again and compared; one that waits or runs already is returned instead.

    Raises ParameterError where there is no model and seed to draw it from.
    """
    if image.job_id is None:
        raise ParameterError("image", "This image was imported: there is no model and seed to draw it from.")
    with transaction.atomic():
        GeneratedImage.objects.select_for_update().get(pk=image.pk)  # one of two who ask at once waits for the other
        under_way = image.redrawings.filter(state__in=(Redrawing.State.QUEUED, Redrawing.State.RUNNING)).first()
        if under_way is not None:
            return under_way
        row = Redrawing.objects.create(image=image, requested_by=user, progress_total=1, progress_unit="images")
        # robust: the row is stored; where the broker cannot be reached the sweep rings again.
        transaction.on_commit(lambda: tasks.run_redrawing.delay(row.pk), robust=True)
    return row


def outcome(row: Redrawing) -> str:
    """What came out of a finished redrawing, and why; "" while it is under way or where it failed."""
    if row.state != row.State.SUCCEEDED:
        return ""
    if row.is_same and row.sha256 == row.image.sha256:
        return "Same pixels, same file: the SHA-256 is the one recorded."
    if row.is_same:
        return (
            "Same pixels. The file differs in its bytes alone: another version of the PNG library packed or "
            "described the same picture."
        )
    share = row.different_pixels / (row.image.width * row.image.height)
    made_on = row.image.parameters.get("device", "")
    if made_on and made_on != row.device:
        cause = f"It was made on {made_on} and drawn again on {row.device}, whose arithmetic rounds differently."
    else:
        cause = (
            "Model, seed and parameters are the recorded ones; another processor, thread count or version of the "
            "numerical libraries rounds differently."
        )
    return (
        f"Differs in {row.different_pixels} of {row.image.width * row.image.height} pixels ({percent(share, 1)}), by "
        f"{row.largest_difference} of 255 grey levels at most. {cause}"
    )
