"""The published text form of packing problems (google/minimalloc): CSV with id, lower, upper, size; a buffer lives in [lower,
upper).

Times are replaced by their rank, since only their order matters for what lives together.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from mebp.errors import InputError
from mebp.planner.pack.heuristic import Buffer, Packing
from mebp.text import read_text, shortened

FIELDS = ("id", "lower", "upper", "size")
OFFSET = "offset"
WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
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
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        names = tuple(reader.fieldnames or ())
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is not CSV: {error}") from None
    _require_fields(names, path)
    if not lines:
        raise InputError(f"{path} has no buffers: expected a line of {','.join(FIELDS)} for each")
    numbers = [_numbers(row, names, f"{path}:{line}") for line, row in lines]
    if len({row["id"] for _, row in lines}) != len(lines):
        raise InputError(f"{path} names an id twice: every buffer needs its own")
    rank = {time: at for at, time in enumerate(sorted({time for lower, upper, _ in numbers for time in (lower, upper)}))}
    buffers = tuple(Buffer(start=rank[lower], end=rank[upper], size=size) for lower, upper, size in numbers)
    return Instance(buffers=buffers, fields=names, rows=tuple(row for _, row in lines))


def _require_fields(names: tuple[str, ...], path: Path) -> None:
    if not set(FIELDS) <= set(names):
        raise InputError(f"{path} is no packing problem: its first line must name {','.join(FIELDS)}")
    if len(set(names)) != len(names):
        raise InputError(f"{path} names a field twice: {shortened(','.join(names))}")
    if OFFSET in names:
        raise InputError(f"{path} has a field {OFFSET} already, which would be written over: leave it out")


def _numbers(row: dict[str, str], names: tuple[str, ...], where: str) -> tuple[int, int, int]:
    if None in row or None in row.values():
        raise InputError(f"{where} does not have the {len(names)} fields of the first line: {shortened(','.join(names))}")
    for field, plain in UNSUPPORTED.items():
        if row.get(field, plain[0]).strip() not in plain:
            given = shortened(repr(row[field]))
            raise InputError(f"{where}: {field} = {given}: is not supported: leave it out, or round sizes up")
    found = []
    for field in FIELDS[1:]:
        if not WHOLE.fullmatch(row[field].strip()):
            raise InputError(f"{where}: {field} = {shortened(repr(row[field]))}: must be a whole number")
        found.append(int(row[field]))
    lower, upper, size = found
    if not lower < upper:
        raise InputError(f"{where}: upper = {upper}: must be above lower = {lower}: a buffer lives in [lower, upper)")
    if not 0 < size <= LARGEST:
        raise InputError(f"{where}: size = {size}: must be between 1 and {LARGEST}")
    return lower, upper, size


def offsets_csv(instance: Instance, packing: Packing) -> str:
    """The instance with an offset for every buffer."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=[*instance.fields, OFFSET], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, OFFSET: offset} for row, offset in zip(instance.rows, packing.offsets, strict=True))
    return out.getvalue()
