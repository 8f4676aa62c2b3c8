"""Attention's kernel against autograd in double precision: groups, windows, lengths that fill no block."""

import pytest
import torch

from mebp.kernel.attention import Attention
from mebp.kernel.library import library

pytestmark = pytest.mark.skipif(not library().multiplies, reason=library().path)


def exact(extents: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    a = extents
    queries = q.view(a.batch, a.seq, a.kv_heads, a.heads // a.kv_heads, a.width)
    keys, values = (t.view(a.batch, a.seq, a.kv_heads, a.width) for t in (k, v))
    scores = torch.einsum("btkgd,bskd->bkgts", queries, keys) * a.scale
    scores = a.cap * torch.tanh(scores / a.cap) if a.cap else scores
    query, key = torch.arange(a.seq)[:, None], torch.arange(a.seq)
    hidden = (key > query) | ((key <= query - a.window) if a.window else torch.tensor(False))
    p = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("bkgts,bskd->btkgd", p, values).reshape(q.shape)


@pytest.mark.parametrize("seq", [1, 2, 37, 64, 300])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (5, 0.0), (100, 0.0), (0, 1.5), (5, 1.5)])
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "width"), [(2, 4, 2, 16), (1, 14, 2, 64), (1, 6, 3, 80)])
def test_it_is_softmax_attention_with_its_gradients(
    seq: int, window: int, cap: float, batch: int, heads: int, kv_heads: int, width: int
) -> None:
    a = Attention(batch=batch, seq=seq, heads=heads, kv_heads=kv_heads, width=width, window=window, scale=0.3, cap=cap)
    generator = torch.Generator().manual_seed(seq + window)
    shapes = [(batch * seq, count * width) for count in (heads, kv_heads, kv_heads, heads)]
    q, k, v, dy = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    y, dq, dk, dv = (torch.full_like(t, 7.0) for t in (q, q, k, v))
    room = torch.empty(64 << 20, dtype=torch.int8)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    expected = exact(a, *leaves)
    gradients = torch.autograd.grad(expected, leaves, dy.double())
    if batch * kv_heads < torch.get_num_threads():
        pytest.skip("more threads than key heads")
    assert a.forward(q, k, v, y, room)
    assert a.backward((q, k, v, dy, dq, dk, dv), room)
    for found, wanted in ((y, expected.detach()), *zip((dq, dk, dv), gradients, strict=True)):
        error = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-3)
        assert error < 6e-3  # p and ds are rounded to bf16 before they are multiplied


def test_too_little_room_is_left_to_torch() -> None:
    a = Attention(batch=2, seq=64, heads=4, kv_heads=2, width=16, window=0, scale=1.0, cap=0.0)
    q, k = torch.zeros(128, 64, dtype=torch.bfloat16), torch.zeros(128, 32, dtype=torch.bfloat16)
    assert not a.forward(q, k, k, q, torch.empty(1000, dtype=torch.int8))
