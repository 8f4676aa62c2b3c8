"""`mebp-plan frontier`: step time against memory, as a table with bars, CSV or JSON, and what the next bytes would buy."""

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.plan import DEFAULT_DEVICE, search_limits
from mebp.cli.request import Flag, Request
from mebp.cli.screen import note, require_apart, stdout, working, write_file
from mebp.cli.unit import show_nbytes, show_ns
from mebp.errors import InfeasibleBudget, InputError, Interrupted

if TYPE_CHECKING:
    from mebp.planner.curve import Point
    from mebp.planner.knob import Knob
    from mebp.sim.device import Device

DEFAULT_POINTS = 8
MOST_POINTS = 64
BAR = 24
PRICED_BYTES = 64 << 20  # bytes that the last column prices


def frontier(
    request: Request,
    num_points: Annotated[int, Flag("--points", help="Budgets to solve for.")] = DEFAULT_POINTS,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the points to this CSV file.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Show step time against memory, from the least feasible budget to where everything is kept."""
    if not 2 <= num_points <= MOST_POINTS:
        raise InputError(f"--points = {num_points}: must be between 2 and {MOST_POINTS}")
    require_apart(request, {"-o": output})
    device = request.device(DEFAULT_DEVICE)
    budget = request.budget(device)
    points, changes, interrupted = solve_points(request, device, num_points, budget)
    if interrupted and not points:
        raise Interrupted("interrupted before the first point")
    if output is not None:
        write_file(output, points_csv(points))
        note(f"wrote {output}")
    if as_json:
        found = {"schema_version": 1, "budget_bytes": budget, "points": [fields(point) for point in points]}
        typer.echo(json.dumps(found | {"knobs": [knob_fields(knob) for knob in changes]}, indent=2))
    else:
        print_points(request, device, points)
        print_knobs(budget, changes)
    if interrupted:
        raise Interrupted("interrupted: these are the points so far")
    if changes and changes[0].best_step_ns is None:
        least = show_nbytes(changes[0].least_budget_bytes, up=True)
        note(f"nothing fits {show_nbytes(budget)}: the least feasible budget is {least}: raise --budget")
        raise typer.Exit(InfeasibleBudget.exit_code)


def show_frontier(request: Request, device: "Device", budget: int) -> None:
    """Solve and print the frontier and what knobs change, below another table."""
    points, changes, interrupted = solve_points(request, device, DEFAULT_POINTS, budget)
    print_points(request, device, points)
    print_knobs(budget, changes)
    if interrupted:
        raise Interrupted("interrupted: these are the points so far")


def solve_points(
    request: Request, device: "Device", num_points: int, budget: int
) -> tuple[tuple["Point", ...], tuple["Knob", ...], bool]:
    """The frontier and what knobs change, with progress on stderr, and whether Ctrl-C cut it short."""
    from mebp.planner.curve import frontier as solve  # noqa: PLC0415  (the solver is slow to import)
    from mebp.planner.knob import knobs  # noqa: PLC0415
    from mebp.planner.solver.problem import pose  # noqa: PLC0415
    from mebp.planner.solver.search import Stop, interruptible  # noqa: PLC0415

    stop = Stop()
    with working("posing the problem") as status:

        def work() -> tuple[tuple["Point", ...], tuple["Knob", ...]]:
            problem, limits = pose(request.graph(), device), search_limits(request)
            most = budget if "budget" in request.given else 0
            points = solve(problem, limits, num_points, lambda n: status.update(f"budget {n + 1} of {num_points}"), stop, most)
            return points, knobs(problem.graph, device, budget, limits, stop, lambda flags: status.update(f"what if {flags}"))

        points, changes = interruptible(work, stop)
    return points, changes, stop.asked


def print_points(request: Request, device: "Device", points: tuple["Point", ...]) -> None:
    """A row a budget: time as a bar, and what 64 MiB more would have bought up to there."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from mebp.planner.curve import saved_ns_per_byte  # noqa: PLC0415

    console = stdout()
    w = request.workload
    console.print(f"{request.config.name} on {device.title}, {w.batch_size} x {w.seq_len} tokens", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("budget", "peak", "step", "gap", "64 MiB save"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("above the fastest", no_wrap=True)
    steps = [point.prediction.step_ns for point in points]
    fastest, range_ns = min(steps, default=0), max(1, max(steps, default=0) - min(steps, default=0))
    budgets = [point.budget_bytes for point in points]
    priced = [PRICED_BYTES, *(min(PRICED_BYTES, high - low) for low, high in pairwise(budgets))]
    for point, saved, nbytes in zip(points, saved_ns_per_byte(points), priced, strict=True):
        p = point.prediction
        gap = f"{1 - point.bound_ns / p.step_ns:.2%}"
        price = show_ns(saved * nbytes) if saved else "-"
        cells = (show_nbytes(point.budget_bytes, up=True), show_nbytes(p.peak_bytes), show_ns(p.step_ns), gap, price)
        table.add_row(*cells, "#" * round(BAR * (p.step_ns - fastest) / range_ns))
    console.print(table)
    console.print(
        "64 MiB save: what 64 MiB of the way from the row above save, or all of it where that is less",
        style="dim",
        markup=False,
    )


def print_knobs(budget: int, changes: tuple["Knob", ...]) -> None:
    """A row a change: the least budget under it, the least step time at the budget, and the size of the weights' file."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("what if", no_wrap=True)
    for title in ("least budget", f"best step at {show_nbytes(budget)}", "weights"):
        table.add_column(title, justify="right", no_wrap=True)
    for knob in changes:
        best = show_ns(knob.best_step_ns) if knob.best_step_ns is not None else "no fit"
        least, size = show_nbytes(knob.least_budget_bytes, up=True), show_nbytes(knob.weight_file_bytes)
        table.add_row(knob.flags or "as asked", least, best, size)
    stdout().print(table)
    stdout().print(
        "best step: no plan is faster, by the solver's bound; the head's tile is the solver's own choice", style="dim", markup=False
    )


def knob_fields(knob: "Knob") -> dict[str, int | str | None]:
    """A change as whole bytes and microseconds."""
    best = knob.best_step_ns
    return {
        "flags": knob.flags,
        "least_budget_bytes": knob.least_budget_bytes,
        "best_step_time_us": best // 1000 if best is not None else None,
        "weight_file_bytes": knob.weight_file_bytes,
    }


def points_csv(points: tuple["Point", ...]) -> str:
    """One line a point: bytes and microseconds."""
    rows = [fields(point) for point in points]
    names = list(rows[0]) if rows else []
    return "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]) + "\n"


def fields(point: "Point") -> dict[str, int]:
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
