"""manage.py choose_images: put the next images into a study, part at random, part by a selector's disagreement."""

from collections import Counter

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from generation.models import GenerationJob, Release
from medsyn.jobs import execute
from ratings.models import Study
from ratings.services import StudyError
from training.models import ReadingBatch
from training.reading.services import DEFAULT_RANDOM_SHARE, plan_batch


class Command(BaseCommand):
    help = (
        "Chooses images for a study from those of generation jobs that nobody was to rate yet: part of them at "
        "random, most of the others where the heads of a release's selector disagree. Says why each was chosen."
    )

    def add_arguments(self, parser):
        parser.add_argument("--study", required=True, help="name of the study")
        parser.add_argument("--num", type=int, required=True, help="how many images")
        parser.add_argument("--jobs", nargs="+", type=int, metavar="JOB", help="whose images; default: every job's")
        parser.add_argument("--release", help="name or first digits of the digest; default: the active one")
        parser.add_argument(
            "--random_share", type=float, default=DEFAULT_RANDOM_SHARE, help="of the images; 1: all (%(default)s)"
        )
        parser.add_argument("--without_rejected", action="store_true", help="leave candidates out that were rejected")
        parser.add_argument("--seed", type=int, help="of the draw; default: a random one, recorded")

    def handle(self, **options):
        study = Study.objects.filter(name=options["study"]).first()
        if study is None:
            raise CommandError(f"There is no study {options['study']!r}.")
        try:
            batch = plan_batch(
                study=study,
                jobs=_jobs(options["jobs"]),
                num_images=options["num"],
                release=_release(options["release"]),
                random_share=options["random_share"],
                with_rejected=not options["without_rejected"],
                seed=options["seed"],
            )
        except StudyError as error:
            raise CommandError(str(error)) from error
        self._choose(batch)

    def _choose(self, batch: ReadingBatch) -> None:
        from training.reading import choice as reading_choice  # torch: not for --help

        execute(ReadingBatch, batch.pk, reading_choice.run)  # unless a worker was quicker
        batch.refresh_from_db()
        if batch.state == ReadingBatch.State.FAILED:
            raise CommandError(batch.error)
        if not batch.is_finished:
            self.stdout.write(f"{batch}: a worker is choosing.")
            return
        for pick in batch.picks.select_related("image__prompt"):
            why = pick.reason if pick.information is None else f"{pick.reason}, BALD {pick.information:.4f}"
            self.stdout.write(f"  {pick.image.public_id}  {why}  {pick.image.prompt.text}")
        counts = Counter(batch.picks.values_list("reason", flat=True))
        told = ", ".join(f"{number} {reason}" for reason, number in counts.items())
        chooser = f" by the selector of {batch.release}" if batch.release else ""
        self.stdout.write(f"{batch}: {told} of {len(batch.pool)}{chooser}, seed {batch.seed}, block {batch.block}.")


def _jobs(keys: list[int] | None) -> list[GenerationJob]:
    if keys is None:
        return list(GenerationJob.objects.filter(images__isnull=False).distinct())
    found = GenerationJob.objects.in_bulk(keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise CommandError(f"There is no generation job {missing[0]}.")
    return list(found.values())


def _release(name: str | None) -> Release | None:
    if name is None:
        return None
    found = list(Release.objects.filter(Q(name=name) | Q(digest__startswith=name)))
    if len(found) != 1:
        raise CommandError(f"{len(found)} releases are {name!r}. Name one by the first digits of its digest.")
    return found[0]
