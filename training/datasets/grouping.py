"""Who is a patient: groups of rows that must not be parted, from a table of patients and from the pictures.

Slices of one patient, and copies of one picture under two names, are alike. With one in training and the other held
out, a generator looks as if it drew new patients well, and its copies as if they were nothing unusual.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medsyn.artifacts import write_bytes
from medsyn.dataset_csv import GROUP_COLUMNS, DatasetError, Row, describe_bad_rows, read_rows
from medsyn.modalities import Kind
from training.datasets.examination import examine
from training.datasets.survey import pairs_of_different_files
from training.finetuning.dataset import sort_out

_PATH = "path"  # column of the table


@dataclass(frozen=True)
class Grouped:
    """Rows that know their group."""

    rows: tuple[Row, ...]  # in file order; ``group`` is empty where neither table nor pictures name one
    num_unnamed: int  # rows of which no patient is known
    num_joined: int  # groups less by pictures that are nearly the same

    @property
    def num_groups(self) -> int:
        return len({row.group or row.image_sha256 for row in self.rows})


def read_patients(table: Path) -> dict[Path, str]:
    """Patient by resolved image path, from a CSV with the columns path and patient (or group, patient_id); other
    columns are not read, and paths are relative to the table. Raises DatasetError."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            group = next((name for name in GROUP_COLUMNS if name in columns), None)
            if _PATH not in columns or group is None:
                raise DatasetError(
                    f"{table}: the first line must name {_PATH} and one of {', '.join(GROUP_COLUMNS)}; it reads: "
                    f"{','.join(columns)}"
                )
            rows = [((row[_PATH] or "").strip(), (row[group] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table} cannot be read: {error}") from error
    return {(table.parent / path).resolve(): patient for path, patient in rows if path and patient}


def group_rows(
    csv_path: Path, *, patients: dict[Path, str] | None = None, kinds: Sequence[Kind] = (), num_threads: int = 4
) -> Grouped:
    """The rows of a dataset CSV (of these kinds; none named: all) with their groups; every image is opened.

    A row's group is the table's patient, else the CSV's own group. Groups with equal files or with pictures that are
    nearly the same (training.datasets.duplicates) become one, under the first of their names. Raises DatasetError for
    bad rows, and where nearly all pictures look alike, so that they say nothing.
    """
    rows, bad = read_rows(csv_path)
    rows = [row for row in rows if not kinds or row.prompt.kind in kinds]
    named = [replace(row, group=(patients or {}).get(row.path.resolve(), row.group)) for row in rows]
    images, unreadable = sort_out(named, examine, num_threads=num_threads, description="Opening images")
    bad = sorted([*bad, *unreadable], key=lambda row: row.line)
    if bad or not images:
        raise DatasetError(describe_bad_rows(csv_path, bad, "Correct or remove them."))
    pairs, is_complete = pairs_of_different_files(images)
    if not is_complete:
        raise DatasetError(f"{csv_path}: nearly all pictures look alike, so that they do not tell patients apart.")
    found = [image.row for image in images]
    before = Grouped(tuple(found), sum(not row.group for row in found), 0)
    rows = _joined(found, [(pair.first, pair.second) for pair in pairs])
    after = replace(before, rows=tuple(rows))
    return replace(after, num_joined=before.num_groups - after.num_groups)


def _joined(rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> list[Row]:
    """The rows, connected by group, by file and by pair, under the first name of each component that has one."""
    edges = list(pairs)
    for keys in ([row.group for row in rows], [row.image_sha256 for row in rows]):
        first: dict[str, int] = {}
        edges += [(first.setdefault(key, place), place) for place, key in enumerate(keys) if key]
    ends = np.array(edges)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(rows), len(rows)))
    component = connected_components(graph, directed=False)[1]
    sizes = np.bincount(component)
    names: dict[int, str] = {}
    for number, row in zip(component, rows, strict=True):
        if sizes[number] > 1:
            names[number] = names.get(number) or row.group
    # Doubles of which no patient is known are called by the first one's file.
    for number, row in zip(component, rows, strict=True):
        if sizes[number] > 1:
            names[number] = names[number] or f"file {row.image_sha256[:16]}"
    return [replace(row, group=names.get(number, row.group)) for number, row in zip(component, rows, strict=True)]


def write_dataset(path: Path, rows: Sequence[Row]) -> None:
    """A dataset CSV of the rows with their groups, image paths absolute, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "Text", "modality", "group"])
    for row in rows:
        writer.writerow([row.path.resolve(), row.text, row.prompt.modality, row.group])
    write_bytes(path, text.getvalue().encode())
