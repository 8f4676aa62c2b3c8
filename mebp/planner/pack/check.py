"""Is this packing valid? Every pair of buffers compared, the slow way; knows nothing of how it was found."""

from collections.abc import Sequence

import numpy as np

from mebp.errors import InvalidPacking
from mebp.planner.pack.heuristic import Buffer, Packing


def check_packing(buffers: Sequence[Buffer], packing: Packing) -> None:
    """Refuse a packing where a buffer lies outside the arena, or two that live together overlap: InvalidPacking naming both."""
    if len(buffers) != len(packing.offsets):
        raise InvalidPacking(f"{len(packing.offsets)} offsets for {len(buffers)} buffers")
    start, end, size = (np.array([getattr(b, name) for b in buffers], dtype=np.int64) for name in ("start", "end", "size"))
    offset = np.array(packing.offsets, dtype=np.int64)
    for number in range(len(buffers)):
        low, high = int(offset[number]), int(offset[number] + size[number])
        if low < 0 or high > packing.height:
            raise InvalidPacking(f"buffer {number} lies at {low} to {high} of {packing.height}")
        others = slice(number)
        meet = (start[others] < end[number]) & (start[number] < end[others])
        overlap = np.flatnonzero(meet & (offset[others] < high) & (low < offset[others] + size[others]))
        if overlap.size:
            raise InvalidPacking(f"buffers {overlap[0]} and {number} live together and overlap")
