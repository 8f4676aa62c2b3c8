"""Measurements on a phone, read from CSV: peaks and step times of published implementations, the paper's figures among them."""

import csv
from dataclasses import dataclass
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import IO

from mebp.errors import InputError
from mebp.models.catalogue import load_model
from mebp.models.format import weight_formats
from mebp.models.workload import Lora, Workload, require_workload
from mebp.text import shortened

METHODS = ("mebp", "mezo")
COLUMNS = ("model", "method", "seq_len", "lora_r", "peak_mb", "step_s")
SMALLEST = {"peak_mb": (1.0, "gigabytes"), "step_s": (1e-3, "minutes")}  # and what was taken for the unit where one is less
WHOLE = ("seq_len", "lora_r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One step of one method, as measured."""

    model: str
    method: str
    seq_len: int
    lora_r: int
    peak_bytes: float
    step_s: float

    @property
    def name(self) -> str:
        return f"{self.model} {self.method} {self.seq_len} r{self.lora_r}"


def paper_figures() -> tuple[Measured, ...]:
    """The twenty figures of Song & Tang, 2025 (arXiv 2510.03425, Table 1 as read in vatsal191201/AutoANE); their sequence length
    is inferred.
    """
    with resources.files("mebp.task.fit").joinpath("paper.csv").open(encoding="utf-8") as file:
        return read_rows(file, "paper.csv")


def read_measurements(path: Path) -> tuple[Measured, ...]:
    """Read a CSV with a header and the columns model, method, seq_len, lora_r, peak_mb, step_s."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read_rows(file, str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read measurements {path}: {getattr(error, 'strerror', None) or error}") from None


def read_rows(file: IO[str], source: str) -> tuple[Measured, ...]:
    """Rows of measurements; InputError names source, line, column and value."""
    rows = csv.DictReader(file)
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise InputError(f"{source}: column {missing[0]} is missing: the header must name {','.join(COLUMNS)}")
    found = tuple(_measured(row, f"{source}:{rows.line_num}") for row in rows)
    if not found:
        raise InputError(f"{source} has no measurements: write a line for each")
    return found


def _measured(row: dict[str, str], where: str) -> Measured:
    if row["method"] not in METHODS:
        raise InputError(f"{where}: method = {shortened(repr(row['method']))}: must be one of {', '.join(METHODS)}")
    numbers = {name: _positive(row[name], f"{where}: {name}", whole=name in WHOLE) for name in COLUMNS[2:]}
    for name, (least, unit) in SMALLEST.items():
        if numbers[name] < least:
            raise InputError(f"{where}: {name} = {shortened(str(row[name]))}: is below {least:g}: is it {unit}?")
    try:
        config = load_model(row["model"])
        lora = Lora(rank=int(numbers["lora_r"]))
        require_workload(config, Workload(seq_len=int(numbers["seq_len"]), lora=lora, weights=weight_formats("int4-g64")))
    except InputError as error:
        raise InputError(f"{where}: {str(error).replace('`', '')}") from None
    return Measured(
        model=row["model"],
        method=row["method"],
        seq_len=int(numbers["seq_len"]),
        lora_r=int(numbers["lora_r"]),
        peak_bytes=numbers["peak_mb"] * 1e6,
        step_s=numbers["step_s"],
    )


def _positive(text: str | None, what: str, *, whole: bool) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not isfinite(value) or value <= 0 or (whole and value != int(value)):
        raise InputError(f"{what} = {shortened(repr(text))}: must be a positive {'whole ' if whole else ''}number")
    return value
