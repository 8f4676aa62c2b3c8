"""Triton's unpacking against torch's, bit for bit: on a CUDA device, or anywhere in its interpreter (TRITON_INTERPRET=1)."""

import os

import pytest
import torch

from mebp.kernel.triton_unpack import unpack_on_gpu
from mebp.models.format import FORMATS
from mebp.store.codec import quantise, unpack_in_torch

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device", allow_module_level=True)


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.compressed])
@pytest.mark.parametrize(("rows", "cols"), [(5, 128), (3, 640), (130, 1920)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_weight_has_the_same_bits(name: str, rows: int, cols: int, dtype: torch.dtype) -> None:
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(rows + cols)
    codes, steps = quantise(torch.randn(rows, cols, generator=generator) * 0.05, fmt)
    expected, found = torch.empty(rows, cols, dtype=dtype), torch.empty(rows, cols, dtype=dtype, device=DEVICE)
    unpack_in_torch(codes, steps, fmt, expected, torch.empty(codes.numel(), dtype=torch.int8))
    assert unpack_on_gpu(codes.to(DEVICE), steps.to(DEVICE), fmt.bits, found)
    assert torch.equal(found.cpu(), expected)
