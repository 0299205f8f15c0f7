"""Write a dataset CSV with a group column: who is one patient."""

import os
from collections import Counter
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from medsyn.modalities import UnknownModality, kind_from_name


class Command(BaseCommand):
    help = (
        "Write a dataset CSV again with a group column, by which training and measuring keep patients apart: from a "
        "table of patients, and from the pictures: what is nearly the same becomes one group. Image paths become "
        "absolute."
    )

    def add_arguments(self, parser):
        parser.add_argument("csv", type=Path, help="the dataset CSV (path,Text,modality)")
        parser.add_argument("output", type=Path, help="the CSV to write; it may be the same one")
        parser.add_argument(
            "--patients", type=Path, help="a CSV with the columns path and patient (or patient_id, group)"
        )
        parser.add_argument("--kinds", nargs="+", default=[], help="only these kinds of image")
        parser.add_argument("--num_threads", type=int, default=min(8, os.cpu_count() or 1))

    def handle(self, **options):
        from training.datasets.grouping import group_rows, read_patients, write_dataset
        from training.finetuning.dataset import DatasetError

        if options["num_threads"] < 1:
            raise CommandError(f"--num_threads: {options['num_threads']} is out of range: a whole number from 1.")
        try:
            found = group_rows(
                options["csv"],
                patients=read_patients(options["patients"]) if options["patients"] else None,
                kinds=[kind_from_name(name) for name in options["kinds"]],
                num_threads=options["num_threads"],
            )
            write_dataset(options["output"], found.rows)
        except (DatasetError, UnknownModality, OSError) as error:
            raise CommandError(str(error)) from error
        self._report(found)
        self.stdout.write(f"{len(found.rows)} rows in {found.num_groups} groups: {options['output']}")

    def _report(self, found) -> None:
        kinds = Counter(row.prompt.kind.prefix for row in found.rows)
        for kind, count in kinds.items():
            own = Counter(row.group or row.image_sha256 for row in found.rows if row.prompt.kind.prefix == kind)
            single = sum(number == 1 for number in own.values())
            self.stdout.write(
                f"  {kind:<14}{count:>7} rows{len(own):>7} groups, {single} of one image, the largest of "
                f"{max(own.values())}"
            )
        if found.num_joined:
            self.stdout.write(f"  {found.num_joined} groups fewer, as pictures in them are nearly the same")
        if found.num_unnamed:
            self.stdout.write(
                f"  of {found.num_unnamed} rows no patient is known: each counts as a patient of its own, unless a "
                "picture is nearly the same"
            )
