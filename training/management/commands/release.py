"""Publish what a run trained, or a generator that it updated, as a release, and make it the one that is served."""

from django.core.management.base import BaseCommand, CommandError

from generation.services import ReleaseError
from training import services
from training.models import TrainingRun


class Command(BaseCommand):
    help = "Publish a run's checkpoint as a release; with --activate the application serves it."

    def add_arguments(self, parser):
        parser.add_argument(
            "run",
            type=int,
            nargs="?",
            help="number of the run (default: the newest training of selector and policy that succeeded)",
        )
        parser.add_argument("--checkpoint", help="epoch_10 and the like (default: the one that the report chose)")
        parser.add_argument("--quality_threshold", type=float, help="0 to 1 (default: the run's configuration)")
        parser.add_argument("--name", default="", help="name of the release (default: the run's)")
        parser.add_argument("--activate", action="store_true", help="serve it from now on")

    def handle(self, run, checkpoint, quality_threshold, name, activate, **_):
        row = self._find(run)
        chosen = row.checkpoints.filter(name=checkpoint).first() if checkpoint else None
        if checkpoint and chosen is None:
            known = ", ".join(row.checkpoints.values_list("name", flat=True)) or "none"
            raise CommandError(f"Run {row.pk} has no checkpoint {checkpoint!r}. Checkpoints: {known}.")
        try:
            release = services.release(
                run=row, checkpoint=chosen, quality_threshold=quality_threshold, name=name, activate=activate
            )
        except (services.TrainingError, ReleaseError) as error:
            raise CommandError(str(error)) from error
        state = "active" if release.is_active else "published, not active"
        self.stdout.write(f"Release {release.digest[:12]} ({release.name}) is {state}.")

    def _find(self, number: int | None) -> TrainingRun:
        if number is not None:
            row = TrainingRun.objects.filter(pk=number).first()
            if row is None:
                raise CommandError(f"There is no run {number}.")
            return row
        purpose, state = TrainingRun.Purpose.RLHF, TrainingRun.State.SUCCEEDED
        row = TrainingRun.objects.filter(purpose=purpose, state=state).order_by("-finished_at").first()
        if row is None:
            raise CommandError("No selector and policy have been trained. Start with manage.py train_rlhf.")
        return row
