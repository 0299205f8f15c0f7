"""manage.py export_ratings: the ratings that stand, as the CSV that training reads."""

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from medsyn.modalities import UnknownModality
from ratings.export import ExportFiles
from ratings.models import Study
from ratings.services import StudyError, freeze_export


def find_study(name: str) -> Study:
    """The study of that name or public id, or a CommandError that lists the studies there are."""
    study = Study.objects.filter(name=name).first()
    if study is None:
        study = next((study for study in Study.objects.all() if str(study.public_id) == name), None)
    if study is None:
        known = ", ".join(repr(known) for known in Study.objects.values_list("name", flat=True)[:20]) or "none yet"
        raise CommandError(f"There is no study {name!r}. Studies: {known}.")
    return study


class Command(BaseCommand):
    help = "Write the ratings that stand to a CSV, with a tidy table and a data dictionary beside it."

    def add_arguments(self, parser):
        parser.add_argument("--study", help="name or id of one study (default: all)")
        parser.add_argument("--output", type=Path, metavar="PATH", help="the CSV, or a folder for ratings.csv")
        parser.add_argument("--modality", default="", help="OCT, Fundus, X-Ray, CT or MRI (default: all)")
        parser.add_argument("--absolute-paths", action="store_true", help="image paths from the root of the disk")
        simulated = parser.add_mutually_exclusive_group()
        simulated.add_argument(
            "--include-simulated",
            action="store_true",
            default=None,
            help="ratings of simulated experts too (default: only where --study names a simulated study)",
        )
        simulated.add_argument(
            "--exclude-simulated", action="store_false", dest="include_simulated", help="ratings of people only"
        )

    def handle(self, *args, study, output, modality, absolute_paths, include_simulated, **options):
        try:
            export = freeze_export(
                study=find_study(study) if study else None,
                modality=modality,
                include_simulated=include_simulated,
                output=output,
                absolute_paths=absolute_paths,
            )
        except (StudyError, UnknownModality, OSError) as error:
            raise CommandError(str(error)) from error
        files = ExportFiles.beside(export.path)
        self.stdout.write(f"{export.row_count} ratings: {files.ratings}")
        self.stdout.write(f"sha256 {export.sha256}")
        self.stdout.write(f"tidy table: {files.tidy}\ndata dictionary: {files.dictionary}")
        if export.has_simulated:
            self.stdout.write("Contains ratings of simulated experts: for demonstration, not clinical evidence.")
