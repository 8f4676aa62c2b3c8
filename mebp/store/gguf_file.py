"""A GGUF file as a source of weights: the model's dimensions from its metadata, and its matrices as they are stored.

Blocks of Q4_0, Q4_1, Q8_0, Q4_K and Q6_K are taken apart, not quantised again: unpacked, they are what gguf's own reading makes of
them, bit for bit. Other types are unpacked, and quantised anew. Nothing of the file is executed.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from torch import Tensor

from mebp.errors import ModelError
from mebp.kernel.weight import Frozen, plain
from mebp.models.config import ModelConfig
from mebp.models.format import FORMATS, WeightFormat
from mebp.models.huggingface import config_from_dict, plain_config
from mebp.store.gguf_block import AS_THEY_ARE
from mebp.store.gguf_config import LONG, MODEL_TYPES, PERMUTED, ROPE_FACTORS, SHORT, config_fields, gguf_locations
from mebp.store.tokenizer import Files, of_gguf
from mebp.text import shortened

PIECE_WEIGHTS = 1 << 21  # of a matrix at a time
FLOATS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
VERSIONS = (2, 3)  # of the file format
LARGEST_VERSION = 1 << 16  # of the file format; read from the wrong end it is larger


class GgufFile:
    """What is read of a GGUF file; ModelError in one line for one that is damaged, or of a model that is not known."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._reader = _opened(file)
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture = str(self._field("general.architecture") or "")
        self.config, self._fields = self._read_config()
        self.shapes = self.config.shapes()
        self._locations = gguf_locations(self.config, self.architecture)
        self._see: Callable[[memoryview], object] = len
        for name, shape in self.shapes.items():
            self._require_shape(name, shape)
            self._require_readable(name)
        self._refuse_others()
        self._require_apart()

    def tokenizer(self) -> Files:
        """The files of a tokenizer made of the metadata."""
        try:
            return of_gguf(self._field)
        except ModelError as error:
            raise ModelError(f"{self.file}: {error}") from None

    def float_type(self, name: str) -> torch.dtype:
        """The type of a tensor that is not quantised; bf16 of one that is."""
        return FLOATS.get(self._tensor(name).tensor_type, torch.bfloat16)

    def hf_config(self) -> Mapping[str, object]:
        """The config.json that the metadata stand for."""
        ids = {f"{name}_token_id": self._field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        return plain_config(self._fields, self.config) | {name: token for name, token in ids.items() if token is not None}

    def watch(self, see: Callable[[memoryview], object]) -> None:
        """Show `see` every byte that is read."""
        self._see = see

    def stored(self, name: str) -> WeightFormat | None:
        """The format that a matrix is in already; None where it has to be quantised."""
        kind = self._tensor(name).tensor_type
        return FORMATS["bf16"] if kind is Type.BF16 else AS_THEY_ARE[kind][0] if kind in AS_THEY_ARE else None

    def type_name(self, name: str) -> str | None:
        """What the file calls the format of a quantised matrix."""
        kind = self._tensor(name).tensor_type
        return None if kind in FLOATS else str(kind.name)

    def frozen(self, name: str) -> Iterator[Frozen]:
        """A matrix as it is stored, some rows at a time."""
        kind, cols = self._tensor(name).tensor_type, self.shapes[name][1]
        for raw in self._pieces(name):
            if kind is Type.BF16:
                yield plain(torch.from_numpy(raw.view(np.int16).copy()).view(torch.bfloat16))
                continue
            fmt, nbytes, take_apart = AS_THEY_ARE[kind]
            yield Frozen(format=fmt, cols=cols, parts=take_apart(raw.reshape(len(raw), -1, nbytes)))

    def rows(self, name: str) -> Iterator[Tensor]:
        """A tensor in single precision, some rows at a time."""
        kind, is_norm = self._tensor(name).tensor_type, name.endswith(("norm", "norm1", "norm2"))
        for raw in self._pieces(name):
            values = torch.from_numpy(dequantize(raw, kind).astype(np.float32))
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"{self.file}: tensor {self._name(name)} holds values that are not finite: copy the file again")
            yield values - self.config.norm_offset if is_norm else values  # llama.cpp adds it to Gemma's norms

    def _pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """Rows as they lie in the file, some at a time, in the order of the checkpoint that it was made of."""
        location, shape = self._locations[name], self.shapes[name]
        data, order = self._tensor(name).data[location.first : location.first + shape[0]], self._row_order(name)
        step = max(1, PIECE_WEIGHTS // shape[-1]) if len(shape) == 2 else shape[0]
        for start in range(0, len(data), step):
            piece = np.ascontiguousarray(data[start : start + step] if order is None else data[order[start : start + step]])
            self._see(piece.reshape(-1).view(np.uint8).data)
            yield piece

    def _row_order(self, name: str) -> NDArray[np.int64] | None:
        """Which row of the file each row of a tensor is, where they differ: llama.cpp permutes q and k of some architectures."""
        part = name.rpartition(".")[2].removesuffix("_bias")
        if self.architecture not in PERMUTED or part not in ("q", "k"):
            return None
        heads = self.config.num_heads if part == "q" else self.config.num_kv_heads
        rows = np.arange(self.shapes[name][0]).reshape(heads, -1, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    def _name(self, name: str) -> str:
        return self._locations[name].tensor

    def _tensor(self, name: str) -> ReaderTensor:
        theirs = self._name(name)
        if theirs not in self._tensors:
            raise ModelError(f"{self.file}: tensor {theirs} is missing: the file is no whole {self.architecture} model")
        return self._tensors[theirs]

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found, expected = _shape(self._tensor(name)), (self._locations[name].total, *shape[1:])
        if found != expected:
            raise ModelError(
                f"{self.file}: tensor {self._name(name)} has shape {list(found)}, its metadata asks for {list(expected)}"
            )

    def _require_readable(self, name: str) -> None:
        """Refuse a tensor of a type that gguf cannot unpack."""
        tensor = self._tensor(name)
        if tensor.tensor_type in AS_THEY_ARE or tensor.tensor_type in FLOATS:
            return
        try:
            dequantize(tensor.data[:1], tensor.tensor_type)
        except (NotImplementedError, KeyError, ValueError, TypeError):
            kind = tensor.tensor_type.name
            raise ModelError(
                f"{self.file}: tensor {tensor.name} is in {kind}, which is not read: take another quantisation"
            ) from None

    def _require_apart(self) -> None:
        """Refuse tensors that share bytes."""
        ordered = sorted(self._tensors.values(), key=lambda tensor: int(tensor.data_offset))
        for one, other in pairwise(ordered):
            if one.data_offset + one.n_bytes > other.data_offset:
                raise ModelError(f"{self.file}: tensors {one.name} and {other.name} share bytes: copy the file again")

    def _refuse_others(self) -> None:
        known = {location.tensor for location in self._locations.values()} | {ROPE_FACTORS, LONG, SHORT}
        other = next((name for name in self._tensors if name not in known), None)
        if other is not None:
            raise ModelError(f"{self.file}: tensor {shortened(other)} does not belong to a {self.config.family} model")

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (UnicodeDecodeError, IndexError, ValueError):
            raise ModelError(f"{self.file}: its metadata {shortened(key)} cannot be read: copy the file again") from None

    def _read_config(self) -> tuple[ModelConfig, dict[str, Any]]:
        """The config.json that these metadata stand for, read as one, and its fields."""
        where = self.architecture
        if where not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise ModelError(f"{self.file}: architecture {shortened(repr(where))} is not known here: {known}")
        if "token_embd.weight" not in self._tensors:
            raise ModelError(f"{self.file}: tensor token_embd.weight is missing: the file is no whole model")
        shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        factors = {name: self._tensors[name].data.tolist() for name in (ROPE_FACTORS, LONG, SHORT) if name in self._tensors}
        if (LONG in factors) != (SHORT in factors):
            raise ModelError(f"{self.file}: {LONG} and {SHORT} belong together, and one is missing: copy the file again")
        try:
            fields = config_fields(where, lambda key: self._field(f"{where}.{key}"), shapes, factors)
        except (TypeError, ZeroDivisionError):
            raise ModelError(f"{self.file}: its metadata lack dimensions of a {where} model: copy it again") from None
        given = {name: value for name, value in fields.items() if value is not None or name == "sliding_window"}
        if where == "gemma2" and given["sliding_window"] is None:
            del given["sliding_window"]  # the family's own
        name = str(self._field("general.name") or self.file.stem)
        config = config_from_dict(given, name=shortened(name.replace(" ", "-")), source=str(self.file))
        if ROPE_FACTORS in factors:
            self._require_llama3(config, factors[ROPE_FACTORS])
        return config, given

    def _require_llama3(self, config: ModelConfig, factors: list[float]) -> None:
        """Refuse factors that are not what Llama 3's scaling makes of their largest."""
        expected = config.rope.llama3_factors(config.head_dim)
        if len(factors) != len(expected) or not np.allclose(expected, factors, rtol=1e-3):
            raise ModelError(f"{self.file}: {ROPE_FACTORS} is of a scaling that is not known here: only Llama 3's is")


def _opened(file: Path) -> GGUFReader:
    try:
        with file.open("rb") as opened:
            (version,) = struct.unpack("<4xI", opened.read(8))
        if version >= LARGEST_VERSION:
            raise ModelError(f"{file} is a big-endian GGUF file, which is not read: convert it to little-endian")
        if version not in VERSIONS:
            raise ModelError(f"{file} is a GGUF file of version {version}: versions {' and '.join(map(str, VERSIONS))} are read")
        return GGUFReader(file)
    except ModelError:
        raise
    except Exception as error:
        said = shortened(str(error) or type(error).__name__)
        raise ModelError(f"{file} cannot be read as GGUF, it is cut off or damaged ({said}): copy it again") from None


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """(rows, cols), or (length,)."""
    return tuple(int(extent) for extent in reversed(tensor.shape))
