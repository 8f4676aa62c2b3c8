"""Give buffers addresses: lifetimes in, offsets out, and the height of the arena that they need.

Half-open lifetimes [start, end) in steps. A heuristic: first fit at the lowest offset, over several orders, then with whatever
stands out moved forward in the order (squeaky wheel, Joslin & Clements, 1999), the best height kept. The first orders place what is
live at the fullest moment before all else, by birth: there an arena without gaps has to be full, and a training step is a stack. It
stops early where the height equals the most live bytes, which no packing can beat; the wheel only turns for more than CLOSE above
it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CLOSE = 1e-3  # of the most live bytes: near enough to stop
ORDERS = 6
SQUEAKS = 10  # rounds of moving forward what stands out


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """`size` bytes that live in [start, end)."""

    start: int
    end: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """An offset for each buffer, the height they reach, and the most bytes live at once (a lower bound of any height)."""

    offsets: tuple[int, ...]
    height: int
    live_peak: int


def pack(buffers: list[Buffer], *, wall_s: float = float("inf")) -> Packing:
    """Place `buffers` so that no two that live together overlap; after `wall_s` seconds no other order is tried."""
    begin = time.monotonic()
    if not buffers:
        return Packing(offsets=(), height=0, live_peak=0)
    start, end, size = (np.array([getattr(b, name) for b in buffers], dtype=np.int64) for name in ("start", "end", "size"))
    least = _live_peak(start, end, size)
    best: tuple[int, npt.NDArray[np.int64]] | None = None
    for number, (offsets, height) in enumerate(_attempts(start, end, size, least)):
        if best is None or height < best[0]:
            best = (height, offsets)
        if best[0] <= least * (1 + CLOSE * (number >= ORDERS - 1)) or time.monotonic() - begin > wall_s:
            break
    assert best is not None
    return Packing(offsets=tuple(int(offset) for offset in best[1]), height=best[0], live_peak=least)


def live_peak(buffers: Sequence[Buffer]) -> int:
    """Most bytes live at once: no packing is lower."""
    if not buffers:
        return 0
    return _live_peak(*(np.array([getattr(b, name) for b in buffers], dtype=np.int64) for name in ("start", "end", "size")))


def _orders(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    length = end - start
    fullest = (start <= (peak := _fullest(start, end, size))) & (end > peak)
    return [
        np.lexsort((start, -length, np.where(fullest, start, -size), ~fullest)),
        np.lexsort((-(size * length), np.where(fullest, start, 0), ~fullest)),
        np.lexsort((start, -(size * length))),
        np.lexsort((start, -length, -size)),
        np.lexsort((start, -size, -length)),
        np.lexsort((-size, start)),
    ]


def _attempts(
    start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: npt.NDArray[np.int64], least: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """First fit in each order, then the first order again with what stood out above `least` placed earlier (squeaky wheel)."""
    orders = _orders(start, end, size)
    for order in orders:
        yield _first_fit(order, start, end, size)
    rank = np.empty(len(orders[0]))
    rank[orders[0]] = np.arange(len(orders[0]))
    for number in range(SQUEAKS):
        offsets, height = _first_fit(np.argsort(rank, kind="stable"), start, end, size)
        yield offsets, height
        above = offsets + size > least
        rank[above] = rank[above] * 0.5 - 1 - number / SQUEAKS


def _live_peak(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: npt.NDArray[np.int64]) -> int:
    return int(_live(start, end, size).max())


def _fullest(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: npt.NDArray[np.int64]) -> int:
    """The first moment at which most bytes are live."""
    return int(np.argmax(_live(start, end, size)))


def _live(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Live bytes at every moment."""
    change = np.zeros(int(end.max()) + 1, dtype=np.int64)
    np.add.at(change, start, size)
    np.add.at(change, end, -size)
    return np.cumsum(change)


def _first_fit(
    order: npt.NDArray[np.int64], start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int]:
    """Place in `order`, each at the lowest offset that is free for its whole life."""
    count = len(order)
    starts, ends, sizes = start[order], end[order], size[order]
    placed = np.zeros(count, dtype=np.int64)
    height = 0
    for i in range(count):
        together = np.flatnonzero((starts[:i] < ends[i]) & (ends[:i] > starts[i]))
        placed[i] = _lowest_gap(placed[together], sizes[together], int(sizes[i]))
        height = max(height, int(placed[i] + sizes[i]))
    offsets = np.empty(count, dtype=np.int64)
    offsets[order] = placed
    return offsets, height


def _lowest_gap(lows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], wanted: int) -> int:
    """The lowest offset with `wanted` free bytes among the taken stretches."""
    if not lows.size:
        return 0
    by_offset = np.argsort(lows, kind="stable")
    lows = lows[by_offset]
    tops = np.maximum.accumulate(lows + sizes[by_offset])
    gap_starts = np.concatenate(([0], tops))
    fits = np.flatnonzero(lows - gap_starts[:-1] >= wanted)
    return int(gap_starts[fits[0]] if fits.size else gap_starts[-1])
