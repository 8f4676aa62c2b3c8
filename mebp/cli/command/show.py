"""`mebp-plan show` and `mebp-plan compare`: read a plan file, or two of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.check import graph_of
from mebp.cli.request import Flag
from mebp.cli.screen import stdout, working
from mebp.cli.unit import show_nbytes, show_ns
from mebp.errors import InputError
from mebp.plan import Plan, listing, read_plan
from mebp.sim.device import Device
from mebp.sim.profile import load_device, override

if TYPE_CHECKING:
    from rich.console import Console

    from mebp.planner.tradeoff import Row

BAR = 40
SLOTS = 24


def show(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan that `plan -o` wrote.")],
    device: Annotated[str | None, Flag("--device", "-d", help="Time it on this device; default: the one it was made for.")] = None,
    limit: Annotated[int, Flag("--limit", help="Lines of the listing; 0 for all.")] = 40,
) -> None:
    """Print a plan: its peak explained, memory over time, and the listing."""
    if limit < 0:
        raise InputError(f"--limit = {limit}: must be 0 (all lines) or more")
    row = load_row(plan_file, device)
    plan, prediction = row.plan, row.prediction
    from mebp.cli.view.table import plan_facts, print_wrapped  # noqa: PLC0415

    console = stdout()
    costs = f"{show_nbytes(prediction.peak_bytes)}, {show_ns(prediction.step_ns)} a step"
    console.print(f"{plan.name} of {plan.config.name} for {device or profile_name(plan)}: {costs}", markup=False)
    print_wrapped(console, plan_facts(row))
    console.print("\npeak by part")
    for name, nbytes in sorted(prediction.peak_breakdown.items(), key=lambda item: -item[1]):
        console.print(f"  {name:24s}{show_nbytes(nbytes):>10s}  {'#' * round(BAR * nbytes / prediction.peak_bytes)}", markup=False)
    print_fates(console, row, profile_of(plan, device))
    console.print("\narena over the step")
    for line in memory_over_time(row):
        console.print(line, markup=False)
    console.print("\nlisting")
    lines = list(listing(plan))
    for line in lines[: limit or None]:
        console.print(line, markup=False, soft_wrap=True)
    if limit and len(lines) > limit:
        console.print(f"... {len(lines) - limit} more lines: --limit 0 prints all", markup=False)


def print_fates(console: "Console", row: "Row", profile: Device) -> None:
    """What becomes of the activations that backward reads, those first that a byte kept saves most time of."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from mebp.planner.explain import fates  # noqa: PLC0415

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="activations", title_justify="left", title_style=""
    )
    table.add_column("for backward", no_wrap=True)
    for title in ("each", "kept", "stored", "redone", "to redo, a MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for fate in fates(row.plan, row.graph, profile):
        numbers = (fate.kept, fate.stored, fate.remade)
        table.add_row(
            fate.name, show_nbytes(fate.nbytes), *(str(n) if n else "-" for n in numbers), show_ns(fate.ns_per_byte * 1e6)
        )
    console.print()
    console.print(table)


def memory_over_time(row: "Row") -> list[str]:
    """The most live bytes in each of a few equal stretches of the step, as bars."""
    prediction = row.prediction
    ends = {piece.index: piece.end_ns for piece in prediction.timeline}
    highest = [0] * SLOTS
    for moment in prediction.memory:
        slot = min(SLOTS - 1, ends[moment.index] * SLOTS // max(1, prediction.step_ns))
        highest[slot] = max(highest[slot], moment.live_bytes)
    for slot in range(1, SLOTS):
        highest[slot] = highest[slot] or highest[slot - 1]
    top = max(1, row.plan.arena_bytes)
    return [
        f"  {show_ns(prediction.step_ns * (slot + 1) / SLOTS):>8s} {show_nbytes(nbytes):>9s}  {'#' * round(BAR * nbytes / top)}"
        for slot, nbytes in enumerate(highest)
    ]


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A plan file.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another.")],
    device: Annotated[str | None, Flag("--device", "-d", help="Time both on this device; default: each on its own.")] = None,
) -> None:
    """Put two plans side by side."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    rows = [load_row(path, device) for path in (first, second)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for path, row in zip((first, second), rows, strict=True):
        table.add_column(f"{path.stem}: {row.name}", justify="right")
    for name, cells in _comparison(rows, device):
        table.add_row(name, *cells)
    stdout().print(table)


def _comparison(rows: list["Row"], device: str | None) -> list[tuple[str, list[str]]]:
    predictions = [row.prediction for row in rows]
    parts = sorted({part for p in predictions for part in p.peak_breakdown})
    times = sorted({part.value for p in predictions for part in p.time_breakdown})
    lines = [
        ("model", [row.plan.config.name for row in rows]),
        ("device", [device or profile_name(row.plan) for row in rows]),
        ("peak", [show_nbytes(p.peak_bytes) for p in predictions]),
    ]
    lines += [(f"  {part}", [show_nbytes(p.peak_breakdown.get(part, 0)) for p in predictions]) for part in parts]
    lines += [("step", [show_ns(p.step_ns) for p in predictions])]
    by_name = [{part.value: ns for part, ns in p.time_breakdown.items()} for p in predictions]
    lines += [(f"  {part}", [show_ns(found.get(part, 0)) for found in by_name]) for part in times]
    lines += [
        ("recomputed", [show_ns(p.recompute_ns) for p in predictions]),
        ("written to flash", [show_nbytes(p.flash_written_bytes) for p in predictions]),
    ]
    return lines


def profile_name(plan: Plan) -> str:
    """The device that a plan was made for, and what was changed of it."""
    return f"{plan.device} with {', '.join(plan.overrides)}" if plan.overrides else plan.device


def profile_of(plan: Plan, device: str | None) -> Device:
    """The device to time a plan on: the one named, or its own with the overrides that it was made with."""
    return load_device(device) if device else override(load_device(plan.device), plan.overrides)


def load_row(path: Path, device: str | None) -> "Row":
    """Read, check and simulate a plan file."""
    plan: Plan = read_plan(path)
    graph = graph_of(plan, str(path))
    profile = profile_of(plan, device)
    with working("loading"):
        from mebp.planner.tradeoff import row_of  # noqa: PLC0415  (the solver takes half a second to import)

    return row_of(plan, graph, profile)
