"""manage.py export_ratings: the ratings that stand, as the CSV that training reads; or an earlier export again."""

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from medsyn.modalities import UnknownModality
from ratings.models import Export, Study
from ratings.services import StudyError, freeze_export, freeze_images, rerun_export


def find_study(name: str) -> Study:
    """The study of that name or public id, or a CommandError that lists the studies there are."""
    study = Study.objects.filter(name=name).first()
    if study is None:
        study = next((study for study in Study.objects.all() if str(study.public_id) == name), None)
    if study is None:
        known = ", ".join(repr(known) for known in Study.objects.values_list("name", flat=True)[:20]) or "none yet"
        raise CommandError(f"There is no study {name!r}. Studies: {known}.")
    return study


def find_export(key: int) -> Export:
    """The export of that number, or a CommandError."""
    export = Export.objects.filter(pk=key).first()
    if export is None:
        raise CommandError(f"There is no export {key}. The newest is {Export.objects.order_by('-pk').first()}.")
    return export


class Command(BaseCommand):
    help = "Write the ratings that stand to a CSV, with a tidy table and a data dictionary beside it."

    def add_arguments(self, parser):
        parser.add_argument("--study", help="name or id of one study (default: all)")
        parser.add_argument("--output", type=Path, metavar="PATH", help="the CSV, or a folder for it")
        parser.add_argument("--modality", default="", help="OCT, Fundus, X-Ray, CT or MRI (default: all)")
        parser.add_argument("--absolute-paths", action="store_true", help="image paths from the root of the disk")
        parser.add_argument(
            "--images", action="store_true", help="one row per image of --study: what its readers say together"
        )
        parser.add_argument(
            "--rerun", type=int, metavar="ID", help="write export ID again from the same events and compare the bytes"
        )
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

    def handle(self, *args, **options):
        self._require_one_purpose(options)
        try:
            export = self._export(options)
        except (StudyError, UnknownModality, OSError) as error:
            raise CommandError(str(error)) from error
        self._tell(export)
        if export.differing_files:
            raise CommandError(
                f"{', '.join(export.differing_files)}: other bytes than export {export.rerun_of_id} had. It was "
                f"written by code {export.rerun_of.code_version}, this one by {export.code_version}."
            )

    @staticmethod
    def _require_one_purpose(options) -> None:
        chosen = [name for name in ("study", "modality", "absolute_paths", "images") if options[name]]
        if options["include_simulated"] is not None:
            chosen.append("include_simulated")
        if options["rerun"] is not None and chosen:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise CommandError(f"--rerun repeats an export with the choice it was made with; leave out {flags}.")
        if options["images"] and (not options["study"] or set(chosen) - {"study", "images"}):
            raise CommandError("--images goes with --study and --output only: it is about the images of one study.")

    @staticmethod
    def _export(options) -> Export:
        if options["rerun"] is not None:
            return rerun_export(export=find_export(options["rerun"]), output=options["output"])
        study = find_study(options["study"]) if options["study"] else None
        if options["images"]:
            return freeze_images(study=study, output=options["output"])
        names = ("modality", "include_simulated", "output", "absolute_paths")
        return freeze_export(study=study, **{name: options[name] for name in names})

    def _tell(self, export: Export) -> None:
        self.stdout.write(f"Export {export.pk}")
        for name in export.file_names:
            file = export.files[name]
            self.stdout.write(f"{name}: {file['row_count']} rows, {export.path_of(name)}\n  sha256 {file['sha256']}")
        if export.rerun_of_id and not export.differing_files:
            self.stdout.write(f"The same bytes as export {export.rerun_of_id}.")
        if export.has_simulated:
            self.stdout.write("Contains ratings of simulated experts: for demonstration, not clinical evidence.")
