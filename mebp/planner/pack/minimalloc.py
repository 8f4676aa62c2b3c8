"""The published text form of packing problems (google/minimalloc): CSV with id, lower, upper, size; a buffer lives in [lower,
upper).

Times are replaced by their rank, since only their order matters for what lives together.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from mebp.errors import InputError
from mebp.planner.pack.heuristic import Buffer, Packing

FIELDS = ("id", "lower", "upper", "size")
LARGEST = 2**50
UNSUPPORTED = {"alignment": ("", "0", "1"), "gaps": ("",)}  # fields of the format that change what fits, and values that do not


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The buffers of a file, the names of its fields and the text of its rows, in file order."""

    buffers: tuple[Buffer, ...]
    fields: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def read_instance(path: Path) -> Instance:
    """Read a packing problem; InputError names file, line and field."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        reader = csv.DictReader(io.StringIO(text))
        names, rows = tuple(reader.fieldnames or ()), tuple(reader)
    except csv.Error as error:
        raise InputError(f"{path} is not CSV: {error}") from None
    if not set(FIELDS) <= set(names):
        raise InputError(f"{path} is no packing problem: its first line must name {','.join(FIELDS)}")
    if not rows:
        raise InputError(f"{path} has no buffers: expected a line of {','.join(FIELDS)} for each")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"{path}:{line} does not have the {len(names)} fields of the first line: {','.join(names)}")
    if len(set(names)) != len(names):
        raise InputError(f"{path} names a field twice: {','.join(names)}")
    for line, row in enumerate(rows, start=2):
        for field, plain in UNSUPPORTED.items():
            if row.get(field, plain[0]).strip() not in plain:
                raise InputError(f"{path}:{line}: {field} = {row[field]!r}: is not supported: leave it out, or round sizes up")
    numbers = [_numbers(row, f"{path}:{line}") for line, row in enumerate(rows, start=2)]
    if len({row["id"] for row in rows}) != len(rows):
        raise InputError(f"{path} names an id twice: every buffer needs its own")
    rank = {time: at for at, time in enumerate(sorted({time for lower, upper, _ in numbers for time in (lower, upper)}))}
    buffers = tuple(Buffer(start=rank[lower], end=rank[upper], size=size) for lower, upper, size in numbers)
    return Instance(buffers=buffers, fields=names, rows=rows)


def _numbers(row: dict[str, str], where: str) -> tuple[int, int, int]:
    found = []
    for field in FIELDS[1:]:
        try:
            found.append(int(row[field]))
        except (TypeError, ValueError):
            raise InputError(f"{where}: {field} = {row[field]!r}: must be a whole number") from None
    lower, upper, size = found
    if not lower < upper:
        raise InputError(f"{where}: upper = {upper}: must be above lower = {lower}: a buffer lives in [lower, upper)")
    if not 0 < size <= LARGEST:
        raise InputError(f"{where}: size = {size}: must be between 1 and {LARGEST}")
    return lower, upper, size


def offsets_csv(instance: Instance, packing: Packing) -> str:
    """The instance with an offset for every buffer."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(dict.fromkeys([*instance.fields, "offset"])), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "offset": offset} for row, offset in zip(instance.rows, packing.offsets, strict=True))
    return out.getvalue()
