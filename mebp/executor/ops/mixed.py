"""Additions across types that leave nothing behind: torch would make a temporary of the whole operand, which no plan knows."""

from torch import Tensor


def add_across(total: Tensor, addend: Tensor, room: Tensor, *, sign: int = 1) -> None:
    """total (fp32) += sign x addend of the same shape, the addend converted piece by piece in `room`.

    `room` is a contiguous buffer of two values or more, of 2 or 4 bytes each; it is overwritten. Tensors are contiguous, or
    matrices whose rows have room in it.
    """
    if total.dtype is addend.dtype:
        total.add_(addend, alpha=sign)
        return
    if total.is_contiguous():
        total, addend = total.view(-1, 1), addend.view(-1, 1)
    width = total.shape[1]
    values = room.view(-1)[: room.numel() // 2 * 2].view(total.dtype)
    rows = values[: len(values) // width * width].view(-1, width)
    for start in range(0, len(total), len(rows)):
        part = addend[start : start + len(rows)]
        total[start : start + len(rows)].add_(rows[: len(part)].copy_(part), alpha=sign)
