"""Limits on the process that runs a plan, so that a plan that takes more than it says fails.

Two kinds. Data: RLIMIT_DATA, on private writable memory, set by the process itself once torch is imported; it counts what is only
reserved too, so it has some slack, and the sampler of memory.py ends the process where what is in use goes beyond the budget. All:
a memory cgroup (v1 or v2) made by the parent, which counts page cache too: the compressed weights that the process maps, its spill
file, its libraries.
"""

import os
import resource
import time
from contextlib import suppress
from pathlib import Path

from mebp.errors import InputError
from mebp.leftover import is_alive

ROOT = Path("/sys/fs/cgroup")
SLACK_BYTES = 64 << 20  # counted but never touched: stacks of the engines' threads, the products' library (35 MB with 0.5b)
GROUP = "mebp-plan-"  # name of a group, before its process
REMOVALS, REMOVAL_S = 50, 0.02


def limit_data(nbytes: int) -> None:
    """Let this process take at most `nbytes` of private writable memory more than it has now.

    InputError where the system does not say what it has (outside Linux).
    """
    now = _data_bytes()
    limit = now + nbytes + SLACK_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def lift_limit() -> None:
    """Let this process take what it may again: the step is over."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _data_bytes() -> int:
    """VmData: private writable memory, as RLIMIT_DATA counts it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    except (OSError, StopIteration):
        raise InputError("`enforce` needs Linux's /proc/self/status, which is not here: leave it out") from None


class Cgroup:
    """A memory cgroup of one process."""

    def __init__(self, folder: Path, limit_file: str) -> None:
        self._folder = folder
        self._limit_file = limit_file

    def limit(self, nbytes: int) -> None:
        """Set what all memory of the group may come to, swap left out where that can be said."""
        (self._folder / self._limit_file).write_text(str(nbytes))
        swap = self._folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def add(self, process: int) -> None:
        """Put a process into the group: what it takes from now on counts."""
        (self._folder / "cgroup.procs").write_text(str(process))

    def remove(self) -> None:
        """Delete the group; its processes must have ended, which the kernel may take a moment to see."""
        for _ in range(REMOVALS):
            with suppress(OSError):
                self._folder.rmdir()
            if not self._folder.exists():
                return
            time.sleep(REMOVAL_S)


def make_cgroup(nbytes: int) -> Cgroup:
    """A group below this process's own with a limit of `nbytes`; InputError where the system lets none be made."""
    own = _own_groups()
    name = f"{GROUP}{os.getpid()}"
    places = [
        (ROOT / "memory" / own.get("memory", "").lstrip("/"), "memory.limit_in_bytes"),
        (ROOT / own.get("", "").lstrip("/"), "memory.max"),
    ]
    for parent, limit_file in places:
        _sweep(parent)
        group = Cgroup(parent / name, limit_file)
        try:
            (parent / name).mkdir()
        except OSError:
            continue
        try:
            group.limit(nbytes)
        except OSError:
            group.remove()
            continue
        return group
    raise InputError("`limit` needs a memory cgroup, and none can be made here (as root, or in a delegated one): take `enforce`")


def _sweep(parent: Path) -> None:
    """Delete the groups of processes that were killed before they could."""
    with suppress(OSError):
        for folder in parent.glob(f"{GROUP}*"):
            process = folder.name.removeprefix(GROUP)
            if process.isdecimal() and not is_alive(int(process)):
                with suppress(OSError):  # its worker still runs, or it is of another container
                    folder.rmdir()


def _own_groups() -> dict[str, str]:
    """Controller to the path of this process's group; the controller of v2 is empty."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found
