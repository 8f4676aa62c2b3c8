"""Read compressed weights ahead of their use, and drop them behind it, where page cache counts against a limit.

Left alone, the kernel reads a mapped file page by page as it is touched, and evicts what it likes. The plan knows better: which
weight comes next, and how long until one is used again. A thread stays some bytes ahead of the processor, and gives pages back
whose next use is further away than that.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Instruction number `index` reads bytes [offset, offset + nbytes) of the file, mapped at `address`."""

    index: int
    offset: int
    nbytes: int
    address: int


class ReadAhead:
    """Serves one step after another; `begin`, then `reached(number)` at the first use of each instruction that reads a
    weight, then `end`.
    """

    def __init__(self, file: Path, uses: Sequence[Use], window_bytes: int) -> None:
        self._path = file
        self._file = -1  # open while a step runs
        self._uses = list(uses)
        self._window = window_bytes
        self._at = 0  # number of the use that the processor is at
        self._ahead = 0  # number of the first use that is not read yet
        self._changed = threading.Condition()
        self._over = False
        self._thread: threading.Thread | None = None
        self._block = bytearray(BLOCK)

    def begin(self) -> None:
        """Start reading for a step."""
        self._file = os.open(self._path, os.O_RDONLY)
        self._at = self._ahead = 0
        self._over = False
        self._thread = threading.Thread(target=self._work, name="mebp-read-ahead", daemon=True)
        self._thread.start()

    def reached(self, number: int) -> None:
        """The processor is at use `number`: what lies behind it may go, what lies within the window may come."""
        with self._changed:
            self._at = number
            self._changed.notify_all()

    def end(self) -> None:
        """The step is over."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._drop(self._at, len(self._uses))
        os.close(self._file)

    def _work(self) -> None:
        dropped = 0
        while True:
            with self._changed:
                while not self._over and not self._may_read() and dropped >= self._at:
                    self._changed.wait()
                if self._over:
                    return
                at, read = self._at, self._may_read()
            self._drop(dropped, at)
            dropped = at
            if read:
                self._read(self._uses[self._ahead])
                self._ahead += 1

    def _may_read(self) -> bool:
        """Whether the next use to read begins within the window."""
        self._ahead = max(self._ahead, self._at)
        between = sum(use.nbytes for use in self._uses[self._at : self._ahead])
        return self._ahead < len(self._uses) and between < self._window

    def _read(self, use: Use) -> None:
        view = memoryview(self._block)
        for start in range(use.offset, use.offset + use.nbytes, BLOCK):
            if self._over or self._at > self._ahead:
                return
            os.preadv(self._file, [view[: min(BLOCK, use.offset + use.nbytes - start)]], start)

    def _drop(self, low: int, high: int) -> None:
        """Give back the pages of uses [low, high) that none of the uses within the window needs."""
        soon = {use.offset for use in self._uses[high : high + self._within(high)]}
        for use in self._uses[low:high]:
            if use.offset in soon:
                continue
            begin = use.address // mmap.PAGESIZE * mmap.PAGESIZE
            length = use.address + use.nbytes - begin
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
            os.posix_fadvise(self._file, use.offset, use.nbytes, os.POSIX_FADV_DONTNEED)

    def _within(self, at: int) -> int:
        """How many uses from number `at` on begin within the window."""
        total = count = 0
        for use in self._uses[at:]:
            if total >= self._window:
                break
            total, count = total + use.nbytes, count + 1
        return count
