"""Quantise weights into a format's codes and steps, and unpack rows of them again, in torch or with the compiled kernel
(mebp/kernel).

A code is shifted to the top bits of a signed byte, where that byte times the group's step is the weight: no zero point has to be
subtracted, and every pass runs over contiguous rows (see mebp/models/format.py).
"""

import torch
from torch import Tensor

from mebp.kernel.unpack import unpack_rows
from mebp.models.format import WeightFormat
from mebp.store.reader import Frozen


def quantise(weight: Tensor, fmt: WeightFormat) -> tuple[Tensor, Tensor]:
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
    return join_codes(codes.view(rows, cols), fmt), steps


def join_codes(codes: Tensor, fmt: WeightFormat) -> Tensor:
    """Join signed codes (rows, cols) int8, each within its bits, in bytes (rows, cols x bits / 8)."""
    rows, cols = codes.shape
    count = 8 // fmt.bits
    slots = codes.view(rows, count, cols // count).to(torch.int16) & (2**fmt.bits - 1)
    joined = torch.zeros_like(slots[:, 0])
    for slot in range(count):
        joined |= slots[:, slot] << (fmt.bits * slot)
    return joined.to(torch.uint8).view(torch.int8).view(rows, -1)


def unpack(codes: Tensor, steps: Tensor, fmt: WeightFormat, out: Tensor, scratch: Tensor | None) -> None:
    """Decompress rows into `out` (rows, cols): codes (rows, bytes) int8, steps (rows, groups), scratch of the codes' size."""
    if not unpack_rows(codes, steps, fmt.bits, out):
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
    assert scratch is not None, "formats of less than a byte per weight need scratch"
    return scratch


def unpack_whole(frozen: Frozen, dtype: torch.dtype) -> Tensor:
    """Decompress a whole matrix into a new tensor: for references and tests."""
    if frozen.steps is None:
        return frozen.codes.to(dtype)
    rows, nbytes = frozen.codes.shape
    out = torch.empty(rows, nbytes * 8 // frozen.format.bits, dtype=dtype)
    unpack(frozen.codes, frozen.steps, frozen.format, out, torch.empty(frozen.codes.numel(), dtype=torch.int8))
    return out


def read_rows(frozen: Frozen, rows: slice, tile: Tensor | None, codes: Tensor | None, device: torch.device | None = None) -> Tensor:
    """Rows of a frozen weight, decompressed into `tile` (or as they lie, where nothing needs to be decompressed)."""
    stored = frozen.codes[rows]
    if tile is None:
        return stored if device is None else stored.to(device)
    out = tile[: stored.shape[0]]
    if frozen.steps is None:
        out.copy_(stored)
        return out
    if out.device != stored.device:
        stored, steps = stored.to(out.device), frozen.steps[rows].to(out.device)
    else:
        steps = frozen.steps[rows]
    unpack(stored, steps, frozen.format, out, codes)
    return out
