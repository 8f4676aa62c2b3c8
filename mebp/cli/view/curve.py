"""The trade-off curve as tables, CSV and JSON."""

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mebp.cli.spelling import flag_of
from mebp.cli.view.grid import grid, print_grid
from mebp.models.graph import Graph
from mebp.planner.curve import Point, saved_ns_per_byte
from mebp.planner.knob import Change, Knob
from mebp.planner.tradeoff import MORE_BYTES
from mebp.sim.device import Device
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console


BAR = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The points, what knobs change, and whether Ctrl-C cut the search short."""

    points: tuple[Point, ...]
    knobs: tuple[Knob, ...]
    interrupted: bool


def print_curve(console: "Console", graph: Graph, device: Device, budget: int, found: Curve) -> None:
    """The points, and what knobs change."""
    w = graph.workload
    console.print(f"{graph.config.name} on {device.title}, {w.batch_size} x {w.seq_len} tokens", markup=False)
    _print_points(console, found.points)
    _print_knobs(console, budget, found.knobs)


def _print_points(console: "Console", points: tuple[Point, ...]) -> None:
    """A row per budget: time as a bar, and what 64 MiB more would have bought up to there."""
    table = grid(right=("budget", "peak", "step", "gap", "64 MiB save"))
    table.add_column("from 0", no_wrap=True)
    slowest = max((point.prediction.step_ns for point in points), default=1)
    budgets = [point.budget_bytes for point in points]
    priced = [MORE_BYTES, *(min(MORE_BYTES, high - low) for low, high in pairwise(budgets))]
    for point, saved, nbytes in zip(points, saved_ns_per_byte(points), priced, strict=True):
        p = point.prediction
        gap = f"{1 - point.bound_ns / p.step_ns:.2%}"
        price = show_ns(saved * nbytes) if saved else "-"
        cells = (show_nbytes(point.budget_bytes, up=True), show_nbytes(p.peak_bytes), show_ns(p.step_ns), gap, price)
        table.add_row(*cells, "#" * round(BAR * p.step_ns / slowest))
    print_grid(console, table)
    legend = "64 MiB save: time per step that 64 MiB more save, at the rate since the row above (at most all of the difference)"
    console.print(legend, style="dim", markup=False)


def _print_knobs(console: "Console", budget: int, changes: tuple[Knob, ...]) -> None:
    """A row per change: the least budget under it, the least step time at the budget, and the size of the weights' file."""
    table = grid("what if", right=("needs", f"step at {show_nbytes(budget)}", "weights"))
    for knob in changes:
        best = show_ns(knob.best_step_ns) if knob.best_step_ns is not None else "no fit"
        least, size = show_nbytes(knob.least_budget_bytes, up=True), show_nbytes(knob.weight_file_bytes)
        table.add_row(change_text(knob.change), least, best, size)
    print_grid(console, table)
    legend = "needs: the least budget; step: a lower bound; weights: the size of their file"
    console.print(legend, style="dim", markup=False)


def change_text(change: Change | None) -> str:
    """A change as it is typed."""
    return f"{flag_of(change.setting)} {change.value}" if change else "as asked"


def curve_json(budget: int, found: Curve) -> str:
    """Points and knobs: whole bytes and microseconds."""
    points = [point_fields(point) for point in found.points]
    knobs = [knob_fields(knob) for knob in found.knobs]
    return json.dumps({"schema_version": 1, "budget_bytes": budget, "points": points, "knobs": knobs}, indent=2)


def knob_fields(knob: Knob) -> dict[str, int | str | None]:
    """A change as whole bytes and microseconds."""
    best = knob.best_step_ns
    return {
        "flags": change_text(knob.change) if knob.change else "",
        "least_budget_bytes": knob.least_budget_bytes,
        "best_step_time_us": best // 1000 if best is not None else None,
        "weight_file_bytes": knob.weight_file_bytes,
    }


def points_csv(points: tuple[Point, ...]) -> str:
    """One line per point: bytes and microseconds."""
    rows = [point_fields(point) for point in points]
    names = list(rows[0]) if rows else []
    return "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]) + "\n"


def point_fields(point: Point) -> dict[str, int]:
    """A point as whole bytes and microseconds."""
    p = point.prediction
    return {
        "budget_bytes": point.budget_bytes,
        "peak_bytes": p.peak_bytes,
        "step_time_us": round(p.step_ns / 1000),
        "bound_us": point.bound_ns // 1000,
        "recompute_time_us": round(p.recompute_ns / 1000),
        "flash_written_bytes": p.flash_written_bytes,
    }
