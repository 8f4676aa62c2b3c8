"""What the kernel says of this process: anonymous and file-backed bytes, now and at the highest of samples."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

INTERVAL_S = 0.002
MOST_POINTS = 1000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
THRESHOLD_BYTES = 8 << 20


def fix_allocator() -> bool:
    """Make glibc give freed blocks of 8 MiB and more back at once, so that memory measured is memory in use but for a few MB: what
    the library of products takes and gives back with each of them stays at hand. On fresh pages a step took 1.15 x as long.

    Returns whether the allocator took the setting (False outside glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, THRESHOLD_BYTES))


def trim() -> None:
    """Give back what glibc keeps free, whatever its size."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def memory_now() -> tuple[int, int]:
    """(anonymous, file-backed) resident bytes: RssAnon + RssShmem and RssFile; elsewhere all of the resident set and 0."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        anon, shmem, file = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "RssFile"))
        return anon + shmem, file
    except (OSError, KeyError):
        return int(psutil.Process().memory_info().rss), 0


class Sampler:
    """Watches memory from a thread while it is entered; `anonymous` and `file` are the highest values seen, `curve` is how
    anonymous bytes moved since `begin`: (ns, bytes), at most MOST_POINTS of them. `over(bytes)` is called, from that thread, when
    anonymous memory is seen above `most_bytes` (0: never).
    """

    def __init__(self, most_bytes: int = 0, over: Callable[[int], None] | None = None) -> None:
        self.anonymous, self.file = memory_now()
        self._most_bytes = most_bytes
        self._over = over
        self.curve: list[tuple[int, int]] = []
        self._begin_ns = self._next_ns = time.perf_counter_ns()
        self._apart_ns = 0
        self._lock = threading.Lock()  # begin() comes from another thread than the samples
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def begin(self) -> None:
        """Start the curve again."""
        with self._lock:
            self.curve = []
            self._begin_ns = self._next_ns = time.perf_counter_ns()
            self._apart_ns = int(INTERVAL_S * 1e9)

    def _look(self) -> None:
        anonymous, file = memory_now()
        self.anonymous, self.file = max(self.anonymous, anonymous), max(self.file, file)
        if self._over and 0 < self._most_bytes < anonymous:
            self._over(anonymous)
        with self._lock:
            self._draw(time.perf_counter_ns(), anonymous)

    def _draw(self, now_ns: int, anonymous: int) -> None:
        if now_ns < self._next_ns:
            return
        self.curve.append((now_ns - self._begin_ns, anonymous))
        if len(self.curve) > MOST_POINTS:  # every second one, and as many less from here on
            del self.curve[1::2]
            self._apart_ns *= 2
        self._next_ns = now_ns + self._apart_ns

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            time.sleep(INTERVAL_S)
