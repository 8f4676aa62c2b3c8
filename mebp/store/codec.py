"""Pack weights into a format's codes and steps, and unpack rows of them again, in torch or with the compiled kernel of kernel.py.

A code is shifted to the top bits of a signed byte, where that byte times the group's step is the weight: no zero point has to be
subtracted, and every pass runs over contiguous rows (see mebp/models/format.py).
"""

import torch
from torch import Tensor

from mebp.models.format import WeightFormat
from mebp.store.kernel import unpack_rows


def pack(weight: Tensor, fmt: WeightFormat) -> tuple[Tensor, Tensor]:
    """Quantise (rows, cols) to codes (rows, cols x bits / 8) int8 and steps (rows, groups) bf16, symmetric, per group.

    Codes lie in [-qmax, qmax] with qmax = 2**(bits-1) - 1, so the largest weight of a group is met exactly up to the step's
    rounding. A group of zeros has step 0.
    """
    rows, cols = weight.shape
    group = fmt.group_cols(cols)
    grouped = weight.float().view(rows, -1, group)
    qmax = 2 ** (fmt.bits - 1) - 1
    scale = grouped.abs().amax(dim=2) / qmax if fmt.bits > 2 else grouped.abs().mean(dim=2)
    steps = (scale / 2 ** (8 - fmt.bits)).to(torch.bfloat16)
    exact = steps.float() * 2 ** (8 - fmt.bits)
    codes = torch.where(exact[:, :, None] > 0, grouped / exact[:, :, None], 0.0).round().clamp(-qmax, qmax).to(torch.int8)
    return pack_codes(codes.view(rows, cols), fmt), steps


def pack_codes(codes: Tensor, fmt: WeightFormat) -> Tensor:
    """Pack signed codes (rows, cols) int8, each within its bits, into bytes (rows, cols x bits / 8)."""
    rows, cols = codes.shape
    count = 8 // fmt.bits
    slots = codes.view(rows, count, cols // count).to(torch.int16) & (2**fmt.bits - 1)
    packed = torch.zeros_like(slots[:, 0])
    for slot in range(count):
        packed |= slots[:, slot] << (fmt.bits * slot)
    return packed.to(torch.uint8).view(torch.int8).view(rows, -1)


def unpack(codes: Tensor, steps: Tensor, fmt: WeightFormat, out: Tensor, scratch: Tensor | None) -> None:
    """Decompress rows into `out` (rows, cols): codes (rows, bytes) int8, steps (rows, groups), scratch of the codes' size."""
    if not unpack_rows(codes, steps, fmt, out):
        unpack_in_torch(codes, steps, fmt, out, scratch)


def unpack_in_torch(codes: Tensor, steps: Tensor, fmt: WeightFormat, out: Tensor, scratch: Tensor | None) -> None:
    """`unpack` without the kernel, equal bit for bit.

    Every weight is code x step rounded to the type of `out`. No operand changes its type inside an arithmetic op: torch would
    make a temporary of it, which costs memory that no plan knows.
    """
    rows, cols = out.shape
    count = 8 // fmt.bits
    top = codes if count == 1 else _require(scratch)[: codes.numel()].view(codes.shape)
    for slot in range(count):
        shift = 2 ** (8 - fmt.bits * (slot + 1))
        source = torch.mul(codes, shift, out=top) if shift > 1 else codes
        if slot:
            source = torch.bitwise_and(source, -(2 ** (8 - fmt.bits)), out=top)
        out[:, slot * cols // count : (slot + 1) * cols // count].copy_(source)
    out.view(rows, steps.shape[1], -1).mul_(steps[:, :, None])


def _require(scratch: Tensor | None) -> Tensor:
    assert scratch is not None, "formats of less than a byte a weight need scratch"
    return scratch


def unpack_whole(codes: Tensor, steps: Tensor, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
    """Decompress a whole weight into a new tensor: for references and tests."""
    rows = codes.shape[0]
    out = torch.empty(rows, codes.shape[1] * 8 // fmt.bits, dtype=dtype)
    unpack(codes, steps, fmt, out, torch.empty(codes.numel(), dtype=torch.int8))
    return out
