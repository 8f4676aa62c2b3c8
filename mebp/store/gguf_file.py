"""A GGUF file as a source of weights: the model's dimensions from its metadata, and its matrices as they are stored.

Blocks of Q4_0, Q4_1, Q8_0, Q4_K and Q6_K are taken apart, not quantised again: unpacked, they are what gguf's own reading makes of
them, bit for bit. Other types are unpacked, and quantised anew. Nothing of the file is executed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from torch import Tensor

from mebp.errors import ModelError
from mebp.kernel.weight import Frozen, plain
from mebp.models.config import ModelConfig
from mebp.models.format import BLOCK_OFFSETS, BLOCK_SCALES, CODES, FORMATS, OFFSETS, SCALES, WeightFormat
from mebp.models.huggingface import config_from_dict
from mebp.store.codec import code_parts, join_codes
from mebp.text import shortened

PIECE_WEIGHTS = 1 << 21  # of a matrix at a time
Blocks = NDArray[np.uint8]  # (rows, blocks, bytes of one)
Type = GGMLQuantizationType
NAMES = {"embedding": "token_embd", "head": "output", "final_norm": "output_norm"}
PARTS = {
    **{"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"},
    **{"norm1": "attn_norm", "norm2": "ffn_norm", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"},
    **{"post_attention_norm": "post_attention_norm", "post_ffn_norm": "post_ffw_norm"},
}
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
PERMUTED = "llama"  # whose q and k llama.cpp stores with the two halves of a head's rows interleaved
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of every Llama 3.x


class GgufFile:
    """What is read of a GGUF file; ModelError in one line for one that is damaged, or of a model that is not known."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._reader = _opened(file)
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = str(self._field("general.architecture", ""))
        self.config = self._read_config()
        self.shapes: dict[str, tuple[int, ...]] = {
            **self.config.matrices(),
            **{name: (length,) for name, length in self.config.vectors().items()},
        }
        self._see: Callable[[memoryview], object] = len
        for name, shape in self.shapes.items():
            self._require_shape(name, shape)
        self._require_finished()

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
        kind = self._tensor(name).tensor_type
        for raw in self._pieces(name):
            values = torch.from_numpy(dequantize(raw, kind).astype(np.float32))
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"{self.file}: tensor {self._name(name)} holds values that are not finite: copy the file again")
            if len(self.shapes[name]) == 1:
                values = values[0] - self.config.norm_offset  # llama.cpp adds it to Gemma's norms
            yield values

    def _pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """Rows as they lie in the file, some at a time, in the order of the checkpoint that it was made of."""
        data = self._tensor(name).data
        if data.ndim == 1:
            data = data[None]
        order = self._row_order(name)
        step = max(1, PIECE_WEIGHTS // self.shapes[name][-1])
        for start in range(0, len(data), step):
            piece = np.ascontiguousarray(data[start : start + step] if order is None else data[order[start : start + step]])
            self._see(piece.reshape(-1).view(np.uint8).data)
            yield piece

    def _row_order(self, name: str) -> NDArray[np.int64] | None:
        """Which row of the file each row of a matrix is, where they differ: llama.cpp permutes q and k of one architecture."""
        part = name.rpartition(".")[2]
        if self._architecture != PERMUTED or part not in ("q", "k"):
            return None
        heads = self.config.num_heads if part == "q" else self.config.num_kv_heads
        rows = np.arange(self.shapes[name][0]).reshape(heads, -1, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    def _name(self, name: str) -> str:
        layer, _, part = name.rpartition(".")
        if not layer:
            return f"{NAMES[name]}.weight"
        bias = part.endswith("_bias")
        return f"blk.{layer}.{PARTS[part.removesuffix('_bias')]}.{'bias' if bias else 'weight'}"

    def _tensor(self, name: str) -> ReaderTensor:
        theirs = self._name(name)
        if theirs not in self._tensors:
            raise ModelError(f"{self.file}: tensor {theirs} is missing: the file is no whole {self._architecture} model")
        return self._tensors[theirs]

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found = tuple(int(extent) for extent in reversed(self._tensor(name).shape))
        if found != shape:
            raise ModelError(f"{self.file}: tensor {self._name(name)} has shape {list(found)}, its metadata ask for {list(shape)}")

    def _require_finished(self) -> None:
        known = {self._name(name) for name in self.shapes} | {ROPE_FACTORS}
        other = next((name for name in self._tensors if name not in known), None)
        if other is not None:
            raise ModelError(f"{self.file}: tensor {shortened(other)} does not belong to a {self.config.family} model")

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def _read_config(self) -> ModelConfig:
        """The config.json that these metadata stand for, read as one."""
        where = self._architecture
        if where not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise ModelError(f"{self.file}: architecture {shortened(repr(where))} is not known here: {known}")
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelError(f"{self.file}: tensor token_embd.weight is missing: the file is no whole model")
        fields = {
            "hidden_size": self._field(f"{where}.embedding_length"),
            "intermediate_size": self._field(f"{where}.feed_forward_length"),
            "num_hidden_layers": self._field(f"{where}.block_count"),
            "num_attention_heads": self._field(f"{where}.attention.head_count"),
            "num_key_value_heads": self._field(f"{where}.attention.head_count_kv"),
            "head_dim": self._field(f"{where}.attention.key_length") or self._field(f"{where}.rope.dimension_count"),
            "rms_norm_eps": self._field(f"{where}.attention.layer_norm_rms_epsilon"),
            "sliding_window": self._field(f"{where}.attention.sliding_window") if where == "gemma3" else None,
            "rope_theta": self._field(f"{where}.rope.freq_base"),
            "rope_scaling": self._rope_scaling(),
            "vocab_size": int(embedding.shape[1]),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "model_type": MODEL_TYPES[where],
            "num_experts": self._field(f"{where}.expert_count"),
        }
        given = {name: value for name, value in fields.items() if value is not None}
        name = str(self._field("general.name", "") or self.file.stem)
        return config_from_dict(given, name=shortened(name.replace(" ", "-")), source=str(self.file))

    def _rope_scaling(self) -> dict[str, Any] | None:
        factors = self._tensors.get(ROPE_FACTORS)
        if factors is not None:
            return {"rope_type": "llama3", "factor": float(factors.data.max()), **LLAMA3}
        kind = self._field(f"{self._architecture}.rope.scaling.type")
        if kind in (None, "none"):
            return None
        return {"rope_type": kind, "factor": self._field(f"{self._architecture}.rope.scaling.factor")}


def _opened(file: Path) -> GGUFReader:
    try:
        reader = GGUFReader(file)
    except Exception as error:
        raise ModelError(
            f"{file} cannot be read as GGUF ({shortened(str(error) or type(error).__name__)}): copy it again"
        ) from None
    if reader.endianess is not GGUFEndian.LITTLE:
        raise ModelError(f"{file} is a big-endian GGUF file, which is not read: convert it to little-endian")
    return reader


def _half(values: Blocks) -> Tensor:
    """16-bit floats, (rows, blocks)."""
    return torch.from_numpy(values.copy().view(np.float16)[..., 0])


def _nibbles(bytes_of: Blocks) -> NDArray[np.uint8]:
    """(rows, blocks, chunks, n) bytes: the low halves of a chunk's bytes, then their high halves, (rows, blocks x chunks x 2n)."""
    return np.concatenate([bytes_of & 15, bytes_of >> 4], axis=-1).reshape(len(bytes_of), -1)


def _codes(codes: NDArray[Any], bits: int) -> Tensor:
    return join_codes(torch.from_numpy(codes.astype(np.int8)), bits)


def _q4_0(blocks: Blocks) -> dict[str, Tensor]:
    codes = _nibbles(blocks[:, :, None, 2:]).astype(np.int8) - 8
    return {CODES: _codes(codes, 4), SCALES: _half(blocks[..., :2])}


def _q4_1(blocks: Blocks) -> dict[str, Tensor]:
    codes = _nibbles(blocks[:, :, None, 4:])
    return {CODES: _codes(codes, 4), SCALES: _half(blocks[..., :2]), OFFSETS: _half(blocks[..., 2:4])}


def _q8_0(blocks: Blocks) -> dict[str, Tensor]:
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(len(blocks), -1)
    return {CODES: torch.from_numpy(codes), SCALES: _half(blocks[..., :2])}


def _q4_k(blocks: Blocks) -> dict[str, Tensor]:
    """Of 8 scales and 8 minima of 6 bits, the first four lie in 4 bytes each; the low halves of the others share 4 bytes, and
    their upper two bits fill the top of the first four's.
    """
    first, second, shared = (blocks[..., 4 + 4 * part : 8 + 4 * part] for part in range(3))
    scales = np.concatenate([first & 0x3F, (shared & 15) | ((first >> 2) & 0x30)], axis=-1)
    minima = np.concatenate([second & 0x3F, (shared >> 4) | ((second >> 2) & 0x30)], axis=-1)
    rows = len(blocks)
    return {
        CODES: _codes(_nibbles(blocks[..., 16:].reshape(rows, -1, 4, 32)), 4),
        SCALES: torch.from_numpy(scales.reshape(rows, -1)),
        OFFSETS: torch.from_numpy(minima.reshape(rows, -1)),
        BLOCK_SCALES: _half(blocks[..., :2]),
        BLOCK_OFFSETS: -_half(blocks[..., 2:4]),
    }


def _q6_k(blocks: Blocks) -> dict[str, Tensor]:
    """A half of a block: 64 bytes of low halves for 128 codes, 32 bytes with the upper two bits of four codes each."""
    rows = len(blocks)
    low = blocks[..., :128].reshape(rows, -1, 2, 64)
    high = blocks[..., 128:192].reshape(rows, -1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=-1)
    upper = (high >> np.array([0, 2, 4, 6], dtype=np.uint8).reshape(4, 1)) & 3
    codes = (low | (upper.reshape(low.shape) << 4)).astype(np.int8) - 32
    return {
        **code_parts(torch.from_numpy(codes.reshape(rows, -1)), 6),
        SCALES: torch.from_numpy(np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).reshape(rows, -1)),
        BLOCK_SCALES: _half(blocks[..., 208:210]),
    }


FLOATS = (Type.F32, Type.F16, Type.BF16)
AS_THEY_ARE: dict[GGMLQuantizationType, tuple[WeightFormat, int, Callable[[Blocks], dict[str, Tensor]]]] = {
    Type.Q4_0: (FORMATS["q4_0"], 18, _q4_0),
    Type.Q4_1: (FORMATS["q4_1"], 20, _q4_1),
    Type.Q8_0: (FORMATS["q8_0"], 34, _q8_0),
    Type.Q4_K: (FORMATS["q4_k"], 144, _q4_k),
    Type.Q6_K: (FORMATS["q6_k"], 210, _q6_k),
}
