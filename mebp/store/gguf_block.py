"""Blocks of a GGUF file's quantised types, taken apart into the parts of our formats: what their layouts say, nothing rounded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from mebp.models.format import BLOCK_OFFSETS, BLOCK_SCALES, CODES, FORMATS, OFFSETS, SCALES, WeightFormat
from mebp.store.codec import code_parts, join_codes

Blocks = NDArray[np.uint8]  # (rows, blocks, bytes of one)


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


AS_THEY_ARE: dict[Type, tuple[WeightFormat, int, Callable[[Blocks], dict[str, Tensor]]]] = {
    Type.Q4_0: (FORMATS["q4_0"], 18, _q4_0),
    Type.Q4_1: (FORMATS["q4_1"], 20, _q4_1),
    Type.Q8_0: (FORMATS["q8_0"], 34, _q8_0),
    Type.Q4_K: (FORMATS["q4_k"], 144, _q4_k),
    Type.Q6_K: (FORMATS["q6_k"], 210, _q6_k),
}
