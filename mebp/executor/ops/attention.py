"""Causal grouped-query attention, with or without a sliding window, a tile of queries at a time; exact, saving only q, k, v.

A tile has R query positions of the G heads that share one key head, as R x G rows; it sees all its keys at once, so the softmax is
a plain one; keys among them that it does not see are masked. Scores are fp32; products run in the activations' type. B batch, T
positions, D head_dim, S keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.executor.ops.mixed import add_across
from mebp.kernel.attention import Attention
from mebp.kernel.product import multiply_dense
from mebp.models.kind.attention import AttentionParams, QueryTile, query_tiles


@dataclass(slots=True, kw_only=True)
class _Buffers:
    scores: Tensor  # fp32, flat
    typed: Tensor  # activations' type, flat
    mask: Tensor  # bool, flat


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile(QueryTile):
    """A tile of queries of key head `group` in sequence `batch`."""

    batch: int
    group: int


def attention(io: Io) -> None:
    if _kernel(io).forward(io["q"], io["k"], io["v"], io["y"], io.room()):
        return
    q, y = _by_group(io, io["q"]), _by_group(io, io["y"])  # (B, T, KV, G, D)
    k, v = _by_head(io, io["k"]), _by_head(io, io["v"])  # (B, T, KV, D)
    buffers, q_tile, y_tile = _buffers(io), io.take("q"), io.take("y")
    for tile in _tiles(io):
        keys, values = (t[tile.batch, tile.low : tile.high, tile.group] for t in (k, v))  # (S, D)
        queries = _gather(q, tile, q_tile)  # (R x G, D)
        p = _probabilities(io, buffers, queries, keys, tile)  # (R x G, S) fp32
        typed = buffers.typed[: p.numel()].view(p.shape).copy_(p)
        multiply_dense(typed, values, y_tile[: len(queries)])
        _scatter(y_tile[: len(queries)], tile, y)


def attention_backward(io: Io) -> None:
    """dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dp p)) scale, times the cap's slope; dq = ds k; dk = ds^T q. p is recomputed
    from q and k.
    """
    d = io.dims
    if _kernel(io).backward(tuple(io[slot] for slot in ("q", "k", "v", "dy", "dq", "dk", "dv")), io.room()):
        return
    q, dy, dq = (_by_group(io, io[slot]) for slot in ("q", "dy", "dq"))  # (B, T, KV, G, D)
    k, v, dk, dv = (_by_head(io, io[slot]) for slot in ("k", "v", "dk", "dv"))  # (B, T, KV, D)
    buffers, flat_ds, row = _buffers(io), io.take("ds"), io.take("row")
    flat_slopes = io.take_if_any("slopes")
    q_tile, dy_tile, dq_tile = (io.take(name) for name in ("q", "dy", "dq"))  # (rows, D)
    dk_sum, dv_sum, product = (io.take(name) for name in ("dk sum", "dv sum", "product"))  # (T, D), (T, D), (S, D)
    scale = io.params(AttentionParams).scale
    for tile in _tiles(io):
        if tile.start == 0:
            dk_sum.zero_()
            dv_sum.zero_()
        keys, values = (t[tile.batch, tile.low : tile.high, tile.group] for t in (k, v))  # (S, D)
        queries, upstream = _gather(q, tile, q_tile), _gather(dy, tile, dy_tile)  # (R x G, D)
        slopes = None if flat_slopes is None else flat_slopes[: len(queries) * len(keys)].view(len(queries), len(keys))
        p = _probabilities(io, buffers, queries, keys, tile, slopes)  # (R x G, S) fp32
        ds = flat_ds[: p.numel()].view(p.shape)
        typed = buffers.typed[: p.numel()].view(p.shape).copy_(p)
        span = tile.high - tile.low
        add_across(dv_sum[tile.low : tile.high], torch.mm(typed.T, upstream, out=product[:span]), flat_ds)
        ds.copy_(torch.mm(upstream, values.T, out=typed))
        _softmax_backward(p, ds, row[: len(p)], scale)
        if slopes is not None:
            ds.mul_(slopes)
        typed.copy_(ds)
        multiply_dense(typed, keys, dq_tile[: len(queries)])
        _scatter(dq_tile[: len(queries)], tile, dq)
        add_across(dk_sum[tile.low : tile.high], torch.mm(typed.T, queries, out=product[:span]), flat_ds)
        if tile.end == d.seq:
            dk[tile.batch, :, tile.group].copy_(dk_sum)
            dv[tile.batch, :, tile.group].copy_(dv_sum)


def _kernel(io: Io) -> Attention:
    d = io.dims
    extents = {"batch": d.batch, "seq": d.seq, "heads": d.heads, "kv_heads": d.kv_heads, "width": d.head_dim, "window": d.window}
    params = io.params(AttentionParams)
    return Attention(**extents, scale=params.scale, cap=params.cap)


def _softmax_backward(p: Tensor, ds: Tensor, row: Tensor, scale: float) -> None:
    """ds contains dp and becomes p (dp - sum(dp p)) scale; p is used up."""
    ds.mul_(p)
    torch.sum(ds, dim=1, out=row)
    ds.sub_(p.mul_(row[:, None])).mul_(scale)


def _probabilities(io: Io, buffers: _Buffers, queries: Tensor, keys: Tensor, tile: _Tile, slopes: Tensor | None = None) -> Tensor:
    """Softmax of the scores over the keys that each query may see, fp32, (R x G, S); `slopes` becomes what capping multiplies
    their gradient by.
    """
    params = io.params(AttentionParams)
    rows, span = len(queries), len(keys)
    typed = torch.mm(queries, keys.T, out=buffers.typed[: rows * span].view(rows, span))
    scores = buffers.scores[: rows * span].view(rows, span).copy_(typed).mul_(params.scale)
    if params.cap:
        scores.div_(params.cap).tanh_()
        if slopes is not None:
            torch.mul(scores, scores, out=slopes).neg_().add_(1.0)
        scores.mul_(params.cap)
    _mask(io, buffers, scores, tile)
    return torch.softmax(scores, dim=1, out=scores)  # each row is read before it is written


def _mask(io: Io, buffers: _Buffers, scores: Tensor, tile: _Tile) -> None:
    """-inf where a key lies after its query, or a window or more before it."""
    count, span = tile.end - tile.start, tile.high - tile.low
    query = io.env.positions[tile.start : tile.end, None]
    key = io.env.positions[None, tile.low : tile.high]
    mask = buffers.mask[: count * span].view(count, span)
    by_query = scores.view(count, -1, span)
    torch.gt(key, query, out=mask)
    by_query.masked_fill_(mask[:, None], float("-inf"))
    if io.dims.window and tile.low < tile.end - io.dims.window:
        torch.le(key, query - io.dims.window, out=mask)
        by_query.masked_fill_(mask[:, None], float("-inf"))


def _tiles(io: Io) -> Iterator[_Tile]:
    tiles = list(query_tiles(io.dims))
    for batch in range(io.dims.batch):
        for group in range(io.dims.kv_heads):
            for tile in tiles:
                yield _Tile(batch=batch, group=group, start=tile.start, end=tile.end, low=tile.low, high=tile.high)


def _buffers(io: Io) -> _Buffers:
    return _Buffers(scores=io.take("scores"), typed=io.take("typed"), mask=io.take("mask"))


def _by_group(io: Io, x: Tensor) -> Tensor:
    """(tokens, heads x D) as (B, T, KV, G, D)."""
    d = io.dims
    return x.view(d.batch, d.seq, d.kv_heads, d.heads // d.kv_heads, d.head_dim)


def _by_head(io: Io, x: Tensor) -> Tensor:
    """(tokens, KV x D) as (B, T, KV, D)."""
    d = io.dims
    return x.view(d.batch, d.seq, d.kv_heads, d.head_dim)


def _gather(x: Tensor, tile: _Tile, out: Tensor) -> Tensor:
    """Copy a tile's rows of `x` together: (R x G, D)."""
    source = x[tile.batch, tile.start : tile.end, tile.group]  # (R, G, D)
    count = source.shape[0] * source.shape[1]
    out[:count].view(source.shape).copy_(source)
    return out[:count]


def _scatter(rows: Tensor, tile: _Tile, y: Tensor) -> None:
    target = y[tile.batch, tile.start : tile.end, tile.group]  # (R, G, D)
    target.copy_(rows.view(target.shape))
