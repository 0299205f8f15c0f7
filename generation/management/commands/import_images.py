"""manage.py import_images: real images, or synthetic ones made elsewhere, into the application."""

import csv
import io
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from medsyn.artifacts import write_bytes
from medsyn.dataset_csv import BadRow, DatasetError, Row, read_rows
from medsyn.modalities import PromptError, parse_prompt

_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".nii", ".nii.gz")


class Command(BaseCommand):
    help = (
        "Copy images into the application, rid of what could name a patient (DICOM attributes, NIfTI header texts, "
        "EXIF), so that studies can use them. The pixels stay as they are, in full depth. Nothing is stored if any "
        "row is bad."
    )

    def add_arguments(self, parser):
        parser.add_argument(
            "source",
            type=Path,
            metavar="CSV|FOLDER",
            help="a dataset CSV (path,Text,modality, then if known patient or group, and gold), a folder that holds "
            "one as metadata.csv, or with --prompt a folder of images",
        )
        origin = parser.add_mutually_exclusive_group(required=True)
        origin.add_argument(
            "--real",
            action="store_true",
            help="images of patients; the column patient (or group) must hold pseudonyms: it is stored as it stands",
        )
        origin.add_argument("--synthetic", action="store_true", help="images that show no patient")
        parser.add_argument("--phantoms", action="store_true", help="the synthetic images are procedural phantoms")
        parser.add_argument("--name", required=True, help="name of the batch, by which studies find it")
        parser.add_argument("--prompt", help='what every image of a folder shows: "Chest X-ray: ..."')
        parser.add_argument(
            "--gold", type=int, choices=(1, 2, 3), help="the grade that all of them are known to have"
        )
        parser.add_argument("--skip-bad-rows", action="store_true", help="import the others, and list the bad ones")

    def handle(self, source, real, name, phantoms, prompt, gold, skip_bad_rows, **_):
        from generation.importing import ImportImagesError, import_images  # image libraries: only to import

        try:
            rows, bad = self._rows(source, prompt)
            with tqdm(total=len(rows), desc="Images", unit="image", disable=None if rows else True) as bar:
                done = import_images(
                    rows=rows,
                    is_real=real,
                    is_phantom=phantoms,
                    batch=name,
                    skip_bad_rows=skip_bad_rows,
                    bad_before=bad,
                    on_row=bar.update,
                )
        except (ImportImagesError, DatasetError, PromptError) as error:
            raise CommandError(
                f"{source}: {error}" if isinstance(error, ImportImagesError) else str(error)
            ) from error
        except OSError as error:
            raise CommandError(f"Nothing was imported: {error}") from error
        self._report(done, name, gold)

    def _rows(self, source: Path, prompt: str | None) -> tuple[list[Row], list[BadRow]]:
        if not source.is_dir():
            if prompt:
                raise CommandError("--prompt is for a folder of images; a CSV has a text in every row.")
            return read_rows(source, with_gold=True)
        if (source / "metadata.csv").exists() and not prompt:
            return read_rows(source / "metadata.csv", with_gold=True)
        if not prompt:
            raise CommandError(
                f"{source} holds no metadata.csv. Say with --prompt what all of its images show, or make the CSV "
                "with manage.py build_dataset."
            )
        parsed = parse_prompt(prompt)
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.name.lower().endswith(_SUFFIXES))
        return [Row(number, path, parsed) for number, path in enumerate(files, start=1)], []

    def _report(self, done, name: str, gold: int | None) -> None:
        again = len(done.images) - done.num_new
        known = f"; {again} were stored already and keep their batch" if again else ""
        self.stdout.write(f"{done.num_new} images imported as {name!r}{known}.")
        for row in done.bad:
            self.stderr.write(f"left out, {row}")
        if done.removed:
            shown = ", ".join(f"{what} ({number})" for what, number in done.removed)
            self.stdout.write(f"Removed from the copies (number of files): {shown}.")
        known_grades = [(image, row.gold or gold) for row, image in done.images if row.gold or gold]
        if known_grades:
            path = self._write_gold(known_grades)
            self.stdout.write(f"{len(known_grades)} known grades. To record them:\n  manage.py set_gold {path}")

    @staticmethod
    def _write_gold(known_grades: list) -> Path:
        """A CSV for set_gold; grades belong to the ratings, which stand above images."""
        buffer = io.StringIO(newline="")
        lines = {(str(image.public_id), grade): None for image, grade in known_grades}
        csv.writer(buffer).writerows([("image", "grade", "rationale"), *((*line, "") for line in lines)])
        number = known_grades[-1][0].pk
        path = settings.ARTIFACT_ROOT / "imports" / f"gold-{number}.csv"
        write_bytes(path, buffer.getvalue().encode())
        return path
