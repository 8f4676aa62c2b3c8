"""What plain torch and the flash attain on this machine, for calibration."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mebp.errors import StoreError
from mebp.models.graph import Graph

FLASH_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What plain torch attains here: bytes/s of copies, and how much slower fp32 products are."""

    memory_bandwidth: float
    fp32_factor: float


def measure_rates(graph: Graph) -> Rates:
    """Dense products at the shapes of the graph's linears, and a large copy."""
    shapes = {(op.dims.rows, op.dims.cols, op.dims.outs) for op in graph.ops if op.kind.is_linear and not op.backward}
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        total = 0.0
        for rows, cols, outs in shapes:
            x, w, y = (
                torch.randn(rows, cols).to(dtype),
                torch.randn(outs, cols).to(dtype),
                torch.empty(rows, outs, dtype=dtype),
            )
            total += _fastest(lambda x=x, w=w, y=y: torch.mm(x, w.T, out=y))  # type: ignore[misc]
        seconds[dtype] = total
    source = torch.ones(64 << 20, dtype=torch.int8)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source))
    return Rates(
        memory_bandwidth=2 * source.numel() / copy,
        fp32_factor=max(1.0, seconds[torch.float32] / seconds[torch.bfloat16]),
    )


def measure_flash(folder: Path) -> tuple[float, float]:
    """(read, write) bytes/s of a file in `folder`, written through to the device and read with its cached pages dropped."""
    path = folder / "flash"
    block = os.urandom(4 << 20)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        begin = time.perf_counter()
        for _ in range(FLASH_BYTES // len(block)):
            os.write(file, block)
        os.fsync(file)
        write = FLASH_BYTES / (time.perf_counter() - begin)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        for offset in range(0, FLASH_BYTES, len(block)):
            os.pread(file, len(block), offset)
        read = FLASH_BYTES / (time.perf_counter() - begin)
        os.close(file)
    except OSError as error:
        raise StoreError(f"cannot measure flash in {folder.parent}: {error.strerror}: name another folder as `spill_dir`") from None
    return read, write


def _fastest(run: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest of a few runs: a neighbour slows what is measured, and never speeds it up."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
