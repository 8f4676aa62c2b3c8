"""The head and the loss in one pass over the vocabulary, exact; dL/dx comes out with the loss.

As flash attention walks keys, so this walks the vocabulary V in tiles: a running maximum m, a running sum of exp(logit - m), and
a running sum of exp(logit - m) w, all fp32 and rescaled when the maximum moves. Then dL/dx = (that sum / sum - w[label]) / n.
Logits are scaled first, and with a cap c become c tanh(logit / c), whose slope 1 - (logit / c)^2 then multiplies every w. The head
is frozen, so nothing else is needed, and no (tokens, V) tensor exists unless the plan's tile is V. N tokens, d width. Where only
labelled tokens are computed, N is their number in this batch, at most what the plan has room for.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mebp.errors import NotFinite
from mebp.executor.env import Io
from mebp.executor.ops.mixed import add_across
from mebp.kernel.product import multiply_dense
from mebp.kernel.softmax import Sums, softmax_tile
from mebp.models.kind.head import HeadParams, most_rows
from mebp.models.tile import BLOCK_ROWS, stream_rows


def head(io: Io) -> None:
    x, labels, where = _labelled(io)  # (N, d), (N,)
    N, d = x.shape
    if not N:
        _without_labels(io)
        return
    params, backward = io.params(HeadParams), io.has("dx")
    highest, total, picked, _ = (io.take(name)[:N] for name in ("highest", "total", "picked", "row"))  # (N,) fp32
    highest.fill_(float("-inf"))
    total.zero_()
    rows = min(io.tile, stream_rows(d))
    logits, typed = io.take("logits"), io.take("typed")[: N * rows]
    weighted, product = (io.take("weighted")[:N].zero_(), io.take("product")[:N]) if backward else (None, None)  # (N, d)
    sums = Sums(highest=highest, total=total, picked=picked, weighted=weighted)
    for low in range(0, io.dims.outs, io.tile):
        tile = logits[: N * min(io.tile, io.dims.outs - low)].view(N, -1)
        whole = _logits(io, x, tile, low, typed, rows)
        exps = _room_for_exps(tile, typed, rows) if weighted is not None else None
        if not softmax_tile(tile, low, labels, sums, exps, scale=params.scale, cap=params.cap):
            _softmax_in_torch(io, tile, low, labels, sums, exps)
        if weighted is not None and product is not None:
            _add_weighted(io, weighted, product, tile, low, typed, whole, exps)
    _finish(io, sums, highest.add_(total.log()).sub_(picked), typed, labels, where)


def _labelled(io: Io) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the head computes: its input (N, d), the labels (N,), and which tokens the first of these are where they are not all.
    Rows are filled up with zeros to whole blocks: for each number of rows that a library of products meets it keeps a kernel.
    """
    x, labels = io["x"], io.labels
    if not io.params(HeadParams).labelled:
        return x, labels, None
    where = (labels >= 0).nonzero().squeeze(1)
    count = min(most_rows(io.op), -(-len(where) // BLOCK_ROWS) * BLOCK_ROWS)
    rows = io.take("rows")[:count]
    torch.index_select(x, 0, where, out=rows[: len(where)])
    rows[len(where) :].zero_()
    return rows, F.pad(labels[where], (0, count - len(where)), value=-1), where


def _without_labels(io: Io) -> None:
    """A batch in which no token has a label adds nothing."""
    io.leave_scratch()
    _add_loss(io, 0.0)
    if io.has("dx"):
        io["dx"].zero_()


def _add_loss(io: Io, loss: float) -> None:
    """Note the loss, or, in a chunk, its part of it."""
    losses, adds = io.env.losses, "loss" in io.op.updates
    tensor = (io.op.updates if adds else io.op.writes)["loss"]
    losses[tensor] = (losses.get(tensor, 0.0) if adds else 0.0) + loss
    io["loss"].fill_(losses[tensor])


def _room_for_exps(tile: Tensor, typed: Tensor, rows: int) -> Tensor | None:
    """Where the exponentials of a tile of logits go at once in the activations' type; None where they take the logits' place."""
    return typed[: tile.numel()].view(tile.shape) if tile.shape[1] <= rows and typed.dtype is not tile.dtype else None


def _softmax_in_torch(io: Io, tile: Tensor, low: int, labels: Tensor, sums: Sums, exps: Tensor | None) -> None:
    """What the kernel softmax_tile does; the scratch `row` (N,) and `typed` is overwritten."""
    params, row, room = io.params(HeadParams), io.take("row")[: len(tile)], io.take("typed")
    tile.mul_(params.scale)
    if params.cap:
        tile.div_(params.cap).tanh_().mul_(params.cap)
    here = ((labels >= low) & (labels < low + tile.shape[1])).nonzero().squeeze(1)
    sums.picked[here] = tile[here, labels[here] - low]
    torch.maximum(sums.highest, torch.amax(tile, dim=1), out=row)
    sums.highest.sub_(row).exp_()  # how much the sums so far shrink
    sums.total.mul_(sums.highest)
    if sums.weighted is not None:
        sums.weighted.mul_(sums.highest[:, None])
    sums.highest.copy_(row)
    step, one = len(room) // len(tile) if params.cap else tile.shape[1], torch.ones(1, device=tile.device)
    for start in range(0, tile.shape[1], step):
        piece = tile[:, start : start + step]
        slopes = room[: piece.numel()].view(piece.shape) if params.cap else None
        if slopes is not None:  # rounded once, where their type is bf16
            torch.addcmul(one, piece, piece, value=-(params.cap**-2), out=slopes)
        sums.total.add_(torch.sum(piece.sub_(sums.highest[:, None]).exp_(), dim=1))
        if slopes is not None:
            piece.mul_(slopes)
    if exps is not None:
        exps.copy_(tile)


def _logits(io: Io, x: Tensor, out: Tensor, low: int, typed: Tensor, rows: int) -> Tensor | None:
    """Fill `out` (N, tile) in fp32; returns the weight's rows where they were unpacked and one piece contains them all."""
    N, count = out.shape
    if io.multiply(x, out, transposed=True, rows=slice(low, low + count)):
        return None
    for start in range(0, count, rows):
        weight = io.weight_rows(low + start, low + min(start + rows, count))
        piece = typed[: N * len(weight)].view(N, len(weight))
        multiply_dense(x, weight.T, piece)
        out[:, start : start + len(weight)].copy_(piece)
    return weight if count <= rows else None


def _add_weighted(
    io: Io, weighted: Tensor, product: Tensor, tile: Tensor, low: int, typed: Tensor, whole: Tensor | None, exps: Tensor | None
) -> None:
    """weighted += e^(logit - highest) W: of `exps` where they are in the activations' type already, else of `tile` in pieces."""
    N, count = tile.shape
    rows = count if exps is not None else len(typed) // N
    for start in range(0, count, rows):
        end = min(start + rows, count)
        piece = exps if exps is not None else typed[: N * (end - start)].view(N, -1).copy_(tile[:, start:end])
        if whole is None and io.multiply(piece, weighted, transposed=False, rows=slice(low + start, low + end), add=True):
            continue
        weight = whole if whole is not None else io.weight_rows(low + start, low + end)
        multiply_dense(piece, weight, product)
        add_across(weighted, product, typed)


def _finish(io: Io, sums: Sums, losses: Tensor, room: Tensor, labels: Tensor, where: Tensor | None) -> None:
    """Mean loss over labelled positions, and dx where it is asked for: of tokens that were left out it is 0."""
    params, weighted = io.params(HeadParams), sums.weighted
    valid = labels >= 0
    count = int((io.env.labels >= 0).sum())
    loss = float(losses.double().masked_fill(~valid, 0.0).sum()) / max(1, count)
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss}")
    _add_loss(io, loss)
    if weighted is None:
        return
    dx = io["dx"] if where is None else io.take("product")[: len(labels)]
    io.gather(labels.clamp(min=0), dx)
    if params.cap:
        dx.mul_((1 - (sums.picked / params.cap).square_())[:, None])
    add_across(weighted.div_(sums.total[:, None]), dx, room, sign=-1)
    dx.copy_(weighted.mul_((valid * (params.scale / max(1, count)))[:, None]))
    if where is not None:
        io["dx"].zero_().index_copy_(0, where, dx[: len(where)])
