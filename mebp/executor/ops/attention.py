"""Causal grouped-query attention, with or without a sliding window, a tile of queries at a time; exact, saving q, k, v, y and one
number a row, the logarithm of the sum of e^score.

A tile has R query positions of the G heads that share one key head, as R x G rows; it sees all its keys at once, so the softmax is
a plain one; keys among them that it does not see are masked. Scores are fp32; products run in the activations' type. B batch, T
queries of a sequence, D head_dim, S keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.executor.ops.mixed import add_across
from mebp.kernel.attention import Attention
from mebp.kernel.product import multiply_dense
from mebp.models.kind.attention import AttentionParams, QueryTile, query_tiles, score_rows


@dataclass(slots=True, kw_only=True)
class _Buffers:
    scores: Tensor  # fp32, flat
    typed: Tensor  # activations' type, flat
    mask: Tensor  # bool, flat
    row: Tensor  # fp32, (R x G,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile(QueryTile):
    """A tile of queries of key head `group` in sequence `batch`."""

    batch: int
    group: int


def attention(io: Io) -> None:
    if _kernel(io).forward(io["q"], io["k"], io["v"], io["y"], io["lse"], io.room()):
        return
    q, y, lse = (_by_group(io, io[slot]) for slot in ("q", "y", "lse"))  # (B, T, KV, G, D), of lse D = 1
    k, v = _by_head(io, io["k"]), _by_head(io, io["v"])  # (B, S, KV, D)
    buffers, q_tile, y_tile, flat_sums = _buffers(io), io.take("q"), io.take("y"), io.take("sums")
    for tile in _tiles(io):
        keys, values = (t[tile.batch, tile.low : tile.high, tile.group] for t in (k, v))  # (S, D)
        queries = _gather(q, tile, q_tile, io.dims.first)  # (R x G, D)
        row, sums = buffers.row[: len(queries)], flat_sums[: len(queries)]
        p = _scores(io, buffers, queries, keys, tile)  # (R x G, S) fp32
        _softmax(p, row, sums)
        typed = buffers.typed[: p.numel()].view(p.shape).copy_(p)
        multiply_dense(typed, values, y_tile[: len(queries)])
        _scatter(y_tile[: len(queries)], tile, io.dims.first, y)
        _scatter(row.add_(sums.log_())[:, None], tile, io.dims.first, lse)


def attention_backward(io: Io) -> None:
    """dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dp p)) scale, times the cap's slope; dq = ds k, in the place of q; dk = ds^T q. p
    is recomputed from q and k. dk and dv are new, or fp32 sums that they are added to.
    """
    d, adds = io.dims, "dk" in io.op.updates
    if _kernel(io).backward(tuple(io[slot] for slot in ("q", "k", "v", "dy", "y", "lse")), io["dk"], io["dv"], io.room()):
        return
    q, dy = (_by_group(io, io[slot]) for slot in ("q", "dy"))  # (B, T, KV, G, D)
    k, v, dk, dv = (_by_head(io, io[slot]) for slot in ("k", "v", "dk", "dv"))  # (B, S, KV, D)
    buffers, flat_ds, flat_slopes = _buffers(io), io.take("ds"), io.take_if_any("slopes")
    q_tile, dy_tile, dq_tile = (io.take(name) for name in ("q", "dy", "dq"))  # (rows, D)
    product, scale = io.take("product"), io.params(AttentionParams).scale  # (S, D)
    sums = None if adds else (io.take("dk sum"), io.take("dv sum"))  # (S, D)
    for tile in _tiles(io):
        seen = (tile.batch, slice(tile.low, tile.high), tile.group)
        if sums and tile.start == d.first:
            sums[0].zero_()
            sums[1].zero_()
        keys, values = k[seen], v[seen]  # (S, D)
        into_k, into_v = (sums[0][seen[1]], sums[1][seen[1]]) if sums else (dk[seen], dv[seen])
        queries, upstream = _gather(q, tile, q_tile, d.first), _gather(dy, tile, dy_tile, d.first)  # (R x G, D)
        slopes = None if flat_slopes is None else flat_slopes[: len(queries) * len(keys)].view(len(queries), len(keys))
        row, span = buffers.row[: len(queries)], product[: len(keys)]
        p = _scores(io, buffers, queries, keys, tile, slopes)  # (R x G, S) fp32
        torch.softmax(p, dim=1, out=p)  # each row is read before it is written
        ds = flat_ds[: p.numel()].view(p.shape)
        typed = buffers.typed[: p.numel()].view(p.shape).copy_(p)
        add_across(into_v, torch.mm(typed.T, upstream, out=span), flat_ds)
        ds.copy_(torch.mm(upstream, values.T, out=typed))
        _softmax_backward(p, ds, row, scale)
        if slopes is not None:
            ds.mul_(slopes)
        typed.copy_(ds)
        multiply_dense(typed, keys, dq_tile[: len(queries)])
        _scatter(dq_tile[: len(queries)], tile, d.first, q)
        add_across(into_k, torch.mm(typed.T, queries, out=span), flat_ds)
        if sums and tile.end == d.first + d.seq:
            dk[tile.batch, :, tile.group].copy_(sums[0])
            dv[tile.batch, :, tile.group].copy_(sums[1])


def _kernel(io: Io) -> Attention:
    d, params = io.dims, io.params(AttentionParams)
    return Attention(
        batch=d.batch,
        first=d.first,
        count=d.seq,
        heads=d.heads,
        kv_heads=d.kv_heads,
        width=d.head_dim,
        window=d.window,
        scale=params.scale,
        cap=params.cap,
    )


def _softmax(scores: Tensor, row: Tensor, sums: Tensor) -> None:
    """Softmax of every row in place; `row` becomes its largest score, `sums` the sum of e^(score - that)."""
    torch.amax(scores, dim=1, out=row)
    torch.sum(scores.sub_(row[:, None]).exp_(), dim=1, out=sums)
    scores.div_(sums[:, None])


def _softmax_backward(p: Tensor, ds: Tensor, row: Tensor, scale: float) -> None:
    """ds contains dp and becomes p (dp - sum(dp p)) scale; p is used up."""
    ds.mul_(p)
    torch.sum(ds, dim=1, out=row)
    ds.sub_(p.mul_(row[:, None])).mul_(scale)


def _scores(io: Io, buffers: _Buffers, queries: Tensor, keys: Tensor, tile: _Tile, slopes: Tensor | None = None) -> Tensor:
    """The scores of the keys that each query may see, -inf elsewhere, fp32, (R x G, S); `slopes` becomes what capping multiplies
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
    return scores


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
    tiles = list(query_tiles(io.dims, score_rows(io.op.dims)))
    for batch in range(io.dims.batch):
        for group in range(io.dims.kv_heads):
            for tile in tiles:
                yield _Tile(batch=batch, group=group, start=tile.start, end=tile.end, low=tile.low, high=tile.high)


