"""The store: a model's compressed weights on disk, one safetensors file with its facts in the header, read through mmap.

    FOLDER/config.json            the model's dimensions, as a ModelConfig
    FOLDER/weights.safetensors    `NAME.codes` int8 and `NAME.steps` bf16 for each matrix, `NAME` bf16 for each vector

The header carries a CRC-32 of every tensor, which is compared when the tensor is first used. writer.py writes a store.
"""

import json
import mmap
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mebp.errors import StoreError
from mebp.models.config import ModelConfig, first_difference
from mebp.models.format import STORE_VERSION, WEIGHTS_FILE, WeightFormat, weight_format
from mebp.text import read_text

CONFIG_FILE = "config.json"
CHECKSUM = "crc32 "  # key of a tensor's checksum among the facts of the header, before its name
PADDING = "padding after "  # name of the bytes behind a tensor that ends where the next one may not begin, before its own
MATHEMATICS = "mathematics"  # key of the hash of all in the config that changes what is computed
DTYPES = {"I8": torch.int8, "BF16": torch.bfloat16}
ITEMSIZES = {"I8": 1, "BF16": 2}

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """One frozen matrix as it is stored: codes (rows, bytes) and steps (rows, groups), or bf16 weights as codes, no steps."""

    codes: Tensor
    steps: Tensor | None
    format: WeightFormat

    def copy(self) -> "Frozen":
        """The same matrix in memory of the process's own."""
        steps = None if self.steps is None else self.steps.clone()
        return Frozen(codes=self.codes.clone(), steps=steps, format=self.format)


class Store:
    """An open store. Tensors are views of the mapped file; nothing is read before its first use, when it is checked."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        fmt: WeightFormat,
        views: dict[str, Tensor],
        nbytes: int,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.format = fmt
        self.nbytes = nbytes
        self._views = views
        self.facts = dict(facts or {})
        self._checked: set[str] = set()

    def matrix(self, name: str) -> Frozen:
        """The frozen matrix `name` (such as `3.q`), without its `.weight`."""
        if not self.format.compressed:
            return Frozen(codes=self._view(name), steps=None, format=self.format)
        return Frozen(codes=self._view(f"{name}.codes"), steps=self._view(f"{name}.steps"), format=self.format)

    def extents(self, name: str) -> list[tuple[int, int, int]]:
        """Where the matrix `name` lies: (offset in the file, bytes, address) of its codes and of its steps."""
        names = [f"{name}.codes", f"{name}.steps"] if self.format.compressed else [name]
        views = [self._views[part] for part in names]
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

    def require_model(self, config: ModelConfig, fmt: WeightFormat) -> None:
        """Refuse a store of another model or another format."""
        if self.config.mathematics != config.mathematics:
            name = first_difference(self.config, config)
            raise StoreError(
                f"store {self.folder} holds {self.config.name}, not {config.name} ({name}): name the store of that model"
            )
        if fmt != self.format:
            raise StoreError(
                f"store {self.folder} is in {self.format.name}, not {fmt.name}: plan with `weights` {self.format.name}"
            )


def layout(config: ModelConfig, fmt: WeightFormat) -> Layout:
    """Names, types and shapes of all that a store of `config` in `fmt` holds, in file order."""
    found: Layout = {}
    for name, (rows, cols) in config.matrices().items():
        fmt.require_fits(name, cols)
        if fmt.compressed:
            found[f"{name}.codes"] = ("I8", (rows, cols * fmt.bits // 8))
            found[f"{name}.steps"] = ("BF16", (rows, cols // fmt.group_cols(cols)))
        else:
            found[name] = ("BF16", (rows, cols))
    return found | {name: ("BF16", (length,)) for name, length in config.vectors().items()}


def open_store(folder: Path) -> Store:
    """Map a store; StoreError in one line where it is missing, cut off, or holds other tensors than its config says."""
    file = folder / WEIGHTS_FILE
    config = _read_config(folder)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            header, start = _read_header(opened.read(8), opened.read, size, file)
    except OSError as error:
        raise StoreError(f"cannot read store {folder}: {error.strerror}: write one with `mebp-plan synthesize`") from None
    facts = header.pop("__metadata__", {})
    if not isinstance(facts, dict) or facts.get("mebp_store") != STORE_VERSION:
        raise StoreError(f"{file} was not written by mebp-plan: write a store with `mebp-plan synthesize`")
    if facts.get(MATHEMATICS) != config.mathematics:
        raise StoreError(f"{folder / CONFIG_FILE} is not the one that the store was written with: write the store again")
    fmt = weight_format(str(facts.get("format")))
    header = {name: entry for name, entry in header.items() if not name.startswith(PADDING)}
    views = _views(header, layout(config, fmt), start, size, file)
    return Store(folder, config, fmt, views, size, facts)


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes, eight hexadecimal digits."""
    return f"{zlib.crc32(bytes_of(tensor)):08x}"


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's elements as they lie in memory."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _read_config(folder: Path) -> ModelConfig:
    try:
        text = read_text(folder / CONFIG_FILE)
        return TypeAdapter(ModelConfig).validate_json(text)
    except OSError as error:
        raise StoreError(f"no store at {folder}: {error.strerror}: write one with `mebp-plan synthesize`") from None
    except (ValidationError, UnicodeDecodeError):
        raise StoreError(f"{folder / CONFIG_FILE} is not a store's config: write a store with `mebp-plan synthesize`") from None


def _read_header(prefix: bytes, read: Callable[[int], bytes], size: int, file: Path) -> tuple[dict[str, Any], int]:
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > size - 8:
        raise StoreError(f"{file} is cut off: its header takes {length} of {size} bytes: remove the folder and write it again")
    try:
        header = json.loads(read(length))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise StoreError(f"{file} is not a safetensors file: write a store with `mebp-plan synthesize`") from None
    if not isinstance(header, dict):
        raise StoreError(f"{file} is not a safetensors file: write a store with `mebp-plan synthesize`")
    return header, 8 + length


def _views(header: dict[str, Any], expected: Layout, start: int, size: int, file: Path) -> dict[str, Tensor]:
    """Views of every tensor, each compared with the layout that the config asks for."""
    if set(header) != set(expected):
        odd = sorted(set(header) ^ set(expected))[0]
        state = "is missing" if odd in expected else "does not belong there"
        raise StoreError(f"{file}: tensor {odd} {state}: the file does not match the {CONFIG_FILE} next to it")
    mapped = _mapped(file, size)
    found: dict[str, Tensor] = {}
    for name, (dtype, shape) in expected.items():
        entry = header[name]
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
