"""What a step takes at several lengths, as a table, CSV, JSON and a picture."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mebp.cli.view.grid import grid, print_grid
from mebp.models.graph import Graph
from mebp.planner.row import Row
from mebp.planner.tradeoff import LEAST, SOLVED, Tradeoff
from mebp.sim.device import Device
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console

ORDER = (SOLVED, LEAST)  # first in every length's rows


def print_lengths(console: "Console", graph: Graph, device: Device, budget: int, found: Sequence[Tradeoff]) -> None:
    """A row per length and plan."""
    title = f"{graph.config.name} on {device.title}, batches of {graph.workload.batch_size}, budget {show_nbytes(budget)}"
    console.print(title, markup=False)
    table = grid("tokens", "plan", "fits", right=("peak", "step", "tokens/s", "written", "chunk"))
    for table_of_length in found:
        for number, row in enumerate(_ordered(table_of_length)):
            table.add_row(*_cells(row, first=not number), style="" if row.fits else "dim")
    print_grid(console, table)
    legend = "least: the plan of least memory that is found; written: bytes a step writes to flash; chunk: tokens at a time"
    console.print(legend, style="dim", markup=False)


def _ordered(found: Tradeoff) -> list[Row]:
    return sorted(found.rows, key=lambda row: ORDER.index(row.name) if row.name in ORDER else len(ORDER))


def _cells(row: Row, *, first: bool) -> tuple[str, ...]:
    p = row.prediction
    return (
        str(row.graph.workload.seq_len) if first else "",
        row.name,
        "yes" if row.fits else "memory" if row.within_cap else "writes",
        show_nbytes(p.peak_bytes),
        show_ns(p.step_ns),
        f"{row.tokens_per_s:.3g}",
        show_nbytes(p.flash_written_bytes) if p.flash_written_bytes else "-",
        str(row.graph.workload.chunk or "-"),
    )


def lengths_json(budget: int, found: Sequence[Tradeoff]) -> str:
    """Whole bytes and microseconds."""
    return json.dumps({"schema_version": 1, "budget_bytes": budget, "rows": list(_fields(found))}, indent=2)


def lengths_csv(found: Sequence[Tradeoff]) -> str:
    """One line per length and plan."""
    rows = list(_fields(found))
    lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
    return "\n".join([*([",".join(rows[0])] if rows else []), *lines]) + "\n"


def _fields(found: Sequence[Tradeoff]) -> Iterator[dict[str, Any]]:
    for table in found:
        for row in _ordered(table):
            p = row.prediction
            yield {
                "seq_len": row.graph.workload.seq_len,
                "plan": row.name,
                "fits": row.fits,
                "peak_bytes": p.peak_bytes,
                "step_time_us": round(p.step_ns / 1000),
                "tokens_per_s": round(row.tokens_per_s, 3),
                "flash_written_bytes": p.flash_written_bytes,
                "chunk_tokens": row.graph.workload.chunk or None,
                "whole_attention": row.graph.workload.whole_attention or not row.graph.workload.chunk,
            }


def drawn_lengths(found: Sequence[Tradeoff], budget: int, kind: str) -> bytes:
    """Memory and tokens per second over the length, one line per plan, as a file of `kind` (png or svg)."""
    from matplotlib import pyplot  # noqa: PLC0415

    from mebp.cli.view.plot import LIMIT, as_file  # noqa: PLC0415  (matplotlib is an extra)

    figure, axes = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True)
    try:
        for name in dict.fromkeys(row.name for table in found for row in _ordered(table)):
            rows = [row for table in found for row in table.rows if row.name == name]
            tokens = [row.graph.workload.seq_len for row in rows]
            axes[0].plot(tokens, [row.prediction.peak_bytes / 1e6 for row in rows], marker="o", markersize=4, label=name)
            axes[1].plot(tokens, [row.tokens_per_s for row in rows], marker="o", markersize=4, label=name)
        axes[0].axhline(budget / 1e6, color=LIMIT, linewidth=1, label="budget")
        axes[0].set_ylabel("memory, MB")
        axes[0].set_yscale("log")
        axes[1].set_ylabel("tokens/s")
        axes[1].set_ylim(bottom=0)
        axes[1].set_xscale("log", base=2)
        lengths = [table.graph.workload.seq_len for table in found]
        axes[1].set_xticks(lengths, [str(length) for length in lengths])
        axes[1].set_xlabel("tokens of a sequence")
        return as_file(figure, axes, kind)
    finally:
        pyplot.close(figure)
