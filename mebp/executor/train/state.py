"""A run's state on disk: adapters and optimizer state as safetensors, written whole or not at all, a tensor at a time; and the
position from which a run is resumed.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mebp.errors import StoreError
from mebp.executor.adapter import Adapter
from mebp.leftover import part_name, sweep
from mebp.store.reader import bytes_of
from mebp.store.writer import reserve, write_all

POSITION = "mebp_training"  # key of the position among the file's metadata
VERSION = 1
MOMENTS = ("A.first", "A.second", "B.first", "B.second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands: updates done and how many had an effect, steps taken, the best evaluation, and how many there were since;
    and the hashes of what it was begun with, by name.
    """

    number: int
    applied: int
    step: int
    best_number: int | None
    best_loss: float | None
    evaluations_since_best: int
    hashes: Mapping[str, str]
    version: int = VERSION


def write_state(file: Path, adapters: Mapping[str, Adapter], position: Position, *, moments: bool = True) -> None:
    """Write adapters, with `moments` what the optimizer remembers too, in the place of what was there; OSError where that fails,
    and what was there stays.
    """
    tensors = dict(_named(adapters, moments=moments))
    temporary = file.with_name(part_name(file.name))
    sweep(file.parent, file.name)
    try:
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(opened, tensors, position)
        finally:
            os.close(opened)
        temporary.replace(file)
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_position(file: Path) -> Position:
    """Where a saved run stands; StoreError in one line for a file that cannot be read, or is of another version."""
    try:
        with safe_open(file, framework="pt") as opened:
            given = (opened.metadata() or {}).get(POSITION)
        raw = json.loads(given) if given else None
        if isinstance(raw, dict) and raw.get("version") != VERSION:
            raise StoreError(f"{file} was written by another version of mebp-plan: begin again in another folder")
        return TypeAdapter(Position).validate_python(raw)
    except (SafetensorError, OSError, ValueError, ValidationError) as error:
        said = str(error).splitlines()[0] if isinstance(error, OSError | SafetensorError) else "no state of a run"
        raise StoreError(f"cannot read {file} ({said}): begin again in another folder") from None


def read_into(file: Path, adapters: Mapping[str, Adapter], *, moments: bool = True) -> None:
    """Fill adapters, with `moments` what the optimizer remembers too, from a state; StoreError where it holds others."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name, tensor in _named(adapters, moments=moments):
                tensor.copy_(opened.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise StoreError(f"cannot read {file} ({str(error).splitlines()[0]}): begin again in another folder") from None


def read_pairs(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every adapter in a state; StoreError for a file that cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = [name.removesuffix(".A") for name in opened.keys() if name.endswith(".A")]  # noqa: SIM118  (no mapping)
            return {name: (opened.get_tensor(f"{name}.A"), opened.get_tensor(f"{name}.B")) for name in names}
    except (SafetensorError, OSError) as error:
        raise StoreError(f"cannot read {file} ({str(error).splitlines()[0]})") from None


def _named(adapters: Mapping[str, Adapter], *, moments: bool) -> Iterator[tuple[str, Tensor]]:
    for name, adapter in adapters.items():
        yield from ((f"{name}.A", adapter.A), (f"{name}.B", adapter.B))
        if moments:
            yield from ((f"{name}.{moment}", tensor) for moment, tensor in zip(MOMENTS, adapter.states, strict=False))


def _write(opened: int, tensors: Mapping[str, Tensor], position: Position) -> None:
    entries: dict[str, Any] = {"__metadata__": {POSITION: json.dumps(asdict(position))}}
    end = 0
    for name, tensor in tensors.items():
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    reserve(opened, 8 + len(header) + end)
    write_all(opened, memoryview(struct.pack("<Q", len(header)) + header))
    for tensor in tensors.values():
        write_all(opened, bytes_of(tensor.cpu()))
    os.fsync(opened)


def _sync(folder: Path) -> None:
    """Have the folder's own entry on disk too."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
