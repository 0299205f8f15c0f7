"""Make a dataset CSV from a folder of images."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from medsyn.modalities import UnknownModality, kind_from_name

# Unless --verbosity 2 asks for all:
_EXAMPLES = 3  # files named for each reason to skip
_REASONS = 20  # reasons


class Command(BaseCommand):
    help = (
        "Write metadata.csv (path,Text,modality) into a folder of images laid out as modality/class/... "
        "Every image is opened; what cannot be used is left out and reported."
    )

    def add_arguments(self, parser):
        parser.add_argument("folder", type=Path, help="folders modality/class/... below it hold the images")
        parser.add_argument(
            "--template",
            help='the caption (default: "{kind}: {class}"). Fields: kind, class, side (left or right, from folder '
            "and file names), name (the file's), and the named groups of --pattern",
        )
        parser.add_argument("--mapping", type=Path, help="CSV (class,caption) or YAML (class: caption or a list)")
        parser.add_argument("--pattern", help="regular expression on the relative path; its named groups are fields")
        parser.add_argument(
            "--group_from",
            help="write a group column (the patient): a folder's number (1: the first, -1: the file's own) or a "
            "regular expression on the relative path, whose group 'group' or first group counts",
        )
        parser.add_argument("--modality", help="the kind of all images; the folders then begin with the class")
        parser.add_argument("--exclude", action="append", default=[], help="glob of relative paths; may be repeated")
        parser.add_argument("--overwrite", action="store_true", help="replace a metadata.csv that is there")
        parser.add_argument("--num_threads", type=int, default=min(8, os.cpu_count() or 1))

    def handle(self, **options):
        from training.datasets.building import BuildError, GroupRule, build, refuse_to_overwrite, write_metadata
        from training.datasets.captioning import CaptionError

        folder = options["folder"]
        if options["num_threads"] < 1:
            raise CommandError(f"--num_threads: {options['num_threads']} is out of range: a whole number from 1.")
        try:
            refuse_to_overwrite(folder, overwrite=options["overwrite"])
            built = build(
                folder,
                _captions(options),
                kind=kind_from_name(options["modality"]) if options["modality"] else None,
                groups=GroupRule.parse(options["group_from"]) if options["group_from"] else None,
                exclude=options["exclude"],
                num_threads=options["num_threads"],
            )
            path = write_metadata(folder, built, overwrite=options["overwrite"])
        except (BuildError, CaptionError, UnknownModality) as error:
            raise CommandError(str(error)) from error
        self._report(built, all_files=options["verbosity"] > 1)
        self.stdout.write(f"{len(built.rows)} rows: {path}")

    def _report(self, built, *, all_files: bool) -> None:
        for (kind, name), count in sorted(Counter((row.kind.prefix, row.class_folder) for row in built.rows).items()):
            self.stdout.write(f"  {kind:<14}{name or '(no class)':<30}{count:>8}")
        if built.has_groups:
            self.stdout.write(f"  {len({row.group for row in built.rows})} groups")
        by_reason = defaultdict(list)
        for one in built.skipped:
            by_reason[one.reason].append(str(one.path))
        reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
        for reason, paths in reasons if all_files else reasons[:_REASONS]:
            shown = paths if all_files else paths[:_EXAMPLES]
            more = f", and {len(paths) - len(shown)} more" if len(paths) > len(shown) else ""
            self.stdout.write(f"Skipped {len(paths)}: {reason}: {', '.join(shown)}{more}")
        if len(reasons) > _REASONS and not all_files:
            self.stdout.write(f"and {len(reasons) - _REASONS} more reasons; --verbosity 2 lists all")
        if built.unused_classes:
            self.stdout.write(f"Classes of the mapping without an image: {', '.join(built.unused_classes)}")


def _captions(options):
    from training.datasets.captioning import DEFAULT_TEMPLATE, Captions, read_mapping

    if options["template"] and options["mapping"]:
        raise CommandError("--template and --mapping both say the caption: leave one out.")
    try:
        pattern = re.compile(options["pattern"]) if options["pattern"] else None
    except re.error as error:
        raise CommandError(f"--pattern: {options['pattern']!r} is no regular expression ({error}).") from error
    mapping = read_mapping(options["mapping"]) if options["mapping"] else None
    return Captions(options["template"] or DEFAULT_TEMPLATE, mapping, pattern)
