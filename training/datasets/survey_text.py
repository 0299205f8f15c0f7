"""A survey as plain text for the terminal: tables, cut where they grow long."""

from collections import Counter
from collections.abc import Sequence

from training.datasets.duplicates import MAX_PAIRS
from training.datasets.survey import Spread, Survey, Warned

_MOST_LISTED = 40  # faults, warnings, groups of doubles
_MOST_COUNTED = 8  # sizes, groups
_MOST_LINES = 12  # line numbers named of one group


def describe(found: Survey) -> str:
    """The whole survey; ends with a line that says whether there are faults."""
    sections = [
        _counts(found),
        _caption_lines(found),
        _listed("Files that are equal", [_lines(lines) for lines in found.same_files]),
        _near_duplicates(found),
        _listed("Warnings", [_warning(warned) for warned in found.warnings]),
        _listed("Faults", [f"line {fault.line:<7} {fault.reason}" for fault in found.faults]),
        [verdict(found)],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def verdict(found: Survey) -> str:
    """One line: how many rows can be trained on, how many cannot."""
    numbers = (
        counted(len(found.images), "usable row"),
        counted(len(found.faults), "fault"),
        counted(len(found.warnings), "warning"),
    )
    return f"{found.csv_path}: {', '.join(numbers)}."


def counted(number: int, noun: str) -> str:
    """As in "no faults", "1 fault", "12 faults"."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _counts(found: Survey) -> list[str]:
    lines = ["Images"]
    lines += _table("kind", found.kinds)
    lines += _table("modality", found.modalities)
    lines += _table("format", found.formats)
    lines += _table("size", Counter({f"{width} x {height}": count for (width, height), count in found.sizes.items()}))
    if found.has_groups:
        spread = Spread.of(list(found.groups.values()))
        lines.append(f"  {len(found.groups)} groups of {_spread(spread)} images")
        lines += _table("group", found.groups)
        without = len(found.images) - sum(found.groups.values())
        if without:
            lines.append(f"  {without} rows name no group")
    else:
        lines.append("  no group column: a split can only be by image")
    return lines


def _table(heading: str, counts: Counter) -> list[str]:
    """The most frequent values, one a line, and how many more there are."""
    shown = counts.most_common(_MOST_COUNTED)
    lines = [
        f"  {heading if place == 0 else '':<10}{value!s:<24}{count:>8}" for place, (value, count) in enumerate(shown)
    ]
    hidden = len(counts) - len(shown)
    return [*lines, f"  {'':<10}and {hidden} more"] if hidden else lines


def _caption_lines(found: Survey) -> list[str]:
    lines = ["Captions", f"  {len(found.captions)} different, {_spread(found.words)} words"]
    lines.append(f"  {found.num_sided} name a side: their images are never mirrored in training")
    if found.tokens is not None:
        tokens = found.tokens
        lines.append(
            f"  {_spread(Spread.of(tokens.counts))} tokens by {tokens.model}, which reads {tokens.limit}: "
            f"{counted(tokens.num_cut, 'caption')} would be cut"
        )
    return lines


def _near_duplicates(found: Survey) -> list[str]:
    lines = _listed("Pictures that are nearly the same", [_lines(group) for group in found.near_groups])
    if not found.found_all_pairs:
        lines.append(f"  The search stopped at {MAX_PAIRS:,} pairs: most pictures are nearly the same.")
    return lines


def _listed(heading: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    lines = [f"{heading} ({len(entries)})", *(f"  {entry}" for entry in entries[:_MOST_LISTED])]
    hidden = len(entries) - _MOST_LISTED
    return [*lines, f"  and {hidden} more; --json FILE lists all"] if hidden > 0 else lines


def _warning(warned: Warned) -> str:
    return f"{_lines(warned.lines)}: {warned.reason}"


def _lines(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_MOST_LINES]))
    more = f" and {len(numbers) - _MOST_LINES} more" if len(numbers) > _MOST_LINES else ""
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _spread(spread: Spread | None) -> str:
    """As in "3 to 12 (median 5)"."""
    if spread is None:
        return "no"
    return f"{spread.smallest:g} to {spread.largest:g} (median {spread.middle:g})"
