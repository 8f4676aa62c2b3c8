"""Quantising and unpacking of weights, against a slow reading of the format's definition."""

import pytest
import torch

from mebp.kernel.weight import NF4, Frozen
from mebp.models.format import BLOCK_OFFSETS, BLOCK_SCALES, CODES, FORMATS, HIGH, OFFSETS, SCALES, WeightFormat
from mebp.store.codec import join_codes, quantise, unpack_whole
from tests.weights import UNLIKE, random_weight

COMPRESSED = [name for name in UNLIKE if FORMATS[name].compressed]
WRITTEN = [name for name in COMPRESSED if not FORMATS[name].block]


def unpacked_again(weight: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """A weight after it was quantised."""
    return unpack_whole(quantise(weight, fmt), torch.float32)


def slot_of(joined: torch.Tensor, col: int, bits: int, cols: int) -> int:
    """The bits of a column's code."""
    m = cols * bits // 8
    return (int(joined[col % m]) & 255) >> (bits * (col // m)) & (2**bits - 1)


def read_slowly(frozen: Frozen, row: int, col: int) -> torch.Tensor:
    """One weight in single precision: byte i of a row holds columns i, i + m, ...; weight = level x scale + offset."""
    fmt, cols = frozen.format, frozen.cols
    code = slot_of(frozen.codes[row], col, fmt.low_bits, cols)
    if HIGH in frozen.parts:
        code |= slot_of(frozen.parts[HIGH][row], col, 2, cols) << 4
    signed = code - 2**fmt.bits if fmt.levels == "signed" and code >= 2 ** (fmt.bits - 1) else code
    level = torch.tensor(NF4[code] if fmt.levels == "nf4" else float(signed))
    group = col // fmt.group_cols(cols)
    scale = frozen.parts[SCALES][row, group].float()
    offset = frozen.parts[OFFSETS][row, group].float() if fmt.offset else torch.tensor(0.0)
    if fmt.zero_point:
        return (level - offset) * scale
    if block := fmt.block_cols(cols):
        scale = scale * frozen.parts[BLOCK_SCALES][row, col // block].float()
        if fmt.affine:
            offset = offset * frozen.parts[BLOCK_OFFSETS][row, col // block].float()
    return level * scale + offset


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_follows_the_definition_of_the_format(name: str, dtype: torch.dtype) -> None:
    frozen = random_weight(3, 512, FORMATS[name])
    expected = torch.stack([read_slowly(frozen, row, col) for row in range(3) for col in range(512)]).view(3, 512)
    assert torch.equal(unpack_whole(frozen, dtype), expected.to(dtype))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("int4-g32", 0.09),
        ("int4-g64", 0.1),
        ("int4-g128", 0.12),
        ("int4-affine-g32", 0.08),
        ("int4-affine-g64", 0.1),
        ("nf4-g64", 0.1),
        ("int4-k", 0.08),
        ("int6", 0.05),
        ("int8", 0.01),
        ("int8-affine-g64", 0.01),
        ("int4-zero-g64-fp16", 0.11),
        ("q4_1", 0.08),
        ("ternary", 0.55),
    ],
)
def test_quantisation_error_of_normal_weights(name: str, error: float) -> None:
    """Relative root mean square; the bounds are what rounding at these widths costs."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)) * 0.02
    unpacked = unpacked_again(weight, FORMATS[name])
    assert 0.2 * error < float((unpacked - weight).norm() / weight.norm()) < error


@pytest.mark.parametrize("name", WRITTEN)
def test_no_scale_that_was_tried_is_better(name: str) -> None:
    """Quantising what was quantised changes nothing but rounding."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(2)) * 0.02
    once = unpacked_again(weight, FORMATS[name])
    if FORMATS[name].bits > 2:
        assert float((unpacked_again(once, FORMATS[name]) - once).norm() / once.norm()) < 0.02


@pytest.mark.parametrize("name", WRITTEN)
def test_stored_size_is_what_the_format_says(name: str) -> None:
    frozen = quantise(torch.randn(8, 256), FORMATS[name])
    assert sum(part.numel() * part.itemsize for part in frozen.parts.values()) == FORMATS[name].nbytes(8, 256)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_group_of_zeros_unpacks_to_zeros(name: str) -> None:
    assert not unpacked_again(torch.zeros(4, 128), FORMATS[name]).any()


def test_every_int4_code_survives() -> None:
    codes, scales = torch.arange(-8, 8, dtype=torch.int8).repeat(4)[None], torch.ones((1, 2), dtype=torch.bfloat16)
    frozen = Frozen(format=FORMATS["int4-g32"], cols=64, parts={CODES: join_codes(codes, 4), SCALES: scales})
    assert torch.equal(unpack_whole(frozen, torch.float32), codes.float())
