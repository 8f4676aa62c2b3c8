"""Triton's unpacking against torch's, bit for bit: on a CUDA device, or anywhere in its interpreter (TRITON_INTERPRET=1)."""

import os

import pytest
import torch

from mebp.kernel.triton_unpack import unpack_on_gpu
from mebp.models.format import FORMATS
from mebp.store.codec import unpack_in_torch
from tests.weights import random_weight

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device", allow_module_level=True)


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.compressed])
@pytest.mark.parametrize(("rows", "cols"), [(5, 256), (3, 1280), (130, 1536)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_weight_has_the_same_bits(name: str, rows: int, cols: int, dtype: torch.dtype) -> None:
    frozen = random_weight(rows, cols, FORMATS[name])
    expected, found = torch.empty(rows, cols, dtype=dtype), torch.empty(rows, cols, dtype=dtype, device=DEVICE)
    unpack_in_torch(frozen, expected)
    assert unpack_on_gpu(frozen.each(lambda part: part.to(DEVICE)), found)
    assert torch.equal(found.cpu(), expected)
