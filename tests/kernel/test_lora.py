"""What an adapter adds to a product, against double precision."""

import pytest
import torch

from mebp.kernel.library import library
from mebp.kernel.lora import lora_down, lora_gradients
from mebp.kernel.product import multiply
from mebp.models.format import FORMATS
from mebp.store.codec import quantise, unpack_whole

pytestmark = pytest.mark.skipif(not library().multiplies, reason=library().path)


def values(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_near(found: torch.Tensor, exact: torch.Tensor, error: float) -> None:
    assert (found.double() - exact).norm() <= error * exact.norm()


@pytest.mark.parametrize("tokens", [1, 2, 67, 600])
@pytest.mark.parametrize("rank", [1, 8, 16, 40])
@pytest.mark.parametrize("room", [200_000, 4_000_000])
def test_gradients_are_those_of_the_formulas(tokens: int, rank: int, room: int) -> None:
    k, n, scale = 128, 320, 2.0
    x, dy, A, B = values(tokens, k, seed=0), values(tokens, n, seed=1), values(rank, k, seed=2), values(n, rank, seed=3)
    h, dh = torch.empty(tokens, rank).bfloat16(), torch.empty(tokens, rank).bfloat16()
    dA, dB = torch.empty(rank, k), torch.empty(n, rank)
    space = torch.full((room + 64,), 77, dtype=torch.int8)
    if not lora_gradients((x, dy, A, B), (h, dh), (dA, dB), scale, space[:room]):
        assert room < 10**6  # too little for many tokens at a high rank
        return
    assert (space[room:] == 77).all()
    assert_near(h, x.double() @ A.double().T, 4e-3)
    assert_near(dh, dy.double() @ B.double(), 4e-3)
    assert_near(dA, dh.double().T @ x.double(), 1e-5)
    assert_near(dB, scale * dy.double().T @ h.double(), 1e-5)
    again = torch.empty_like(h)
    assert lora_down(x, A, again, space)
    assert torch.equal(again, h)


@pytest.mark.parametrize("name", ["int4-g64", "int8", "ternary"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("rank", [2, 8, 24])
def test_a_product_takes_its_adapter_along(name: str, transposed: bool, rank: int) -> None:
    rows, cols, tokens, fmt = 328, 640, 70, FORMATS[name]
    frozen = quantise(torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) * 0.05, fmt)
    W = unpack_whole(frozen, torch.bfloat16).double()
    x, left = values(tokens, cols if transposed else rows, seed=1), values(tokens, rank, seed=2)
    right = values(rows, rank, seed=3) if transposed else values(rank, cols, seed=3)
    out = torch.empty(tokens, rows if transposed else cols)
    room = torch.empty(10**6, dtype=torch.int8)
    assert multiply(x, frozen, out, room, transposed=transposed, adapter=(left, right))
    added = left.double() @ (right.T if transposed else right).double()
    assert_near(out, x.double() @ (W.T if transposed else W) + added, 1e-5)
