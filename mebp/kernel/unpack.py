"""Unpacking by a kernel: rows of a weight in one pass, from codes to bf16 or fp32."""

from ctypes import byref

import torch
from torch import Tensor

from mebp.kernel.library import UNPACKING, library
from mebp.kernel.triton_unpack import unpack_on_gpu
from mebp.kernel.weight import Frozen, kernel_weight


def unpack_rows(frozen: Frozen, out: Tensor) -> bool:
    """Decompress a matrix into `out` (rows, cols); False where the kernel cannot."""
    if out.device.type == "cuda":
        with torch.cuda.device(out.device):  # Triton launches on the current one
            return unpack_on_gpu(frozen, out)
    kernels = library().kernels if out.device.type == "cpu" and out.dtype in UNPACKING and out.is_contiguous() else None
    weight = kernel_weight(frozen) if kernels is not None else None
    if weight is None or kernels is None:
        return False
    getattr(kernels, UNPACKING[out.dtype])(byref(weight), out.data_ptr())
    return True
