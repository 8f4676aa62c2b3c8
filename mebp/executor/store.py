"""The store: a model's compressed weights on disk, one safetensors file with its facts in the header, read through mmap.

    FOLDER/config.json            the model's dimensions, as a ModelConfig
    FOLDER/weights.safetensors    `NAME.codes` int8 and `NAME.steps` bf16 for each matrix, `NAME` bf16 for each vector

The header carries a CRC-32 of every tensor, which is compared when the tensor is first used. Written to a temporary file in the
same folder and renamed when whole, so that a full disk leaves nothing half-written.
"""

import json
import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mebp.errors import StoreError
from mebp.executor.packing import pack_codes
from mebp.models.config import ModelConfig
from mebp.models.format import STORE_VERSION, WeightFormat, weight_format

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
CHECKSUM = "crc32 "  # key of a tensor's checksum among the facts of the header, before its name
FACT_BYTES = 128  # of header kept for the facts of one tensor
DTYPES = {"I8": torch.int8, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ITEMSIZES = {"I8": 1, "BF16": 2}
SYNTHETIC_STD = 0.02
SYNTHETIC_PEAK = 2.4  # largest of 64 normal draws, in standard deviations

Layout = dict[str, tuple[str, tuple[int, ...]]]
Pieces = Tensor | Iterator[Tensor]  # a tensor, whole or some of its rows at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """One frozen matrix as it is stored: codes (rows, bytes) and steps (rows, groups), or bf16 weights as codes, no steps."""

    codes: Tensor
    steps: Tensor | None
    format: WeightFormat


class Store:
    """An open store. Tensors are views of the mapped file; nothing is read until it is asked for, and then it is checked once."""

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
        if not self.format.packed:
            return Frozen(codes=self._view(name), steps=None, format=self.format)
        return Frozen(codes=self._view(f"{name}.codes"), steps=self._view(f"{name}.steps"), format=self.format)

    def extents(self, name: str) -> list[tuple[int, int, int]]:
        """Where the matrix `name` lies: (offset in the file, bytes, address) of its codes and of its steps."""
        names = [f"{name}.codes", f"{name}.steps"] if self.format.packed else [name]
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
        own = (self.config.matrices(), self.config.vectors())
        if own != (config.matrices(), config.vectors()):
            raise StoreError(f"store {self.folder} holds {self.config.name}, not {config.name}: name the store of that model")
        if fmt != self.format:
            raise StoreError(
                f"store {self.folder} is in {self.format.name}, not {fmt.name}: plan with --weights {self.format.name}"
            )


def layout(config: ModelConfig, fmt: WeightFormat) -> Layout:
    """Names, types and shapes of all that a store of `config` in `fmt` holds, in file order."""
    found: Layout = {}
    for name, (rows, cols) in config.matrices().items():
        fmt.require_fits(name, cols)
        if fmt.packed:
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
    fmt = weight_format(str(facts.get("format")))
    views = _views(header, layout(config, fmt), start, size, file)
    return Store(folder, config, fmt, views, size, facts)


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes, eight hexadecimal digits."""
    return f"{zlib.crc32(_bytes(tensor)):08x}"


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _read_config(folder: Path) -> ModelConfig:
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        return TypeAdapter(ModelConfig).validate_json(text)
    except OSError as error:
        raise StoreError(f"no store at {folder}: {error.strerror}: write one with `mebp-plan synthesize`") from None
    except (ValidationError, UnicodeDecodeError):
        raise StoreError(f"{folder / CONFIG_FILE} is not a store's config: write a store with `mebp-plan synthesize`") from None


def _read_header(prefix: bytes, read: Callable[[int], bytes], size: int, file: Path) -> tuple[dict[str, Any], int]:
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > size - 8:
        raise StoreError(f"{file} is cut off: its header alone should take {length} of {size} bytes")
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
        raise StoreError(f"{file}: tensor {odd} {state}: the file does not match {CONFIG_FILE} beside it")
    mapped = _mapped(file, size)
    found: dict[str, Tensor] = {}
    for name, (dtype, shape) in expected.items():
        entry = header[name]
        count = _count(shape) * ITEMSIZES[dtype]
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


def write_store(
    folder: Path,
    config: ModelConfig,
    fmt: WeightFormat,
    tensors: Iterable[tuple[str, Pieces]],
    facts: Callable[[], Mapping[str, str]] = dict,
) -> Path:
    """Write a store tensor by tensor, in layout order, never more than one held; refuses to overwrite.

    `facts` is asked for, once all is written, what the header is to say beside the format: one short entry a tensor at most.
    Raises StoreError naming the folder where it exists already, cannot be written, or the disk is full.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if os.path.lexists(folder / name):
            kind = "a store already" if name == WEIGHTS_FILE else f"a {CONFIG_FILE} already"
            raise StoreError(f"{folder} holds {kind}: remove it or name another folder")
    made = not os.path.lexists(folder)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _replacing(folder / CONFIG_FILE) as file:
            _write_all(file, memoryview(TypeAdapter(ModelConfig).dump_json(config)))
        written.append(folder / CONFIG_FILE)
        with _replacing(folder / WEIGHTS_FILE) as file:
            _write_tensors(file, layout(config, fmt), fmt, tensors, facts)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError):
            raise StoreError(f"cannot write store {folder}: {error.strerror or error}: name another folder") from None
        raise
    return folder


