"""Quantise weights into a format's parts, and unpack rows of them again, in torch or by a kernel (mebp/kernel).

A weight is level x scale + offset in single precision, rounded once to the type that is asked for.
"""

import torch
from torch import Tensor

from mebp.kernel.unpack import unpack_rows
from mebp.kernel.weight import PART_TYPES, Frozen, levels_of, plain
from mebp.models.format import BLOCK_OFFSETS, BLOCK_SCALES, CODES, HIGH, OFFSETS, SCALES, SPLIT_BITS, WeightFormat

CHUNK_WEIGHTS = 1 << 14  # unpacked at a time in torch: what that takes beside its result stays small
SHRINK = tuple(0.74 + 0.02 * step for step in range(15))  # of the largest magnitude that a group's levels may end at


def quantise(weight: Tensor, fmt: WeightFormat) -> Frozen:
    """Quantise (rows, cols), group by group. Of some scales, down from the one that ends at the group's largest magnitude, each
    group takes that with the smallest squared error. A group of zeros has scale 0.
    """
    assert not fmt.block, "formats of blocks are read, not written"
    rows, cols = weight.shape
    if not fmt.compressed:
        return plain(weight.to(torch.bfloat16))
    grouped = weight.float().view(rows, -1, fmt.group_cols(cols))
    scales, offsets = _absmean(grouped) if fmt.bits == 2 else _searched(grouped, fmt)
    parts, scales, offsets = _scale_parts(scales, offsets, fmt)
    codes = _codes(grouped, scales, offsets, fmt)
    return Frozen(format=fmt, cols=cols, parts=code_parts(codes.view(rows, cols), fmt.bits) | parts)


def code_parts(codes: Tensor, bits: int) -> dict[str, Tensor]:
    """Codes (rows, cols), each within its bits, as they are stored."""
    if bits == SPLIT_BITS:
        return {CODES: join_codes(codes & 15, 4), HIGH: join_codes(codes >> 4 & 3, 2)}
    return {CODES: join_codes(codes, bits)}


def _scale_parts(scales: Tensor, offsets: Tensor | None, fmt: WeightFormat) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """Scales and offsets (rows, groups) as they are stored, and what comes back of them."""
    dtype = PART_TYPES[fmt.scale]
    if fmt.zero_point:
        assert offsets is not None
        points = torch.where(scales > 0, -offsets / scales, 0.0).round().clamp(0, 255)
        return {SCALES: scales.to(dtype), OFFSETS: points.to(torch.uint8)}, scales, -points * scales
    if fmt.scale != "uint8":
        parts = {SCALES: scales.to(dtype)} | ({} if offsets is None else {OFFSETS: offsets.to(dtype)})
        return parts, scales, offsets
    bytes_of, unit = _as_bytes(scales)
    parts, scales = {SCALES: bytes_of, BLOCK_SCALES: unit}, bytes_of.float() * unit.float()
    if offsets is not None:
        bytes_of, unit = _as_bytes(-offsets)
        parts |= {OFFSETS: bytes_of, BLOCK_OFFSETS: -unit}
        offsets = -(bytes_of.float() * unit.float())
    return parts, scales, offsets


def _as_bytes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values of 0 and more (rows, groups) as bytes, and the fp16 number of each row that multiplies them."""
    unit = (values.amax(dim=1, keepdim=True) / 255).half()
    return torch.where(unit > 0, values / unit.float(), 0.0).round().clamp(0, 255).to(torch.uint8), unit


def _absmean(grouped: Tensor) -> tuple[Tensor, None]:
    """Ternary weights' scale."""
    return _stored(grouped.abs().mean(dim=2), torch.bfloat16), None


def _searched(grouped: Tensor, fmt: WeightFormat) -> tuple[Tensor, Tensor | None]:
    """Scales and offsets (rows, groups) with the smallest squared error among those tried, as they are stored."""
    best = torch.full(grouped.shape[:2], float("inf"))
    scales, offsets = torch.zeros_like(best), torch.zeros_like(best) if fmt.offset else None
    for shrink in SHRINK if fmt.bits < 8 else (1.0,):
        for scale, offset in _candidates(grouped, fmt, shrink):
            error = (_dequantised(_codes(grouped, scale, offset, fmt), scale, offset, fmt) - grouped).square_().sum(dim=2)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, scale, scales)
            if offsets is not None and offset is not None:
                offsets = torch.where(better, offset, offsets)
    return scales, offsets


