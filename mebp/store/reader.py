"""The store: a model's compressed weights on disk, one safetensors file with its facts in the header, read through mmap.

What the header says is read by header.py. The CRC-32 of a tensor is compared when it is first used. writer.py writes a store.
"""

import mmap
import warnings
import zlib
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mebp.errors import StoreError
from mebp.kernel.weight import PART_TYPES, Frozen
from mebp.models.format import WEIGHTS_FILE
from mebp.store.header import CHECKSUM, CONFIG_FILE, ITEMSIZES, PART_DTYPES, Header, Layout, layout, part_name, read_header

DTYPES = {PART_DTYPES[part]: dtype for part, dtype in PART_TYPES.items()}


class Store:
    """An open store. Tensors are views of the mapped file; nothing is read before its first use, when it is checked."""

    def __init__(self, header: Header, views: dict[str, Tensor]) -> None:
        self.header = header
        self.folder = header.folder
        self.config = header.config
        self.formats = header.formats
        self._matrices = header.config.matrices()
        self.nbytes = header.nbytes
        self.facts = header.facts
        self._views = views
        self._checked: set[str] = set()

    def matrix(self, name: str) -> Frozen:
        """The frozen matrix `name` (such as `3.q`), without its `.weight`."""
        fmt, (_, cols) = self.formats.of(name), self._matrices[name]
        return Frozen(format=fmt, cols=cols, parts={part: self._view(tensor) for part, tensor in self._parts(name)})

    def _parts(self, name: str) -> list[tuple[str, str]]:
        """A matrix's parts, and what their tensors are called."""
        fmt, (_, cols) = self.formats.of(name), self._matrices[name]
        return [(part.name, part_name(name, fmt, part.name)) for part in fmt.parts(cols)]

    def extents(self, name: str) -> list[tuple[int, int, int]]:
        """Where the matrix `name` lies: (offset in the file, bytes, address) of each of its parts."""
        views = [self._views[tensor] for _, tensor in self._parts(name)]
        return [(int(view.storage_offset()) * view.itemsize, view.numel() * view.itemsize, view.data_ptr()) for view in views]

    def vector(self, name: str) -> Tensor:
        """The uncompressed vector `name`, bf16."""
        return self._view(name)

    def _view(self, name: str) -> Tensor:
        """The tensor; StoreError naming it where its bytes are not those that were written."""
        tensor = self._views[name]
        if name not in self._checked:
            if checksum(tensor) != self.facts.get(CHECKSUM + name):
                raise StoreError(
                    f"{self.folder / WEIGHTS_FILE}: tensor {name} is damaged (its checksum differs): write the store again"
                )
            self._checked.add(name)
        return tensor


def open_store(folder: Path) -> Store:
    """Map a store; StoreError in one line where it is missing, cut off, or holds other tensors than its config says."""
    header = read_header(folder)
    return Store(header, _views(header, layout(header.config, header.formats), folder / WEIGHTS_FILE))


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes, eight hexadecimal digits."""
    return f"{zlib.crc32(bytes_of(tensor)):08x}"


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's elements as they lie in memory."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _views(header: Header, expected: Layout, file: Path) -> dict[str, Tensor]:
    """Views of every tensor, each compared with the layout that the config asks for."""
    entries, start, size = header.entries, header.start, header.nbytes
    if set(entries) != set(expected):
        odd = sorted(set(entries) ^ set(expected))[0]
        state = "is missing" if odd in expected else "does not belong there"
        raise StoreError(f"{file}: tensor {odd} {state}: the file does not match the {CONFIG_FILE} next to it")
    mapped = _mapped(file, size)
    found: dict[str, Tensor] = {}
    for name, (dtype, shape) in expected.items():
        entry = entries[name]
        count = prod(shape) * ITEMSIZES[dtype]
        begin = _offset(entry, dtype, shape, count, start)
        if begin is None:
            raise StoreError(f"{file}: tensor {name} should be {dtype} {list(shape)}: write the store again")
        if start + begin + count > size:
            end = start + begin + count
            raise StoreError(f"{file} is cut off: tensor {name} ends at byte {end} of {size}: write the store again")
        found[name] = mapped[start + begin : start + begin + count].view(DTYPES[dtype]).view(shape)
    return found


def _mapped(file: Path, size: int) -> Tensor:
    """The file's bytes, shared and read-only: nobody's private memory, and never written to."""
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ), dtype=torch.int8)


def _offset(entry: Any, dtype: str, shape: tuple[int, ...], count: int, start: int) -> int | None:
    """Where a tensor's `count` bytes begin in the data, if its entry says what the layout asks for."""
    if not isinstance(entry, dict) or entry.get("dtype") != dtype or entry.get("shape") != list(shape):
        return None
    match entry.get("data_offsets"):
        case [int(begin), int(end)] if end - begin == count and begin >= 0 and (start + begin) % ITEMSIZES[dtype] == 0:
            return begin
        case _:
            return None