def _write_tensors(
    file: int,
    expected: Layout,
    fmt: WeightFormat,
    tensors: Iterable[tuple[str, Pieces]],
    facts: Callable[[], Mapping[str, str]],
) -> None:
    """The data after room for the header, then the header, whose facts are known only then."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in expected.items():
        nbytes = _count(shape) * ITEMSIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    room = len(json.dumps(entries)) + FACT_BYTES * (len(entries) + 8)
    room += -room % 64 + 56  # tensors begin at a multiple of 64 bytes
    reserve(file, 8 + room + offset)
    os.lseek(file, 8 + room, os.SEEK_SET)
    known = {"mebp_store": STORE_VERSION, "format": fmt.name}
    for (name, (dtype, shape)), (given, pieces) in zip(expected.items(), tensors, strict=True):
        assert name == given, (name, given)
        known[CHECKSUM + name] = _write_pieces(file, name, dtype, shape, pieces)
    text = json.dumps({"__metadata__": known | dict(facts()), **entries}).encode()
    assert len(text) <= room, "more facts than a header has room for"
    os.lseek(file, 0, os.SEEK_SET)
    _write_all(file, memoryview(struct.pack("<Q", room) + text.ljust(room)))
    os.fsync(file)


def _write_pieces(file: int, name: str, dtype: str, shape: tuple[int, ...], pieces: Pieces) -> str:
    """Write a tensor and return its checksum."""
    rows, crc = 0, 0
    for piece in (pieces,) if isinstance(pieces, Tensor) else pieces:
        assert (NAMES[piece.dtype], tuple(piece.shape[1:])) == (dtype, shape[1:]), name
        rows, crc = rows + len(piece), zlib.crc32(_bytes(piece), crc)
        _write_all(file, _bytes(piece))
    assert rows == shape[0], name
    return f"{crc:08x}"


def reserve(file: int, nbytes: int) -> None:
    """Take `nbytes` of disk for an open file now, so that a full disk is an OSError here and not later, where the OS can."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.ftruncate(file, nbytes)


def _write_all(file: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.write(file, data[done : done + (1 << 26)])


@contextmanager
def _replacing(target: Path) -> Iterator[int]:
    """A new file beside `target` that takes its name when all is written, and goes away when anything fails."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            yield file
        finally:
            os.close(file)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def synthesize(
    folder: Path,
    config: ModelConfig,
    fmt: WeightFormat,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a store of random weights: normal with standard deviation 0.02, quantised as real ones would be, norms at 1.

    Codes are drawn from the distribution that quantised normal weights have, so that unpacked weights have that deviation.
    """
    total = sum(_count(shape) for _, shape in layout(config, fmt).values())
    generator = torch.Generator().manual_seed(seed)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        done = 0
        table = _code_table(fmt, generator) if fmt.packed else None
        for name, (_, shape) in layout(config, fmt).items():
            yield name, _synthetic(name, shape, config, fmt, table, generator)
            done += _count(shape)
            if progress:
                progress(done, total)

    return write_store(folder, config, fmt, tensors())


def _code_table(fmt: WeightFormat, generator: torch.Generator) -> Tensor:
    """256 packed bytes whose codes are distributed as those of normal weights."""
    qmax = 2 ** (fmt.bits - 1) - 1
    count = 8 // fmt.bits
    draws = torch.randn(256, count, generator=generator) * (qmax / SYNTHETIC_PEAK)
    codes = draws.round().clamp(-qmax, qmax).to(torch.int8)
    return pack_codes(codes, fmt).view(-1)


def _synthetic(
    name: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    fmt: WeightFormat,
    table: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    if name.endswith(".codes"):
        assert table is not None
        draws = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        codes = table.numpy()[draws.numpy()]
        packed: Tensor = torch.from_numpy(codes)
        return packed
    if name.endswith(".steps"):
        qmax = max(1, 2 ** (fmt.bits - 1) - 1)
        step = SYNTHETIC_STD * SYNTHETIC_PEAK / qmax / float(2 ** (8 - fmt.bits))
        varied = torch.rand(shape, generator=generator).mul_(0.4 * step).add_(0.8 * step)
        return varied.to(torch.bfloat16)
    if len(shape) == 2:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=SYNTHETIC_STD, generator=generator)
    if name.endswith("_bias"):
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=SYNTHETIC_STD, generator=generator)
    return torch.full(shape, 1.0 - config.norm_offset, dtype=torch.bfloat16)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
