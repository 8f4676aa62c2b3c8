"""Write a store (see header.py) tensor by tensor: in a folder next to where it will be, renamed when whole, so that nothing
half-written is ever found there.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from mebp.errors import StoreError
from mebp.kernel.weight import PART_TYPES, Frozen
from mebp.leftover import part_name as part_folder
from mebp.leftover import sweep
from mebp.models.config import ModelConfig
from mebp.models.format import CODES, STORE_VERSION, WEIGHTS_FILE, WeightFormat, WeightFormats
from mebp.store.header import CHECKSUM, CONFIG_FILE, ITEMSIZES, MATHEMATICS, PADDING, Layout, layout, part_name
from mebp.store.reader import DTYPES, bytes_of
from mebp.text import resolved

FACT_BYTES = 128  # of header kept for the facts of one tensor
LARGEST_ITEM = max(ITEMSIZES.values())
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Pieces = Tensor | Iterator[Tensor]  # a tensor, whole or some of its rows at a time


def write_store(
    folder: Path,
    config: ModelConfig,
    formats: WeightFormats,
    tensors: Iterable[tuple[str, Pieces]],
    facts: Callable[[], Mapping[str, str]] = dict,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write a store tensor by tensor, in layout order (`parts_of` gives a matrix's), with no more than one in memory; refuses to
    overwrite.

    `facts` is called once all is written and returns what the header says in addition to the formats: one short entry per tensor at
    most. `beside` are further files of the folder, name to text. Raises StoreError naming the folder where it exists already,
    cannot be written, or the disk is full.
    """
    require_new(folder)
    target = resolved(folder)
    part = target.with_name(part_folder(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
        part.mkdir()
        with _opened(part / CONFIG_FILE) as file:
            write_all(file, memoryview(TypeAdapter(ModelConfig).dump_json(config)))
        with _opened(part / WEIGHTS_FILE) as file:
            _write_tensors(file, layout(config, formats), _known(config, formats), tensors, facts)
        for name, text in (beside or {}).items():
            with _opened(part / name) as file:
                write_all(file, memoryview(text.encode()))
        part.replace(target)  # takes the place of an empty folder, of no other
    except OSError as error:
        require_new(folder)  # another process was faster
        raise StoreError(f"cannot write store {folder}: {error.strerror or error}: name another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def require_new(folder: Path) -> None:
    """Refuse a place where something is already."""
    if str(folder) in ("", ".", "-"):
        raise StoreError(f"{str(folder)!r} is no name for a store: name a new folder as `output`")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if os.path.lexists(folder / name):
            kind = "a store already" if name == WEIGHTS_FILE else f"a {CONFIG_FILE} already"
            raise StoreError(f"{folder} holds {kind}: remove it or name another folder")
    if os.path.lexists(folder) and not folder.is_dir():
        raise StoreError(f"{folder} is no folder: name another")
    if folder.is_dir() and any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty: name a new folder")


def parts_of(name: str, fmt: WeightFormat, shape: tuple[int, int], pieces: Iterable[Frozen]) -> Iterator[tuple[str, Pieces]]:
    """The tensors of a matrix (rows, cols), of which `pieces` are some rows at a time: codes go to the file as they come, the small
    parts wait in memory.
    """
    first, *others = fmt.parts(shape[1])
    kept = {part.name: torch.empty(shape[0], part.per_row, dtype=PART_TYPES[part.dtype]) for part in others}

    def codes() -> Iterator[Tensor]:
        done = 0
        for piece in pieces:
            for part, values in kept.items():  # copied: small tensors between freed large ones would keep the heap from shrinking
                values[done : done + piece.rows] = piece.parts[part]
            done += piece.rows
            yield piece.codes

    assert first.name == CODES
    yield part_name(name, fmt, CODES), codes()
    for part, values in kept.items():
        yield part_name(name, fmt, part), values


def _known(config: ModelConfig, formats: WeightFormats) -> dict[str, str]:
    """What the header says before a writer's own facts."""
    return {"mebp_store": STORE_VERSION, "formats": formats.name, MATHEMATICS: config.mathematics}


def _write_tensors(
    file: int,
    expected: Layout,
    known: dict[str, str],
    tensors: Iterable[tuple[str, Pieces]],
    facts: Callable[[], Mapping[str, str]],
) -> None:
    """The data after room for the header, then the header, whose facts are known only then."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in expected.items():
        nbytes = prod(shape) * ITEMSIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
        if nbytes % LARGEST_ITEM:  # whatever comes next begins where its type may
            padding = LARGEST_ITEM - nbytes % LARGEST_ITEM
            entries[f"{PADDING}{name}"] = {"dtype": "I8", "shape": [padding], "data_offsets": [offset, offset + padding]}
            offset += padding
    room = len(json.dumps(entries)) + FACT_BYTES * (len(entries) + 8)
    room += -room % 64 + 56  # tensors begin at a multiple of 64 bytes
    reserve(file, 8 + room + offset)
    os.lseek(file, 8 + room, os.SEEK_SET)
    for (name, (dtype, shape)), (given, pieces) in zip(expected.items(), tensors, strict=True):
        assert name == given, (name, given)
        known[CHECKSUM + name] = _write_pieces(file, name, dtype, shape, pieces)
        write_all(file, memoryview(bytes(-(prod(shape) * ITEMSIZES[dtype]) % LARGEST_ITEM)))
    text = json.dumps({"__metadata__": known | dict(facts()), **entries}).encode()
    assert len(text) <= room, "more facts than a header has room for"
    os.lseek(file, 0, os.SEEK_SET)
    write_all(file, memoryview(struct.pack("<Q", room) + text.ljust(room)))
    os.fsync(file)


def _write_pieces(file: int, name: str, dtype: str, shape: tuple[int, ...], pieces: Pieces) -> str:
    """Write a tensor and return its checksum."""
    rows, crc = 0, 0
    for piece in (pieces,) if isinstance(pieces, Tensor) else pieces:
        assert (NAMES[piece.dtype], tuple(piece.shape[1:])) == (dtype, shape[1:]), name
        rows, crc = rows + len(piece), zlib.crc32(bytes_of(piece), crc)
        write_all(file, bytes_of(piece))
    assert rows == shape[0], name
    return f"{crc:08x}"


def reserve(file: int, nbytes: int) -> None:
    """Take `nbytes` of disk for an open file now, so that a full disk is an OSError here and not later, where the OS can."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.ftruncate(file, nbytes)


def write_all(file: int, data: memoryview) -> None:
    """Write all of `data`, however often that takes."""
    done = 0
    while done < len(data):
        done += os.write(file, data[done : done + (1 << 26)])


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A new file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        yield file
    finally:
        os.close(file)