def _buffers(io: Io) -> _Buffers:
    return _Buffers(scores=io.take("scores"), typed=io.take("typed"), mask=io.take("mask"), row=io.take("row"))


def _by_group(io: Io, x: Tensor) -> Tensor:
    """(queries, heads x D) as (B, T, KV, G, D)."""
    d = io.dims
    return x.view(d.batch, d.seq, d.kv_heads, d.heads // d.kv_heads, -1)


def _by_head(io: Io, x: Tensor) -> Tensor:
    """(keys, KV x D) as (B, S, KV, D)."""
    d = io.dims
    return x.view(d.batch, d.first + d.seq, d.kv_heads, d.head_dim)


def _gather(x: Tensor, tile: _Tile, out: Tensor, first: int) -> Tensor:
    """Copy a tile's rows of `x`, whose first row is that of the query at `first`, together: (R x G, D)."""
    source = x[tile.batch, tile.start - first : tile.end - first, tile.group]  # (R, G, D)
    count = source.shape[0] * source.shape[1]
    out[:count].view(source.shape).copy_(source)
    return out[:count]


def _scatter(rows: Tensor, tile: _Tile, first: int, y: Tensor) -> None:
    target = y[tile.batch, tile.start - first : tile.end - first, tile.group]  # (R, G, D)
    target.copy_(rows.view(target.shape))
