"""Element-wise kernels against double precision: to the rounding of their results."""

import pytest
import torch
import torch.nn.functional as F

from mebp.kernel import elementwise
from mebp.kernel.library import library
from mebp.kernel.softmax import Sums, softmax_tile

pytestmark = pytest.mark.skipif(library().kernels is None, reason=library().path)
COLS = [16, 100, 896]


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(torch.bfloat16)


def assert_rounded(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Within a bf16's rounding of the exact value, and single precision's where terms cancel."""
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + exact.abs().max() * 1e-6).all()


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("add", [True, False])
def test_norm_and_its_backward(cols: int, add: bool) -> None:
    x, w, dy, dx = values(33, cols, scale=3), values(cols, seed=1), values(33, cols, seed=2), values(33, cols, seed=3)
    exact_x = x.double().requires_grad_()
    exact = F.rms_norm(exact_x, (cols,), w.double() + 1.0, 1e-5)
    (gradient,) = torch.autograd.grad(exact, exact_x, dy.double())
    y = torch.empty_like(x)
    assert elementwise.norm(x, w, y, 1e-5, 1.0)
    assert_rounded(y, exact.detach())
    before = dx.double() if add else 0.0
    assert elementwise.norm_backward(x, w, dy, dx, 1e-5, 1.0, add=add)
    assert_rounded(dx, gradient + before)
    if not add:
        assert elementwise.norm_backward(x, w, dy, dy, 1e-5, 1.0, add=False)  # in dy's place
        assert torch.equal(dy, dx)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_gated_activations_and_their_backward(activation: str, scale: float) -> None:
    gate, up, dy = (values(7, 1333, seed=seed, scale=scale) for seed in range(3))
    exact_gate, exact_up = (t.double().requires_grad_() for t in (gate, up))
    act = F.silu(exact_gate) if activation == "silu" else F.gelu(exact_gate, approximate="tanh")
    exact = act * exact_up
    gradients = torch.autograd.grad(exact, (exact_gate, exact_up), dy.double())
    y = torch.empty_like(gate)
    assert elementwise.glu(gate, up, y, activation)
    assert_rounded(y, exact.detach())
    assert elementwise.glu_backward(dy, gate, up, activation)  # in place
    assert_rounded(gate, gradients[0])
    assert_rounded(up, gradients[1])


def test_rotation_and_back() -> None:
    x = values(2, 5, 3, 24)
    angles = torch.arange(5)[:, None] * torch.rand(12, generator=torch.Generator().manual_seed(1))
    cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    first, second = x.double().chunk(2, dim=-1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    y = torch.empty_like(x)
    assert elementwise.rotate(x, y, cos, sin, back=False)
    assert_rounded(y, torch.cat([first * c - second * s, second * c + first * s], dim=-1))
    assert elementwise.rotate(x, x, cos, sin, back=True)  # in place
    assert_rounded(x, torch.cat([first * c + second * s, second * c - first * s], dim=-1))


def test_what_is_not_bf16_or_contiguous_is_left_to_torch() -> None:
    x, w = values(4, 32), values(32)
    assert not elementwise.norm(x.float(), w, x.float(), 1e-5, 0.0)
    assert not elementwise.glu(values(4, 64)[:, :32], x, x, "silu")


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (0.3, 0.0), (0.5, 15.0)])
def test_a_softmax_by_tiles_is_that_of_all_logits(typed: bool, scale: float, cap: float) -> None:
    tokens, vocab, tile = 9, 1000, 300
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, vocab, generator=generator) * 20
    W, labels = torch.randn(vocab, 8, generator=generator), torch.randint(-1, vocab, (tokens,), generator=generator)
    sums = Sums(
        highest=torch.full((tokens,), float("-inf")),
        total=torch.zeros(tokens),
        picked=torch.zeros(tokens),
        weighted=torch.zeros(tokens, 8),
    )
    for low in range(0, vocab, tile):
        part = logits[:, low : low + tile].contiguous()
        exps = torch.empty(part.shape, dtype=torch.bfloat16) if typed else None
        assert softmax_tile(part, low, labels, sums, exps, scale=scale, cap=cap)
        assert sums.weighted is not None
        sums.weighted.add_((part if exps is None else exps.float()) @ W[low : low + tile])
    exact, slopes = logits.double() * scale, torch.ones(1)
    if cap:
        exact = cap * torch.tanh(exact / cap)
        slopes = 1 - (exact / cap) ** 2
    top = exact.amax(dim=1)
    assert torch.allclose(sums.highest.double(), top, rtol=1e-6)
    assert torch.allclose(sums.total.double(), (exact - top[:, None]).exp().sum(dim=1), rtol=3e-6)
    known = labels >= 0
    assert torch.allclose(sums.picked[known].double(), exact[known, labels[known]], rtol=1e-6)
    expected = ((exact - top[:, None]).exp() * slopes) @ W.double()
    assert sums.weighted is not None
    assert torch.allclose(sums.weighted.double(), expected, rtol=1e-2 if typed else 1e-5, atol=1e-2 if typed else 1e-6)


def test_logits_that_are_not_finite_spoil_the_sums() -> None:
    logits = torch.zeros(2, 32)
    logits[0, 3], logits[1, 5] = float("nan"), float("inf")
    sums = Sums(highest=torch.full((2,), float("-inf")), total=torch.zeros(2), picked=torch.zeros(2), weighted=None)
    assert softmax_tile(logits, 0, torch.zeros(2, dtype=torch.int64), sums, None, scale=1.0, cap=0.0)
    assert not torch.isfinite(sums.total).any()
