"""Stores of random weights: the shapes and the statistics of a real model's, where no checkpoint is at hand."""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mebp.kernel.weight import PART_TYPES, Frozen, levels_of, plain
from mebp.models.config import ModelConfig
from mebp.models.format import BLOCK_OFFSETS, BLOCK_SCALES, CODES, HIGH, OFFSETS, SCALES, WeightFormat, WeightFormats
from mebp.store.codec import join_codes
from mebp.store.writer import Pieces, parts_of, write_store

SYNTHETIC_STD = 0.02
SYNTHETIC_PEAK = 2.4  # largest of 64 normal draws, in standard deviations
BYTE_SCALE = 48  # of scales that are bytes


def synthesize(
    folder: Path,
    config: ModelConfig,
    formats: WeightFormats,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a store of random weights: normal with standard deviation 0.02, quantised as real ones would be, norms at 1.

    Codes are drawn from the distribution that quantised normal weights have, so that unpacked weights have that deviation.
    """
    total = config.num_parameters
    generator = torch.Generator().manual_seed(seed)
    tables = {fmt.name: _code_table(fmt, generator) for fmt in dict.fromkeys(map(formats.of, config.matrices())) if fmt.compressed}

    def tensors() -> Iterator[tuple[str, Pieces]]:
        done = 0
        for name, shape in config.matrices().items():
            fmt = formats.of(name)
            drawn = _matrix(shape, fmt, tables[fmt.name], generator) if fmt.compressed else _plain(shape, generator)
            yield from parts_of(name, fmt, shape, [drawn])
            done += prod(shape)
            if progress:
                progress(done, total)
        for name, length in config.vectors().items():
            yield name, _vector(name, length, config, generator)

    return write_store(folder, config, formats, tensors())


def _code_table(fmt: WeightFormat, generator: torch.Generator) -> Tensor:
    """256 bytes of joined codes that are distributed as those of normal weights."""
    count = 8 // fmt.low_bits
    draws = torch.randn(256, count, generator=generator) / SYNTHETIC_PEAK  # in [-1, 1] but for the largest
    if fmt.levels == "nf4":
        levels = levels_of(fmt.levels, fmt.bits)
        codes = torch.bucketize(draws, (levels[1:] + levels[:-1]) / 2)
    else:
        most, middle = _extent(fmt)
        lowest = 0 if fmt.levels == "unsigned" else -most
        codes = (draws * most + middle).round().clamp(lowest, most + middle)
    return join_codes(codes.to(torch.int16), fmt.low_bits).view(-1)


def _extent(fmt: WeightFormat) -> tuple[float, float]:
    """How far codes reach from their middle, and that middle."""
    if fmt.levels == "nf4":
        return 1.0, 0.0
    if fmt.levels == "unsigned":
        return (2**fmt.bits - 1) / 2, (2**fmt.bits - 1) / 2
    return max(1.0, 2 ** (fmt.bits - 1) - 1), 0.0


def _matrix(shape: tuple[int, int], fmt: WeightFormat, table: Tensor, generator: torch.Generator) -> Frozen:
    """A compressed matrix: scales vary by a fifth either way, offsets bring the middle of the codes to 0."""
    rows, cols = shape
    sizes = {part.name: (rows, part.per_row) for part in fmt.parts(cols)}
    draws = torch.randint(0, 256, sizes[CODES], dtype=torch.uint8, generator=generator)
    parts: dict[str, Tensor] = {CODES: torch.from_numpy(table.numpy()[draws.numpy()])}
    if HIGH in sizes:
        parts[HIGH] = torch.randint(-128, 128, sizes[HIGH], generator=generator).to(torch.int8)
    most, middle = _extent(fmt)
    unit = SYNTHETIC_STD * SYNTHETIC_PEAK / most
    varied = torch.rand(sizes[SCALES], generator=generator).mul_(0.4).add_(0.8)
    if BLOCK_SCALES in sizes:
        parts[SCALES] = (BYTE_SCALE * varied).round().to(PART_TYPES[fmt.scale])
        parts[BLOCK_SCALES] = torch.full(sizes[BLOCK_SCALES], unit / BYTE_SCALE, dtype=torch.float16)
        if fmt.affine:
            parts[OFFSETS] = parts[SCALES]
            parts[BLOCK_OFFSETS] = (parts[BLOCK_SCALES].float() * -middle).half()
    else:
        parts[SCALES] = (unit * varied).to(PART_TYPES[fmt.scale])
        if fmt.zero_point:
            parts[OFFSETS] = torch.full(sizes[OFFSETS], round(middle), dtype=torch.uint8)
        elif fmt.affine:
            parts[OFFSETS] = (parts[SCALES].float() * -middle).to(PART_TYPES[fmt.scale])
    return Frozen(format=fmt, cols=cols, parts=parts)


def _plain(shape: tuple[int, int], generator: torch.Generator) -> Frozen:
    return plain(torch.empty(shape, dtype=torch.bfloat16).normal_(std=SYNTHETIC_STD, generator=generator))


def _vector(name: str, length: int, config: ModelConfig, generator: torch.Generator) -> Tensor:
    if name.endswith("_bias"):
        return torch.empty(length, dtype=torch.bfloat16).normal_(std=SYNTHETIC_STD, generator=generator)
    return torch.full((length,), 1.0 - config.norm_offset, dtype=torch.bfloat16)
