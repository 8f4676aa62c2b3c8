"""Give buffers addresses within a capacity: a dedicated backtracking search, used where first fit fails.

After MiniMalloc (Moffitt, 2023). Only stable packings are looked at, in which no buffer could move down: they are built from the
bottom up, each buffer on top of what is placed below it, in the order of addresses (and of ranks where those are equal). A branch
ends where

    a moment's buffers cannot all fit above where each may still lie,
    a buffer would leave room below it for another one, or one that was passed over is never covered,
    the buffer tried has nothing above it and the rest failed anyway,
    the same buffers failed before from the same heights.

Groups of buffers that share no moment are placed independently. The search starts again after some nodes (in the Luby sequence),
those buffers first that were most often in the way.
"""

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from itertools import count

import numpy as np
import numpy.typing as npt

from mebp.errors import InfeasibleBudget
from mebp.native import NoLibraryError, load_library
from mebp.planner.effort import Effort, StopFlag
from mebp.planner.pack.heuristic import Buffer, live_peak

SOURCE = resources.files("mebp.planner.pack").joinpath("search.c").read_text(encoding="utf-8")
NONE, FOUND, NO_MEMORY = 0, 1, -2
FIRST_RESTART_NODES = 20_000  # of the shortest restart
DECAY = 0.9  # of blame from one restart to the next
NOISES = (0.0, 0.3)  # of the ranks, one search for each
MOST_BUFFERS = 5_000  # the search compares all pairs

Floats = npt.NDArray[np.float64]


def search_offsets(buffers: Sequence[Buffer], capacity: int, effort: Effort) -> tuple[int, ...] | None:
    """Offsets within `capacity`, in the buffers' order; None where none were found in time or nothing can be compiled here.

    InfeasibleBudget where no packing exists. Two threads search in different orders, and which of them is the first, so
    which packing is returned, may differ from run to run.
    """
    if _library() is None or len(buffers) > MOST_BUFFERS:
        return None
    order = sorted(range(len(buffers)), key=lambda number: (buffers[number].start, number))
    instance = _Instance([buffers[number] for number in order], capacity)
    with effort.flag() as flag, ThreadPoolExecutor(max_workers=len(NOISES)) as pool:

        def run(noise: float) -> tuple[int, ...] | None:
            try:
                return instance.restarts(flag, np.random.default_rng((effort.seed, round(noise * 10))), noise)
            finally:
                flag.stop_search()  # the others need not go on

        found = next((placed for placed in list(pool.map(run, NOISES)) if placed is not None), None)
    return None if found is None else tuple(found[at] for at in np.argsort(order).tolist())


class _Instance:
    """Buffers sorted by start, as arrays, and the orders in which those that are level may be tried."""

    def __init__(self, buffers: Sequence[Buffer], capacity: int) -> None:
        self.buffers = buffers
        self.capacity = capacity
        self.start, self.end = (np.array([getattr(b, name) for b in buffers], dtype=np.int32) for name in ("start", "end"))
        self.size = np.array([b.size for b in buffers], dtype=np.int64)
        self.horizon = int(self.end.max())
        width: Floats = (self.end - self.start).astype(np.float64)
        area: Floats = width * self.size
        live = np.zeros(self.horizon)
        for b in buffers:
            live[b.start : b.end] += b.size
        fullest: Floats = np.array([live[b.start : b.end].max() for b in buffers], dtype=np.float64)
        late: Floats = self.end.astype(np.float64)
        self.orders: tuple[tuple[Floats, ...], ...] = (
            (fullest, width, area),
            (width, area, fullest),
            (fullest, area, width),
            (late, area, fullest),
        )

    def restarts(self, flag: StopFlag, draw: np.random.Generator, noise: float) -> tuple[int, ...] | None:
        """Search until offsets are found or the flag is up: first in each order, then with what was in the way before others."""
        blamed: Floats = np.zeros(len(self.buffers))
        for number, length in enumerate(_luby()):
            keys = self.orders[number % len(self.orders)]
            if number >= len(self.orders):
                keys = (blamed * np.exp(draw.normal(0.0, noise, len(blamed))), *keys)
            result, offsets, blame = self._restart(keys, FIRST_RESTART_NODES * length, flag)
            if result == FOUND:
                return tuple(offsets.tolist())
            if result == NONE:
                least = live_peak(self.buffers)
                message = f"does not fit {self.capacity} bytes: no packing exists: raise `capacity`"
                raise InfeasibleBudget(message, self.capacity, least)
            if flag.is_up:
                return None
            blamed = DECAY * blamed + blame / max(1, blame.max())
        raise AssertionError("restarts have no end of their own")

    def _restart(
        self, keys: Sequence[Floats], nodes: int, flag: StopFlag
    ) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """One restart with the largest `keys` first."""
        rank = np.empty(len(self.buffers), dtype=np.int32)
        rank[np.lexsort(tuple(-key for key in reversed(keys)))] = np.arange(len(rank), dtype=np.int32)
        offsets, blame = np.zeros(len(rank), dtype=np.int64), np.zeros(len(rank), dtype=np.int64)
        library = _library()
        assert library is not None
        arrays = [array.ctypes.data for array in (self.start, self.end, self.size, rank)]
        outputs = [array.ctypes.data for array in (offsets, blame)]
        result = library.pack_search(len(rank), self.horizon, *arrays, self.capacity, nodes, flag.address, *outputs)
        if result == NO_MEMORY:
            raise MemoryError("no memory for the packing search")
        return result, offsets, blame


def _luby() -> Iterator[int]:
    """1, 1, 2, 1, 1, 2, 4, ...: within a constant factor of the best lengths of restarts (Luby, Sinclair & Zuckerman, 1993)."""
    for number in count(1):
        at = number
        while at & (at + 1):  # not the end of a block: go on in the block that it repeats
            at -= (1 << (at.bit_length() - 1)) - 1
        yield (at + 1) // 2


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled search; None where there is no compiler."""
    try:
        library = load_library("pack", SOURCE)
    except NoLibraryError:
        return None
    pointer, wide, narrow = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.pack_search.argtypes = [narrow, narrow, *[pointer] * 4, wide, wide, *[pointer] * 3]
    library.pack_search.restype = ctypes.c_int
    return library
