"""The worker's own process: what it takes before anything of a model is there, and the limits on what it may take."""

import gc

import torch

from mebp.errors import InputError
from mebp.executor.measure.limit import limit_data
from mebp.executor.measure.memory import fix_allocator, memory_now, trim
from mebp.kernel.library import library
from mebp.unit import show_nbytes

OVER_BUDGET = 1.01  # times its budget a process may take under `enforce`
WINDOW_PART = 16  # of a limit that counts page cache: what weights may be read ahead


def begin(device: str) -> int:
    """Bytes of the process before anything of the model is there: torch imported, its threads started."""
    fix_allocator()
    require_device(device)
    _start_threads()
    gc.collect()
    trim()  # what imports left is no part of it
    return memory_now()[0]


def enforced(budget_bytes: int, baseline_bytes: int) -> int:
    """Have the system refuse what goes far beyond a budget, and say at how many bytes the run has to be stopped."""
    limit_data(max(0, budget_bytes - baseline_bytes))
    return int(budget_bytes * OVER_BUDGET)


def too_much(nbytes: int, budget_bytes: int) -> str:
    """What is said of a process that went beyond its budget."""
    took = f"the run took {show_nbytes(nbytes)} of memory, more than the plan's budget of {show_nbytes(budget_bytes)}"
    return f"{took}: stopped (`enforce`): calibrate for this model, or plan for less"


def require_device(name: str) -> None:
    """Refuse a torch device that this machine does not have."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"torch has no device {name!r} here ({str(error).splitlines()[0]:.80}): take cpu") from None


def _start_threads() -> None:
    """Start torch's threads and its products' library once, and load the kernel, so that they count as baseline."""
    x = torch.zeros(256, 256, dtype=torch.bfloat16)
    torch.mm(x, x)
    torch.mm(x.float(), x.float())
    library()
