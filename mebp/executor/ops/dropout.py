"""LoRA dropout: what an adapter sees of its linear's input. The mask is drawn from seed, step and the adapter's name, so that
forward, recomputation and backward see the same.
"""

import zlib

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.models.kind.linear import DROPOUT_ROWS, LinearParams

LEVELS = 1 << 16  # that the probability is rounded to


def seen(io: Io, x: Tensor) -> Tensor:
    """The input (N, k) as the adapter sees it: `x` itself without dropout."""
    return drop(io, x, io.take("seen")) if io.params(LinearParams).dropout else x


def drop(io: Io, x: Tensor, out: Tensor) -> Tensor:
    """Write `x` (N, k) into `out`, which may be x itself: 0 where the mask says so, scaled up elsewhere; returns it."""
    dropped = round(io.params(LinearParams).dropout * LEVELS)
    generator = torch.Generator().manual_seed(_seed(io))
    bits, mask = io.take("bits"), io.take("mask")
    words = bits.view(-1).view(torch.int64)
    for start in range(0, len(x), DROPOUT_ROWS):
        rows = slice(start, min(start + DROPOUT_ROWS, len(x)))
        _draw(words, generator)
        kept = (
            mask[: rows.stop - start].copy_(bits[: rows.stop - start].ge_(dropped - LEVELS // 2)).mul_(LEVELS / (LEVELS - dropped))
        )
        torch.mul(x[rows], kept, out=out[rows])
    return out


def _draw(words: Tensor, generator: torch.Generator) -> None:
    """Fill 64-bit words with random bits."""
    if words.device.type == "cpu":
        words.random_(-(1 << 63), None, generator=generator)
    else:
        words.copy_(torch.empty(words.shape, dtype=torch.int64).random_(-(1 << 63), None, generator=generator))


def _seed(io: Io) -> int:
    """One for each adapter, chunk and step of a run, in the 32 bits that torch's generator takes."""
    chunk = f" {io.span.rows.start}" if io.span else ""
    return zlib.crc32(f"{io.env.seed} {io.env.clock.step} {io.op.adapters[0]}{chunk}".encode())
