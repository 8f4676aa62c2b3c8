"""Attention's kernel against autograd in double precision: groups, windows, lengths that fill no block, a part of the queries."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mebp.kernel.attention import Attention
from mebp.kernel.library import library

pytestmark = pytest.mark.skipif(not library().multiplies, reason=library().path)

ROOM = 64 << 20
PRECISE = 6e-3  # p and ds are rounded to bf16 before they are multiplied
FEW_KEYS, LESS_PRECISE = 2, 3e-2  # y is rounded too, and so is sum(dy y): with a key or two little else is left of ds


def scores_of(a: Attention, q: Tensor, k: Tensor) -> Tensor:
    """(batch, kv_heads, group, queries, keys), -inf where a key is not seen."""
    queries = q.view(a.batch, a.count, a.kv_heads, a.heads // a.kv_heads, a.width)
    keys = k.view(a.batch, a.first + a.count, a.kv_heads, a.width)
    scores = torch.einsum("btkgd,bskd->bkgts", queries, keys) * a.scale
    scores = a.cap * torch.tanh(scores / a.cap) if a.cap else scores
    query, key = torch.arange(a.first, a.first + a.count)[:, None], torch.arange(a.first + a.count)
    hidden = (key > query) | ((key <= query - a.window) if a.window else torch.tensor(False))
    return scores.masked_fill(hidden, float("-inf"))


def exact(a: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    values = v.view(a.batch, a.first + a.count, a.kv_heads, a.width)
    return torch.einsum("bkgts,bskd->btkgd", scores_of(a, q, k).softmax(dim=-1), values).reshape(q.shape)


def check(a: Attention, room: int = ROOM) -> None:
    """Forward and backward of random operands, dk and dv in bf16 and added to fp32 sums."""
    generator = torch.Generator().manual_seed(a.count + a.window)
    queries, keys = a.batch * a.count, a.batch * (a.first + a.count)
    shapes = [(queries, a.heads * a.width), *[(keys, a.kv_heads * a.width)] * 2, (queries, a.heads * a.width)]
    q, k, v, dy = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    y, lse, space = torch.full_like(q, 7.0), torch.full((queries, a.heads), 7.0), torch.empty(room, dtype=torch.int8)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    expected = exact(a, *leaves)
    gradients = torch.autograd.grad(expected, leaves, dy.double())
    assert a.forward(q, k, v, y, lse, space)
    assert error(y, expected.detach()) < PRECISE
    sums = scores_of(a, q.double(), k.double()).logsumexp(dim=-1)  # (batch, kv_heads, group, queries)
    assert torch.allclose(lse.double(), sums.permute(0, 3, 1, 2).reshape(lse.shape), atol=1e-3, rtol=1e-4)
    for kind, before in ((torch.bfloat16, 7.0), (torch.float32, 1.0)):
        dq, dk, dv = q.clone(), *(torch.full(t.shape, before, dtype=kind) for t in (k, v))
        assert a.backward((dq, k, v, dy, y, lse), dk, dv, space)
        added = before if kind is torch.float32 else 0.0
        for found, wanted in zip((dq, dk.double() - added, dv.double() - added), gradients, strict=True):
            assert error(found, wanted) < (LESS_PRECISE if a.first + a.count <= FEW_KEYS else PRECISE)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-2))


@pytest.mark.parametrize("seq", [1, 2, 37, 64, 300])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (5, 0.0), (100, 0.0), (0, 1.5), (5, 1.5)])
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "width"), [(2, 4, 2, 16), (1, 14, 2, 64), (1, 6, 3, 80), (1, 4, 1, 32)])
def test_it_is_softmax_attention_with_its_gradients(
    seq: int, window: int, cap: float, batch: int, heads: int, kv_heads: int, width: int
) -> None:
    check(
        Attention(batch=batch, first=0, count=seq, heads=heads, kv_heads=kv_heads, width=width, window=window, scale=0.3, cap=cap)
    )


@pytest.mark.parametrize(("first", "count"), [(64, 64), (1, 63), (700, 129), (1100, 50), (900, 1300)])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (50, 0.0), (300, 1.5)])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_part_of_the_queries_sees_all_keys_before_it(first: int, count: int, window: int, cap: float, kv_heads: int) -> None:
    check(
        Attention(batch=1, first=first, count=count, heads=4, kv_heads=kv_heads, width=32, window=window, scale=0.2, cap=cap),
        room=4 << 20,
    )


def test_too_little_room_is_left_to_torch() -> None:
    a = Attention(batch=2, first=0, count=64, heads=4, kv_heads=2, width=16, window=0, scale=1.0, cap=0.0)
    q, k, lse = torch.zeros(128, 64).bfloat16(), torch.zeros(128, 32).bfloat16(), torch.zeros(128, 4)
    assert not a.forward(q, k, k, q, lse, torch.empty(1000, dtype=torch.int8))
    assert not a.backward((q, k, k, q, q, lse), k, k, torch.empty(1000, dtype=torch.int8))


def test_what_it_keeps_in_the_room_does_not_grow_with_the_sequence() -> None:
    a = Attention(batch=1, first=0, count=8192, heads=2, kv_heads=1, width=16, window=64, scale=1.0, cap=0.0)
    for first, count in ((0, 8192), (7168, 1024)):
        some = replace(a, first=first, count=count)
        q, k, lse = torch.zeros(count, 32).bfloat16(), torch.zeros(8192, 16).bfloat16(), torch.zeros(count, 2)
        sums = torch.zeros(8192, 16)
        room = torch.empty(2 << 20, dtype=torch.int8)
        assert some.forward(q, k, k, q.clone(), lse, room)
        assert some.backward((q, k, k, q.clone(), q.clone(), lse), sums, sums.clone(), room)


def test_all_is_computed_by_fewer_threads_than_were_asked_for() -> None:
    """OpenMP may give fewer: then those that there are take all keys."""
    a = Attention(batch=1, first=700, count=129, heads=4, kv_heads=1, width=32, window=0, scale=0.2, cap=0.0)
    program = f"from tests.kernel.test_attention import Attention, check; check({a!r})"
    fewer = {**os.environ, "OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], env=fewer, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
