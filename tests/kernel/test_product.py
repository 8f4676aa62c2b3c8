"""The kernel's products against the unpacked weight in double precision: every format, ragged shapes, little room, many threads."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mebp.kernel.library import library
from mebp.kernel.product import multiply, multiply_dense
from mebp.kernel.weight import Frozen
from mebp.models.format import FORMATS
from mebp.store.codec import unpack_whole
from tests.weights import UNLIKE, random_weight

COMPILED = library().kernels


@pytest.fixture(params=["as chosen", "our own"])
def multiplier(request: pytest.FixtureRequest) -> Iterator[None]:
    """The block product that this machine takes, and ours."""
    if COMPILED is None or not library().multiplies:
        pytest.skip(library().path)
    if request.param == "our own":
        COMPILED.use_product(None, None)
    yield
    library.cache_clear()
    library()  # takes this machine's again


# groups that lie across slots, rows that fill no block
SHAPES = [(64, 128), (896, 128), (130, 640), (320, 1920), (66, 768), (1000, 1152)]


def product(x: torch.Tensor, frozen: Frozen, out: torch.Tensor, room: int = 1 << 20, **how: object) -> bool:
    space = torch.empty(room, dtype=torch.int8)
    return multiply(x, frozen, out, space, **how)  # type: ignore[arg-type]


def activations(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """To the rounding of the result, and of sums in single precision."""
    rounding = 2**-8 if found.dtype is torch.bfloat16 else 0.0
    scale = exact.abs().max()
    assert ((found.double() - exact).abs() <= exact.abs() * rounding + scale * 3e-6).all()


@pytest.mark.usefixtures("multiplier")
@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 67, 256])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_is_that_of_the_unpacked_weight(name: str, rows: int, cols: int, tokens: int, transposed: bool) -> None:
    if cols % (FORMATS[name].block or 1):
        pytest.skip("blocks do not divide these columns")
    frozen = random_weight(rows, cols, FORMATS[name])
    W = unpack_whole(frozen, torch.bfloat16).double()
    x = activations(tokens, cols if transposed else rows)
    exact = x.double() @ (W.T if transposed else W)
    for dtype in (torch.bfloat16, torch.float32):
        out = torch.full(exact.shape, 3.0, dtype=dtype)
        assert product(x, frozen, out, transposed=transposed)
        assert_near(out, exact)
        out.fill_(3.0)
        assert product(x, frozen, out, transposed=transposed, add=True)
        assert_near(out, exact + 3)


@pytest.mark.usefixtures("multiplier")
def test_a_bias_is_added_before_rounding() -> None:
    frozen, x = random_weight(320, 640, FORMATS["int4-g64"]), activations(33, 640)
    bias = activations(1, 320)[0]
    out = torch.empty(33, 320, dtype=torch.bfloat16)
    assert product(x, frozen, out, transposed=True, bias=bias)
    assert_near(out, x.double() @ unpack_whole(frozen, torch.bfloat16).double().T + bias.double())


@pytest.mark.usefixtures("multiplier")
@pytest.mark.parametrize("room", [40_000, 100_000, 300_000])
@pytest.mark.parametrize("transposed", [True, False])
def test_little_room_and_any_number_of_threads_give_the_same_bits(room: int, transposed: bool) -> None:
    frozen, x = random_weight(1000, 1152, FORMATS["int4-g64"]), activations(300, 1152 if transposed else 1000)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.empty(300, 1000 if transposed else 1152, dtype=torch.bfloat16))
            assert product(x, frozen, results[-1], room * count, transposed=transposed)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.usefixtures("multiplier")
def test_nothing_is_written_outside_the_room_and_the_result() -> None:
    frozen, x = random_weight(130, 640, FORMATS["int8"]), activations(67, 640)
    space, wide = torch.full((200_000,), 77, dtype=torch.int8), torch.full((67, 200), 5.0, dtype=torch.bfloat16)
    assert multiply(x, frozen, wide[:, :130], space[64:-64], transposed=True)
    assert (space[:64] == 77).all()
    assert (space[-64:] == 77).all()
    assert (wide[:, 130:] == 5.0).all()


@pytest.mark.usefixtures("multiplier")
def test_what_it_cannot_do_is_left_to_torch() -> None:
    frozen, x = random_weight(64, 64, FORMATS["int4-g64"]), activations(8, 64)
    out = torch.full((8, 64), 3.0, dtype=torch.bfloat16)
    assert not product(x, frozen, out, 256, transposed=True)  # no room
    assert not product(x.float(), frozen, out, transposed=True)
    assert not product(x, frozen, out.double(), transposed=True)
    assert (out == 3).all()


@pytest.mark.parametrize(("k", "n"), [(1, 8), (17, 640), (896, 100), (1200, 16)])
@pytest.mark.parametrize("transposed", [True, False])
def test_dense_products_of_our_own(k: int, n: int, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if COMPILED is None or not library().multiplies:
        pytest.skip(library().path)
    monkeypatch.setattr("mebp.kernel.product.library", lambda: replace(library(), own=True))
    x, b = activations(300, k), activations(n, k).T if transposed else activations(k, n)
    out = torch.full((300, n), 3.0, dtype=torch.bfloat16)
    for add in (False, True):
        multiply_dense(x, b, out, add=add)
        assert_near(out, x.double() @ b.double() * (1 + add))
        out.copy_(x.double() @ b.double())
