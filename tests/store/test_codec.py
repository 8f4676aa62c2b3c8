"""Quantising and unpacking of weights, against a slow reading of the format's definition."""

import pytest
import torch

from mebp.models.format import FORMATS, WeightFormat
from mebp.store.codec import join_codes, quantise, unpack_whole
from mebp.store.reader import Frozen

COMPRESSED = [name for name, fmt in FORMATS.items() if fmt.compressed]


def unpacked_again(weight: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """A weight after it was quantised."""
    codes, steps = quantise(weight, fmt)
    return unpack_whole(Frozen(codes=codes, steps=steps, format=fmt), torch.float32)


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_follows_the_definition_of_the_format(name: str, dtype: torch.dtype) -> None:
    """byte i of a row holds columns i, i + m, ...; weight = code x 2**(8 - bits) x step."""
    fmt = FORMATS[name]
    codes, steps = quantise(torch.randn(12, 256, generator=torch.Generator().manual_seed(1)), fmt)
    per_byte, m = 8 // fmt.bits, 256 * fmt.bits // 8
    expected = torch.empty(12, 256)
    for row in range(12):
        for col in range(256):
            byte = int(codes[row, col % m]) & 255
            code = (byte >> (fmt.bits * (col // m))) & (2**fmt.bits - 1)
            signed = code - 2**fmt.bits if code >= 2 ** (fmt.bits - 1) else code
            expected[row, col] = signed * 2 ** (8 - fmt.bits) * float(steps[row, col // fmt.group_cols(256)])
    assert per_byte * m == 256
    assert torch.equal(unpack_whole(Frozen(codes=codes, steps=steps, format=fmt), dtype), expected.to(dtype))


@pytest.mark.parametrize(
    ("name", "error"), [("int4-g32", 0.10), ("int4-g64", 0.12), ("int4-g128", 0.13), ("int8", 0.01), ("ternary", 0.55)]
)
def test_quantisation_error_of_normal_weights(name: str, error: float) -> None:
    """Relative root mean square; the bounds are what symmetric rounding at these widths costs."""
    fmt = FORMATS[name]
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)) * 0.02
    unpacked = unpacked_again(weight, fmt)
    assert 0.2 * error < float((unpacked - weight).norm() / weight.norm()) < error


@pytest.mark.parametrize("name", COMPRESSED)
def test_stored_size_is_what_the_format_says(name: str) -> None:
    fmt = FORMATS[name]
    codes, steps = quantise(torch.randn(8, 256), fmt)
    assert codes.numel() + 2 * steps.numel() == fmt.nbytes(8, 256)


def test_a_group_of_zeros_unpacks_to_zeros() -> None:
    fmt = FORMATS["int4-g32"]
    assert not unpacked_again(torch.zeros(4, 64), fmt).any()


def test_every_int4_code_survives() -> None:
    fmt = FORMATS["int4-g32"]
    codes, steps = torch.arange(-8, 8, dtype=torch.int8).repeat(4)[None], torch.full((1, 2), 1 / 16, dtype=torch.bfloat16)
    unpacked = unpack_whole(Frozen(codes=join_codes(codes, fmt), steps=steps, format=fmt), torch.float32)
    assert torch.equal(unpacked, codes.float())
