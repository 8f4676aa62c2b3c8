"""Is this packing valid? Every pair of buffers compared, the slow way; knows nothing of how it was found."""

from collections.abc import Sequence

from mebp.errors import InvalidPacking
from mebp.planner.pack.heuristic import Buffer, Packing


def check_packing(buffers: Sequence[Buffer], packing: Packing) -> None:
    """Refuse a packing where a buffer lies outside the arena, or two that live together overlap: InvalidPacking naming both."""
    if len(buffers) != len(packing.offsets):
        raise InvalidPacking(f"{len(packing.offsets)} offsets for {len(buffers)} buffers")
    placed = list(zip(buffers, packing.offsets, strict=True))
    for number, (buffer, offset) in enumerate(placed):
        if offset < 0 or offset + buffer.size > packing.height:
            raise InvalidPacking(f"buffer {number} lies at {offset} to {offset + buffer.size} of {packing.height}")
        for other_number, (other, other_offset) in enumerate(placed[:number]):
            meet = buffer.start < other.end and other.start < buffer.end
            if meet and offset < other_offset + other.size and other_offset < offset + buffer.size:
                raise InvalidPacking(f"buffers {other_number} and {number} live together and overlap")
