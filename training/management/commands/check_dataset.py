"""Look through a dataset before training on it."""

import os
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from generation.embedded_model import EMBEDDED_MODEL_DIR
from medsyn.artifacts import atomic_path, write_json


class Command(BaseCommand):
    help = (
        "Open every row of a dataset CSV (path,Text,modality) and report faults with their lines, counts, caption "
        "lengths, doubles and nearly equal pictures. Ends with an error where rows cannot be trained on; warnings "
        "are no error."
    )

    def add_arguments(self, parser):
        parser.add_argument("csv", type=Path, help="the dataset CSV")
        parser.add_argument(
            "--pretrained_model",
            "--model",
            default=str(EMBEDDED_MODEL_DIR),
            help="pipeline folder or hub id whose tokenizer counts the captions' tokens (default: medsyn-tiny)",
        )
        parser.add_argument("--json", type=Path, help="write everything that was found to this file")
        parser.add_argument("--contact_sheet", type=Path, help="write a PNG with some images of each kind")
        parser.add_argument("--images_per_kind", type=int, default=8, help="on the contact sheet (default 8)")
        parser.add_argument("--image_column", default="path")
        parser.add_argument("--caption_column", default="Text")
        parser.add_argument("--num_threads", type=int, default=min(8, os.cpu_count() or 1))

    def handle(self, **options):
        from training.datasets.caption_tokens import TokenizerError
        from training.datasets.survey import as_json, survey
        from training.datasets.survey_text import counted, describe
        from training.finetuning.dataset import DatasetError

        for flag in ("num_threads", "images_per_kind"):
            if options[flag] < 1:
                raise CommandError(f"--{flag}: {options[flag]} is out of range: a whole number from 1.")
        try:
            found = survey(
                options["csv"],
                image_column=options["image_column"],
                caption_column=options["caption_column"],
                model=options["pretrained_model"],
                num_threads=options["num_threads"],
            )
        except (DatasetError, TokenizerError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(describe(found))
        if options["json"]:
            write_json(options["json"], as_json(found))
        if options["contact_sheet"]:
            self._write_contact_sheet(found, options["contact_sheet"], options["images_per_kind"])
        if found.faults:
            raise CommandError(f"{counted(len(found.faults), 'row')} cannot be trained on, as listed above.")

    def _write_contact_sheet(self, found, path: Path, per_kind: int) -> None:
        from training.datasets.contact_sheet import contact_sheet

        if not found.images:
            self.stderr.write("There is no readable image, so no contact sheet.")
            return
        sheet = contact_sheet([image.row for image in found.images], per_kind=per_kind)
        with atomic_path(path) as temporary:
            sheet.save(temporary, format="PNG")
        self.stdout.write(f"Contact sheet: {path}")
