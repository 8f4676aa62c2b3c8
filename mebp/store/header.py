"""What a store says of itself, read without its weights: the model, the format, and where every tensor lies.

    FOLDER/config.json            the model's dimensions, as a ModelConfig
    FOLDER/weights.safetensors    `NAME.codes`, `NAME.scales` and so on for each matrix, a tensor for each part of its format
                                  (`NAME` bf16 where it is not compressed), and `NAME` bf16 for each vector

The header carries a CRC-32 of every tensor and the hash of all in the config that changes what is computed.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mebp.errors import InputError, StoreError
from mebp.models.config import ModelConfig, first_difference
from mebp.models.format import STORE_VERSION, WEIGHTS_FILE, PartType, WeightFormat, WeightFormats, weight_formats
from mebp.text import read_text

CONFIG_FILE = "config.json"
CHECKSUM = "crc32 "  # key of a tensor's checksum among the facts of the header, before its name
PADDING = "padding after "  # name of the bytes behind a tensor that ends where the next one may not begin, before its own
MATHEMATICS = "mathematics"  # key of the hash of all in the config that changes what is computed
ITEMSIZES = {"I8": 1, "U8": 1, "BF16": 2, "F16": 2}
PART_DTYPES: dict[PartType, str] = {"int8": "I8", "uint8": "U8", "bf16": "BF16", "fp16": "F16"}

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A store's model and formats, its facts by key, an entry for each tensor, where the data begins and the bytes of the file."""

    folder: Path
    config: ModelConfig
    formats: WeightFormats
    facts: Mapping[str, str]
    entries: Mapping[str, Any]
    start: int
    nbytes: int

    def require_model(self, config: ModelConfig, formats: WeightFormats) -> None:
        """Refuse a store of another model or of other formats."""
        if self.config.mathematics != config.mathematics:
            where = first_difference(self.config, config)
            raise StoreError(
                f"store {self.folder} holds {self.config.name}, not {config.name} ({where}): name the store of that model"
            )
        if any(formats.of(name) != self.formats.of(name) for name in config.matrices()):
            raise StoreError(
                f"store {self.folder} is in {self.formats.name}, not {formats.name}: plan with `weights` {self.formats.name}"
            )


def layout(config: ModelConfig, formats: WeightFormats) -> Layout:
    """Names, types and shapes of all that a store of `config` in `formats` holds, in file order."""
    found: Layout = {}
    for name, (rows, cols) in config.matrices().items():
        formats.require_fits(name, cols)
        fmt = formats.of(name)
        for part in fmt.parts(cols):
            found[part_name(name, fmt, part.name)] = (PART_DTYPES[part.dtype], (rows, part.per_row))
    return found | {name: ("BF16", (length,)) for name, length in config.vectors().items()}


def part_name(name: str, fmt: WeightFormat, part: str) -> str:
    """What a store calls a part of the matrix `name`."""
    return f"{name}.{part}" if fmt.compressed else name


def read_header(folder: Path) -> Header:
    """Read what a store says of itself; StoreError in one line where it is missing, cut off, or was not written by this program."""
    file = folder / WEIGHTS_FILE
    config = _read_config(folder)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            entries, start = _read_entries(opened.read(8), opened.read, size, file)
    except OSError as error:
        raise StoreError(f"cannot read store {folder}: {error.strerror}: write one with `mebp-plan synthesize`") from None
    facts = entries.pop("__metadata__", {})
    if not isinstance(facts, dict) or facts.get("mebp_store") != STORE_VERSION:
        version = facts.get("mebp_store") if isinstance(facts, dict) else None
        whose = "by another version of mebp-plan" if version else "by something other than mebp-plan"
        raise StoreError(f"{file} was written {whose}: write the store again")
    if facts.get(MATHEMATICS) != config.mathematics:
        raise StoreError(f"{folder / CONFIG_FILE} is not the one that the store was written with: write the store again")
    return Header(
        folder=folder,
        config=config,
        formats=_formats_of(facts, file),
        facts=facts,
        entries={name: entry for name, entry in entries.items() if not name.startswith(PADDING)},
        start=start,
        nbytes=size,
    )


def _formats_of(facts: dict[str, Any], file: Path) -> WeightFormats:
    try:
        return weight_formats(str(facts.get("formats")))
    except InputError as error:
        raise StoreError(f"{file}: {error}: write the store again") from None


def _read_config(folder: Path) -> ModelConfig:
    try:
        text = read_text(folder / CONFIG_FILE)
        return TypeAdapter(ModelConfig).validate_json(text)
    except OSError as error:
        raise StoreError(f"no store at {folder}: {error.strerror}: write one with `mebp-plan synthesize`") from None
    except (ValidationError, UnicodeDecodeError):
        raise StoreError(f"{folder / CONFIG_FILE} is not a store's config: write a store with `mebp-plan synthesize`") from None


def _read_entries(prefix: bytes, read: Callable[[int], bytes], size: int, file: Path) -> tuple[dict[str, Any], int]:
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > size - 8:
        raise StoreError(f"{file} is cut off: its header takes {length} of {size} bytes: remove the folder and write it again")
    try:
        header = json.loads(read(length))
    except (ValueError, RecursionError):
        raise StoreError(f"{file} is not a safetensors file: write a store with `mebp-plan synthesize`") from None
    if not isinstance(header, dict):
        raise StoreError(f"{file} is not a safetensors file: write a store with `mebp-plan synthesize`")
    return header, 8 + length
