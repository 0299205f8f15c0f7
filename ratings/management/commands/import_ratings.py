"""manage.py import_ratings: a ratings CSV or a tidy table, and the images, as a new study."""

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from ratings.csv_schema import RatingsCSVError
from ratings.models import Rating
from ratings.services import StudyError, import_ratings


class Command(BaseCommand):
    help = (
        "Store a ratings CSV or a tidy table, and copies of its images, as a new study; nothing is stored if any row "
        "is bad."
    )

    def add_arguments(self, parser):
        parser.add_argument(
            "csv", type=Path, help="image_path,rating,modality,expert_level,prompt, or the tidy table of an export"
        )
        parser.add_argument("--study", required=True, metavar="NAME", help="name of the study to make")
        parser.add_argument("--simulated", action="store_true", help="the ratings come from simulated experts")
        parser.add_argument("--phantoms", action="store_true", help="the images are procedural phantoms")

        parser.add_argument("--skip-bad-rows", action="store_true", help="store the good rows all the same")
        parser.add_argument("--report", type=Path, metavar="FILE", help="CSV of what became of each row, and why")

    def handle(self, *args, csv, study, simulated, phantoms, skip_bad_rows, report, **options):
        try:
            made = import_ratings(
                path=csv,
                study_name=study,
                is_simulated=simulated,
                is_phantom=phantoms,
                skip_bad_rows=skip_bad_rows,
                report=report,
            )
        except (RatingsCSVError, StudyError, OSError) as error:
            raise CommandError(str(error)) from error
        ratings = Rating.objects.filter(assignment__study=made).count()
        self.stdout.write(
            f"Study {made.name!r}: {ratings} ratings of {made.images.count()} images by "
            f"{made.memberships.count()} anonymous readers."
        )
