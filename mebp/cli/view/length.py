"""What a step takes at several lengths, as a table, CSV, JSON and a picture."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mebp.cli.view.grid import grid, print_grid
from mebp.models.graph import Graph
from mebp.planner.length import Length
from mebp.planner.row import Row
from mebp.planner.tradeoff import LEAST, SOLVED
from mebp.sim.device import Device
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console

ORDER = (SOLVED, LEAST)  # first in every length's rows


def print_lengths(console: "Console", graph: Graph, device: Device, budget: int, found: Sequence[Length]) -> None:
    """A row per length and plan."""
    title = f"{graph.config.name} on {device.title}, batches of {graph.workload.batch_size}, budget {show_nbytes(budget)}"
    console.print(title, markup=False)
    table = grid("tokens", "plan", "fits", right=("peak", "step", "tokens/s", "written", "chunk"))
    for length in found:
        for number, row in enumerate(_ordered(length)):
            table.add_row(*_cells(length, row, first=not number), style="" if row.fits else "dim", end_section=False)
    print_grid(console, table)
    legend = "least: the plan of least memory that is found; written: bytes a step writes to flash; chunk: tokens at a time"
    console.print(legend, style="dim", markup=False)


def _ordered(length: Length) -> list[Row]:
    return sorted(length.rows, key=lambda row: ORDER.index(row.name) if row.name in ORDER else len(ORDER))


def _cells(length: Length, row: Row, *, first: bool) -> tuple[str, ...]:
    p = row.prediction
    return (
        str(length.seq_len) if first else "",
        row.name,
        "yes" if row.fits else "memory" if row.within_cap else "writes",
        show_nbytes(p.peak_bytes),
        show_ns(p.step_ns),
        f"{length.tokens_per_s(row):.3g}",
        show_nbytes(p.flash_written_bytes) if p.flash_written_bytes else "-",
        str(row.graph.workload.chunk or "-"),
    )


def lengths_json(budget: int, found: Sequence[Length]) -> str:
    """Whole bytes and microseconds."""
    return json.dumps({"schema_version": 1, "budget_bytes": budget, "rows": list(_fields(found))}, indent=2)


def lengths_csv(found: Sequence[Length]) -> str:
    """One line per length and plan."""
    rows = list(_fields(found))
    names = list(rows[0]) if rows else []
    return "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]) + "\n"


def _fields(found: Sequence[Length]) -> Iterator[dict[str, Any]]:
    for length in found:
        for row in _ordered(length):
            p = row.prediction
            yield {
                "seq_len": length.seq_len,
                "plan": row.name,
                "fits": row.fits,
                "peak_bytes": p.peak_bytes,
                "step_time_us": round(p.step_ns / 1000),
                "tokens_per_s": round(length.tokens_per_s(row), 3),
                "flash_written_bytes": p.flash_written_bytes,
                "chunk_tokens": row.graph.workload.chunk,
            }


def drawn_lengths(found: Sequence[Length], budget: int, kind: str) -> bytes:
    """Memory and tokens a second over the length, a line a plan, as a file of `kind` (png or svg)."""
    from matplotlib import pyplot  # noqa: PLC0415

    from mebp.cli.view.plot import LIMIT, as_file  # noqa: PLC0415  (matplotlib is an extra)

    figure, axes = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True)
    for name in dict.fromkeys(row.name for length in found for row in _ordered(length)):
        points = [(length, row) for length in found for row in length.rows if row.name == name]
        tokens = [length.seq_len for length, _ in points]
        axes[0].plot(tokens, [row.prediction.peak_bytes / 1e6 for _, row in points], marker="o", markersize=4, label=name)
        axes[1].plot(tokens, [length.tokens_per_s(row) for length, row in points], marker="o", markersize=4, label=name)
    axes[0].axhline(budget / 1e6, color=LIMIT, linewidth=1, label="budget")
    axes[0].set_ylabel("memory, MB")
    axes[0].set_yscale("log")
    axes[1].set_ylabel("tokens/s")
    axes[1].set_ylim(bottom=0)
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks([length.seq_len for length in found], [str(length.seq_len) for length in found])
    axes[1].set_xlabel("tokens of a sequence")
    return as_file(figure, axes, kind)
