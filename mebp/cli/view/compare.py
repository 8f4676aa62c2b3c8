"""Devices and models, or plans, in one table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebp.cli.view.fields import row_fields, verdict_word
from mebp.cli.view.grid import grid, print_grid
from mebp.cli.view.show import profile_name
from mebp.planner.row import Row
from mebp.planner.tradeoff import Tradeoff
from mebp.sim.device import Device
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console


def print_tables(console: "Console", tables: list[Tradeoff]) -> None:
    """A row per model and device: what it needs at least, and what is fastest within the budget."""
    w = tables[0].graph.workload
    console.print(
        f"{w.batch_size} x {w.seq_len} tokens, LoRA r={w.lora.rank}, {w.weights.name} weights, {w.precision}", markup=False
    )
    table = grid("model", "device", "fits", right=("needs", "of", "peak", "step", "plan"))
    for found in tables:
        row = found.chosen
        least, budget = show_nbytes(found.least_budget_bytes, up=True), show_nbytes(found.budget_bytes)
        best = (show_nbytes(row.prediction.peak_bytes), show_ns(row.prediction.step_ns), row.name) if row else ("-", "-", "-")
        fits = "yes" if row else "unknown" if verdict_word(found) == "unknown" else "no"
        style = "" if row else "dim"
        table.add_row(found.graph.config.name, found.device.name, fits, least, budget, *best, style=style)
    print_grid(console, table)
    legend = "needs: the least budget found; of: the budget; peak and step: the fastest plan within it"
    console.print(legend, style="dim", markup=False)


def tables_json(tables: list[Tradeoff]) -> str:
    """The same rows: bytes and whole microseconds."""
    rows: list[dict[str, Any]] = [
        {
            "model": found.graph.config.name,
            "device": found.device.name,
            "budget_bytes": found.budget_bytes,
            "verdict": verdict_word(found),
            "least_budget_bytes": found.least_budget_bytes,
            "chosen": row_fields(found.chosen) if found.chosen else None,
        }
        for found in tables
    ]
    return json.dumps({"schema_version": 1, "comparisons": rows}, indent=2) + "\n"


def print_plans(console: "Console", paths: list[Path], rows: list[tuple[Row, Device]]) -> None:
    """A column per plan: peak and step by part."""
    names = tuple(f"{path.stem}: {row.name}" for path, (row, _) in zip(paths, rows, strict=True))
    table = grid("", right=names)
    for name, cells in _comparison(rows):
        table.add_row(name, *cells)
    print_grid(console, table)


def _comparison(rows: list[tuple[Row, Device]]) -> list[tuple[str, list[str]]]:
    predictions = [row.prediction for row, _ in rows]
    parts = sorted({part for p in predictions for part in p.peak_breakdown})
    by_name = [{part.value: ns for part, ns in p.time_breakdown.items()} for p in predictions]
    lines = [
        ("model", [row.plan.config.name for row, _ in rows]),
        ("device", [profile_name(device) for _, device in rows]),
        ("peak", [show_nbytes(p.peak_bytes) for p in predictions]),
    ]
    lines += [(f"  {part}", [show_nbytes(p.peak_breakdown.get(part, 0)) for p in predictions]) for part in parts]
    lines += [("step", [show_ns(p.step_ns) for p in predictions])]
    times = sorted({name for found in by_name for name in found})
    lines += [(f"  {part}", [show_ns(found.get(part, 0)) for found in by_name]) for part in times]
    return [
        *lines,
        ("recomputed", [show_ns(p.recompute_ns) for p in predictions]),
        ("written to flash", [show_nbytes(p.flash_written_bytes) for p in predictions]),
    ]


def plans_json(paths: list[Path], rows: list[tuple[Row, Device]]) -> str:
    """Every plan's figures."""
    plans = [{"file": str(path), "device": device.name, **row_fields(row)} for path, (row, device) in zip(paths, rows, strict=True)]
    return json.dumps({"schema_version": 1, "plans": plans}, indent=2) + "\n"
