"""`verify` as a table and as JSON."""

import json
from typing import TYPE_CHECKING

from mebp.cli.view.grid import grid, print_grid
from mebp.models.graph import Graph
from mebp.task.run import RunResult
from mebp.task.verify import errors_of, summary
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console

LEGEND = (
    "speed: of dense products right after the run, relative to calibration; corrected: the step's error against the prediction for"
    " a machine of that speed; x floor: the step relative to the time of its dense products"
)


def print_verified(console: "Console", graph: Graph, found: tuple[RunResult, ...]) -> None:
    """A row per plan, and the errors of all together."""
    w = graph.workload
    console.print(f"{graph.config.name}, {w.batch_size} x {w.seq_len} tokens, on this machine, just calibrated", markup=False)
    table = grid("plan", right=("arena", "peak", "error", "step", "error", "speed", "corrected", "x floor"))
    for one in found:
        measured = one.measured
        floor = f"{one.step_s / measured.floor_s:.2f}" if measured.floor_s else "-"
        peak = show_nbytes(measured.peak_bytes), _error(one.memory_error)
        step = show_ns(one.step_s * 1e9), _error(one.time_error)
        speed = f"{one.speed:.2f}", _error(one.time_error_at_its_speed)
        table.add_row(one.plan.name, "exact" if one.arena_exact else "WRONG", *peak, *step, *speed, floor)
    print_grid(console, table)
    console.print(LEGEND, style="dim", markup=False)
    console.print(summary(errors_of(found)), markup=False)


def _error(part: float) -> str:
    """A relative error, short where it is absurd."""
    return f"{part:+.1%}" if abs(part) < 1 else f"{part:+.0%}"


def verified_json(found: tuple[RunResult, ...]) -> str:
    """Bytes and whole microseconds."""
    rows = [
        {
            "name": one.plan.name,
            "arena_exact": one.arena_exact,
            "predicted_peak_bytes": one.predicted.peak_bytes,
            "measured_peak_bytes": one.measured.peak_bytes,
            "predicted_step_time_us": round(one.predicted.step_ns / 1000),
            "measured_step_time_us": round(one.step_s * 1e6),
            "floor_us": round(one.measured.floor_s * 1e6),
            "calibrated_floor_us": round(one.floor_ns / 1000),
        }
        for one in found
    ]
    return json.dumps({"schema_version": 1, "plans": rows}, indent=2) + "\n"
