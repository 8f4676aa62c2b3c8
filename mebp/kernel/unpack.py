"""Unpacking by a kernel: rows of a weight in one pass, from codes to bf16 or fp32."""

import torch
from torch import Tensor

from mebp.kernel.library import UNPACKING, library
from mebp.kernel.triton_unpack import unpack_on_gpu


def unpack_rows(codes: Tensor, steps: Tensor, bits: int, out: Tensor) -> bool:
    """Decompress codes (rows, bytes) int8 and steps (rows, groups) bf16 into `out` (rows, cols); False where the kernel cannot."""
    if out.device.type == "cuda":
        with torch.cuda.device(out.device):  # Triton launches on the current one
            return unpack_on_gpu(codes, steps, bits, out)
    kernels = library().kernels if out.device.type == "cpu" and out.dtype in UNPACKING else None
    if kernels is None or not (codes.is_contiguous() and steps.is_contiguous() and out.is_contiguous()):
        return False
    rows, cols = out.shape
    group = cols // steps.shape[1]
    getattr(kernels, UNPACKING[out.dtype])(codes.data_ptr(), steps.data_ptr(), out.data_ptr(), rows, cols, group, bits)
    return True