def _candidates(grouped: Tensor, fmt: WeightFormat, shrink: float) -> list[tuple[Tensor, Tensor | None]]:
    """Scales and offsets, as they are stored, whose levels end at `shrink` times the largest magnitude of a group."""
    dtype = torch.float32 if fmt.scale == "uint8" else PART_TYPES[fmt.scale]
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)
    if fmt.offset:
        low = low.clamp(max=0) if fmt.offset == "uint8" else low  # offsets that are bytes are below 0
        middle, half = (high + low) / 2, (high - low) / 2 * shrink
        scale = _stored(2 * half / (2**fmt.bits - 1), dtype)
        return [(scale, _stored(middle - half, dtype))]
    largest = torch.maximum(high, -low) * shrink
    if fmt.levels == "nf4":
        return [(_stored(largest, dtype), None)]
    most = 2 ** (fmt.bits - 1)
    signed = torch.where(high > -low, -largest, largest) / most  # the code of the largest magnitude is the lowest, -2^(bits-1)
    both = [_stored(largest / (most - 1), dtype)]
    return [(scale, None) for scale in ([_stored(signed, dtype), *both] if fmt.bits < 8 else both)]


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as they come back from where they are stored."""
    return values.to(dtype).float()


def _codes(grouped: Tensor, scales: Tensor, offsets: Tensor | None, fmt: WeightFormat) -> Tensor:
    """The code of the nearest level for each weight, (rows, groups, group) int16."""
    shifted = grouped if offsets is None else grouped - offsets[:, :, None]
    exact = torch.where(scales[:, :, None] != 0, shifted / scales[:, :, None], 0.0)
    if fmt.levels == "nf4":
        levels = levels_of(fmt.levels, fmt.bits)
        return torch.bucketize(exact, (levels[1:] + levels[:-1]) / 2).to(torch.int16)
    low = 0 if fmt.levels == "unsigned" else -1 if fmt.bits == 2 else -(2 ** (fmt.bits - 1))
    high = 2**fmt.bits - 1 if fmt.levels == "unsigned" else 2 ** (fmt.bits - 1) - 1
    return exact.round().clamp(low, high).to(torch.int16)


def _dequantised(codes: Tensor, scales: Tensor, offsets: Tensor | None, fmt: WeightFormat) -> Tensor:
    levels = levels_of(fmt.levels, 4)[codes.long()] if fmt.levels == "nf4" else codes.float()
    values = levels * scales[:, :, None]
    return values if offsets is None else values + offsets[:, :, None]


def join_codes(codes: Tensor, bits: int) -> Tensor:
    """Join codes (rows, cols), each within its bits, signed or not, in bytes (rows, cols x bits / 8) int8."""
    rows, cols = codes.shape
    count = 8 // bits
    slots = codes.view(rows, count, cols // count).to(torch.int16) & (2**bits - 1)
    joined = torch.zeros_like(slots[:, 0])
    for slot in range(count):
        joined |= slots[:, slot] << (bits * slot)
    return joined.to(torch.uint8).view(torch.int8).view(rows, -1)


def unpack(frozen: Frozen, out: Tensor) -> None:
    """Decompress rows into `out` (rows, cols)."""
    if not unpack_rows(frozen, out):
        unpack_in_torch(frozen, out)


def unpack_in_torch(frozen: Frozen, out: Tensor) -> None:
    """`unpack` without a kernel, equal bit for bit; some rows at a time, so that its temporaries stay small."""
    step = max(1, CHUNK_WEIGHTS // frozen.cols)
    for start in range(0, frozen.rows, step):
        rows = frozen[start : start + step]
        _unpack_all(rows, out[start : start + step])


def _unpack_all(frozen: Frozen, out: Tensor) -> None:
    scales, offsets = frozen.groups()
    weights = _levels(frozen)
    grouped = weights.view(len(weights), scales.shape[1], -1)
    grouped.mul_(scales[:, :, None])
    if offsets is not None:
        grouped.add_(offsets[:, :, None])
    out.copy_(weights)


def _levels(frozen: Frozen) -> Tensor:
    """What codes are worth, (rows, cols) fp32."""
    fmt, raw = frozen.format, frozen.codes.view(torch.uint8)
    if fmt.bits == 8:
        return (raw if fmt.levels == "unsigned" else frozen.codes).float()
    if fmt.bits == SPLIT_BITS:
        codes = _split(raw, 4) | (_split(frozen.parts[HIGH].view(torch.uint8), 2) << 4)
        return (codes.to(torch.int8) ^ 32).sub_(32).float() if fmt.levels == "signed" else codes.float()
    return levels_of(fmt.levels, fmt.bits).to(raw.device)[_split(raw, fmt.bits).int()]


def _split(joined: Tensor, bits: int) -> Tensor:
    """Codes (rows, cols) uint8 of joined ones."""
    return torch.cat([(joined >> (bits * slot)) & (2**bits - 1) for slot in range(8 // bits)], dim=1)


def unpack_whole(frozen: Frozen, dtype: torch.dtype) -> Tensor:
    """Decompress a whole matrix into a new tensor: for references and tests."""
    if not frozen.format.compressed:
        return frozen.codes.to(dtype)
    out = torch.empty(frozen.rows, frozen.cols, dtype=dtype)
    unpack(frozen, out)
    return out


def read_rows(frozen: Frozen, tile: Tensor | None, device: torch.device | None = None) -> Tensor:
    """Rows of a frozen weight, decompressed into `tile` (or as they lie, where nothing needs to be decompressed)."""
    if tile is None:
        return frozen.codes if device is None else frozen.codes.to(device)
    out = tile[: frozen.rows]
    if not frozen.format.compressed:
        out.copy_(frozen.codes)
        return out
    unpack(frozen if out.device == frozen.codes.device else frozen.each(lambda part: part.to(out.device)), out)
    return out
