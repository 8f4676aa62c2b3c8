"""One plan for a person: what it does, its peak, the fate of its activations, memory over time, the listing."""

from typing import TYPE_CHECKING

from mebp.cli.view.grid import grid, print_grid
from mebp.cli.view.words import does, labelled, live, memory, print_wrapped, proof, time, uses
from mebp.plan import listing
from mebp.planner.explain import fates
from mebp.planner.row import Row
from mebp.sim.device import Device
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console

BAR = 40
SLOTS = 24


def print_plan(console: "Console", row: Row, device: Device, limit: int) -> None:
    """All that is known of a plan, the listing cut to `limit` lines (0: all)."""
    plan, prediction = row.plan, row.prediction
    costs = f"{show_nbytes(prediction.peak_bytes)}, {show_ns(prediction.step_ns)} per step"
    console.print(f"{plan.name} of {plan.config.name} for {profile_name(device)}: {costs}", markup=False)
    print_wrapped(console, _facts(row))
    console.print("\npeak by part")
    for name, nbytes in sorted(prediction.peak_breakdown.items(), key=lambda item: -item[1]):
        console.print(f"  {name:24s}{show_nbytes(nbytes):>10s}  {'#' * round(BAR * nbytes / prediction.peak_bytes)}", markup=False)
    _print_fates(console, row, device)
    console.print("\narena over the step")
    for line in _memory_over_time(row):
        console.print(line, markup=False)
    console.print("\nlisting")
    lines = list(listing(plan))
    for line in lines[: limit or None]:
        console.print(line, markup=False, soft_wrap=True)
    if limit and len(lines) > limit:
        console.print(f"... {len(lines) - limit} more lines: --limit 0 prints all", markup=False)


def profile_name(device: Device) -> str:
    """A device, and what was changed of its profile."""
    return f"{device.name} with {', '.join(device.overrides)}" if device.overrides else device.name


def _facts(row: Row) -> list[str]:
    """What a plan does, how it reads weights, where its memory peaks and where its time goes, and what is proven of it."""
    found = [
        labelled("does", does(row)),
        labelled("weights", uses(row)),
        labelled("memory", memory(row)),
        labelled("live there", live(row)),
        labelled("time", time(row)),
    ]
    proven = proof(row)
    return [*found, labelled("proven", proven)] if proven else found


def _print_fates(console: "Console", row: Row, device: Device) -> None:
    """What becomes of the activations that backward reads, those first that a byte kept saves most time of."""
    table = grid("for backward", right=("each", "kept", "stored", "recomputed", "to recompute, per MB"), title="activations")
    for fate in fates(row.plan, row.graph, device):
        numbers = (str(n) if n else "-" for n in (fate.kept, fate.stored, fate.recomputed))
        table.add_row(fate.name, show_nbytes(fate.nbytes), *numbers, show_ns(fate.ns_per_byte * 1e6))
    console.print()
    print_grid(console, table)


def _memory_over_time(row: Row) -> list[str]:
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
