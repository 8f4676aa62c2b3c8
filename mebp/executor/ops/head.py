"""The head and the loss in one pass over the vocabulary, exact; dL/dx comes out with the loss.

As flash attention walks keys, so this walks the vocabulary V in tiles: a running maximum m, a running sum of exp(logit - m), and
a running sum of exp(logit - m) w, all fp32 and rescaled when the maximum moves. Then dL/dx = (that sum / sum - w[label]) / n.
The head is frozen, so nothing else is needed, and no (tokens, V) tensor exists unless the plan's tile is V. N tokens, d width.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mebp.errors import NotFinite
from mebp.executor.env import Io
from mebp.executor.ops.mixed import add_across
from mebp.models.tile import stream_rows


def head(io: Io) -> None:
    x = io["x"]  # (N, d)
    labels = io.env.labels
    backward = io.has("dx")
    N, d = x.shape
    highest, total, picked, row = (io.take(name) for name in ("highest", "total", "picked", "row"))  # (N,) fp32
    highest.fill_(float("-inf"))
    total.zero_()
    rows = min(io.tile, stream_rows(d))
    logits, typed = io.take("logits"), io.take("typed")
    weighted, product = (io.take("weighted").zero_(), io.take("product")) if backward else (None, None)  # (N, d)
    for low, high, tiles in _vocabulary_tiles(io, rows):
        tile = logits[: N * (high - low)].view(N, high - low)
        whole = _logits(x, tile, low, typed, tiles)
        here = ((labels >= low) & (labels < high)).nonzero().squeeze(1)
        picked[here] = tile[here, labels[here] - low]
        torch.maximum(highest, torch.amax(tile, dim=1), out=row)
        highest.sub_(row).exp_()  # how much the sums so far shrink
        total.mul_(highest)
        if weighted is not None:
            weighted.mul_(highest[:, None])
        highest.copy_(row)
        total.add_(torch.sum(tile.sub_(highest[:, None]).exp_(), dim=1))
        if weighted is not None and product is not None:
            _add_weighted(io, weighted, product, tile, low, typed, rows, whole)
    _finish(io, highest.add_(total.log()).sub_(picked), total, weighted, typed)


def _vocabulary_tiles(
    io: Io, rows: int
) -> Iterator[tuple[int, int, list[tuple[int, int, Tensor]] | Iterator[tuple[int, int, Tensor]]]]:
    """Tiles of logits [low, high), each with its weight's rows: one piece where a tile of weights is enough, else a stream."""
    vocab = io.dims.outs
    if io.tile <= rows:
        for low, high, tile in io.weight_tiles(io.tile):
            yield low, high, [(low, high, tile)]
        return
    assert io.tile >= vocab, "a tile of logits is one of weights at most, or the whole vocabulary"
    yield 0, vocab, io.weight_tiles(rows)


def _logits(
    x: Tensor,
    out: Tensor,
    low: int,
    typed: Tensor,
    tiles: list[tuple[int, int, Tensor]] | Iterator[tuple[int, int, Tensor]],
) -> Tensor | None:
    """Fill `out` (N, high - low) in fp32; returns the weight's rows where one piece contains them all."""
    only = tiles[0][2] if isinstance(tiles, list) else None
    for start, end, weight in tiles:
        piece = typed[: len(x) * (end - start)].view(len(x), end - start)
        out[:, start - low : end - low].copy_(torch.mm(x, weight.T, out=piece))
    return only


def _add_weighted(
    io: Io, weighted: Tensor, product: Tensor, exps: Tensor, low: int, typed: Tensor, rows: int, whole: Tensor | None
) -> None:
    """weighted += exps W, from the rows at hand or streaming them once more."""
    pieces = [(low, low + exps.shape[1], whole)] if whole is not None else io.weight_tiles(rows)
    for start, end, weight in pieces:
        piece = typed[: len(exps) * (end - start)].view(len(exps), end - start)
        piece.copy_(exps[:, start - low : end - low])
        torch.mm(piece, weight, out=product)
        add_across(weighted, product, typed)


def _finish(io: Io, losses: Tensor, total: Tensor, weighted: Tensor | None, room: Tensor) -> None:
    """Mean loss over labelled positions, and dx where it is asked for."""
    labels = io.env.labels
    valid = labels >= 0
    count = int(valid.sum())
    loss = float(losses.double().masked_fill(~valid, 0.0).sum()) / max(1, count)
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss}")
    io["loss"].fill_(loss)
    io.env.losses[io.op.writes["loss"]] = loss
    if weighted is None:
        return
    dx = io["dx"]
    io.gather(labels.clamp(min=0), dx)
    add_across(weighted.div_(total[:, None]), dx, room, sign=-1)
    dx.copy_(weighted.mul_((valid / max(1, count))[:, None]))
