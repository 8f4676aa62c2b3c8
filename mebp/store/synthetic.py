"""Stores of random weights: the shapes and the statistics of a real model's, where no checkpoint is at hand."""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mebp.models.config import ModelConfig
from mebp.models.format import WeightFormat
from mebp.store.codec import join_codes
from mebp.store.header import layout
from mebp.store.writer import write_store

SYNTHETIC_STD = 0.02
SYNTHETIC_PEAK = 2.4  # largest of 64 normal draws, in standard deviations


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
    total = sum(prod(shape) for _, shape in layout(config, fmt).values())
    generator = torch.Generator().manual_seed(seed)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        done = 0
        table = _code_table(fmt, generator) if fmt.compressed else None
        for name, (_, shape) in layout(config, fmt).items():
            yield name, _synthetic(name, shape, config, fmt, table, generator)
            done += prod(shape)
            if progress:
                progress(done, total)

    return write_store(folder, config, fmt, tensors())


def _code_table(fmt: WeightFormat, generator: torch.Generator) -> Tensor:
    """256 bytes of joined codes that are distributed as those of normal weights."""
    qmax = 2 ** (fmt.bits - 1) - 1
    count = 8 // fmt.bits
    draws = torch.randn(256, count, generator=generator) * (qmax / SYNTHETIC_PEAK)
    codes = draws.round().clamp(-qmax, qmax).to(torch.int8)
    return join_codes(codes, fmt).view(-1)


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
        joined: Tensor = torch.from_numpy(codes)
        return joined
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
