"""A run's log as a picture: loss and held-out loss, memory against prediction and budget, and seconds per update."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LARGEST = 1e18  # of any figure
SMOOTHING = 0.9  # as in the live view
FAINT, STRONG, OTHER, LIMIT = "#b8c4d6", "#1f5fa8", "#c2571a", "#8a8a8a"


def drawn(events: Sequence[Mapping[str, Any]], kind: str) -> bytes | None:
    """The picture as a file of `kind` (png or svg); None where there is no update."""
    updates = [event for event in events if event["event"] == "update"]
    if any(not 0 <= event[name] < LARGEST for event in updates for name in ("seconds", "memory_bytes", "peak_bytes")):
        raise ValueError("a figure out of range")
    if not updates:
        return None
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 8), sharex=True, height_ratios=(2, 1, 1))
    try:
        _loss(axes[0], updates, [event for event in events if event["event"] == "evaluation"])
        begin = next((event for event in events if event["event"] == "begin"), {})
        _memory(axes[1], updates, begin)
        _time(axes[2], updates, begin)
        axes[-1].set_xlabel("updates")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return as_file(figure, axes, kind)
    finally:
        pyplot.close(figure)


def as_file(figure: Figure, axes: Sequence[Axes], kind: str) -> bytes:
    """A figure in the one look of all, as a file of `kind`."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
        axis.margins(x=0.01)
    figure.align_ylabels(axes)
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150)
    return out.getvalue()


def _loss(axis: Axes, updates: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    counted = _finite(updates)
    smoothed: list[float] = []
    for _, loss in counted:
        smoothed.append(loss if not smoothed else SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * loss)
    numbers = [number for number, _ in counted]
    axis.plot(numbers, [loss for _, loss in counted], color=FAINT, linewidth=1, label="loss")
    axis.plot(numbers, smoothed, color=STRONG, label="smoothed")
    found = [
        (event["number"], event["loss"]) for event in evaluations if event["loss"] is not None and abs(event["loss"]) < LARGEST
    ]
    if found:
        axis.plot(*zip(*found, strict=True), color=OTHER, marker="o", markersize=4, label="held out")
    axis.set_ylabel("loss")


def _memory(axis: Axes, updates: Sequence[Mapping[str, Any]], begin: Mapping[str, Any]) -> None:
    numbers = [event["number"] for event in updates]
    axis.plot(numbers, [event["peak_bytes"] / 1e6 for event in updates], color=FAINT, linewidth=3, label="peak so far")
    axis.plot(numbers, [event["memory_bytes"] / 1e6 for event in updates], color=STRONG, linewidth=1, label="at the update's end")
    for key, name, style in (("predicted_peak_bytes", "predicted", "--"), ("budget_bytes", "budget", "-")):
        if begin.get(key):
            axis.axhline(begin[key] / 1e6, color=OTHER if style == "--" else LIMIT, linestyle=style, linewidth=1, label=name)
    axis.set_ylabel("memory, MB")
    axis.set_ylim(bottom=0)


def _time(axis: Axes, updates: Sequence[Mapping[str, Any]], begin: Mapping[str, Any]) -> None:
    axis.plot([event["number"] for event in updates], [event["seconds"] for event in updates], color=STRONG, label="measured")
    if begin.get("predicted_update_ns"):
        axis.axhline(begin["predicted_update_ns"] / 1e9, color=OTHER, linestyle="--", linewidth=1, label="predicted")
    axis.set_ylabel("seconds per update")
    axis.set_ylim(bottom=0)


def _finite(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Number and loss of those that have one."""
    return [(event["number"], event["loss"]) for event in events if event["loss"] is not None and abs(event["loss"]) < LARGEST]
