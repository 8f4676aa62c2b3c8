"""The compiled kernel: decompress rows of a weight in one pass, from codes to bf16 or fp32 (unpack.c).

It runs on the OpenMP threads of torch itself: a second pool of threads makes both many times slower, so where that library is not
found it runs on the calling thread alone. Without a compiler, or with MEBP_KERNEL=0, codec.py does the same in torch, bit for bit.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from mebp.models.format import WeightFormat
from mebp.native import NoLibraryError, load_library

SOURCE = resources.files("mebp.store").joinpath("unpack.c").read_text(encoding="utf-8")
SWITCH = "MEBP_KERNEL"
FUNCTIONS = {torch.bfloat16: "unpack_bf16", torch.float32: "unpack_fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The compiled library, None where weights are unpacked in torch; `path` says which, and why, in a few words."""

    library: ctypes.CDLL | None
    path: str


def unpack_rows(codes: Tensor, steps: Tensor, fmt: WeightFormat, out: Tensor) -> bool:
    """Decompress codes (rows, bytes) int8 and steps (rows, groups) bf16 into `out` (rows, cols); False where the kernel cannot."""
    library = kernel().library if out.device.type == "cpu" and out.dtype in FUNCTIONS else None
    if library is None or not (codes.is_contiguous() and steps.is_contiguous() and out.is_contiguous()):
        return False
    rows, cols = out.shape
    group = cols // steps.shape[1]
    function = getattr(library, FUNCTIONS[out.dtype])
    function(codes.data_ptr(), steps.data_ptr(), out.data_ptr(), rows, cols, group, fmt.bits)
    return True


@cache
def kernel() -> Kernel:
    """The kernel of this machine, built if need be."""
    if os.environ.get(SWITCH) == "0":
        return Kernel(library=None, path=f"in torch ({SWITCH}=0)")
    threaded = _torch_openmp()
    try:
        library = load_library("unpack", SOURCE, ("-fopenmp",) if threaded else ())
        for name in FUNCTIONS.values():
            function = getattr(library, name)
            function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4
            function.restype = None
    except (NoLibraryError, AttributeError) as why:
        return Kernel(library=None, path=f"in torch (no compiled kernel: {why})")
    return Kernel(library=library, path="compiled kernel" if threaded else "compiled kernel, on one thread")


def _torch_openmp() -> bool:
    """Make the symbols of torch's own OpenMP library visible to what is loaded next; whether there is one."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False
