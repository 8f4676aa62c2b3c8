"""Plans in words: what one does, where its memory and time go, each in a line."""

import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mebp.plan import Compute, Load, Plan, Unpack
from mebp.planner.explain import counts, kept_bytes, live_at_peak
from mebp.planner.row import Row
from mebp.sim.simulate import Prediction
from mebp.unit import show_count, show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console

LARGEST = 3  # kinds of tensors at the peak that are named
LABEL = 11  # width of the labels
MOST = 4  # parts of a sum that are named


def labelled(label: str, text: str) -> str:
    """A line with its label."""
    return f"{label:<{LABEL}}{text}"


def print_wrapped(console: "Console", lines: list[str]) -> None:
    """Print labelled lines, continued under their text where the console is narrow."""
    for line in lines:
        console.print(textwrap.fill(line, console.width, subsequent_indent=" " * LABEL), markup=False)


def does(row: Row) -> str:
    """What a plan does with activations."""
    found = counts(row.plan, row.graph, row.prediction)
    chunk, whole = row.graph.workload.chunk, row.graph.workload.whole_attention
    parts = [f"runs in chunks of {chunk} tokens{' but for attention' if whole else ''}"] if chunk else []
    parts += [f"keeps {show_nbytes(kept_bytes(row.plan, row.graph))} of activations for backward"]
    if found.stored:
        parts.append(f"writes {found.stored} tensors ({show_nbytes(row.prediction.flash_written_bytes)}) to flash")
    if found.recomputed:
        spent = show_ns(row.prediction.recompute_ns)
        parts.append(f"recomputes {found.recomputed} of {found.forward} forward ops ({spent})")
    else:
        parts.append("recomputes nothing")
    return ", ".join(parts)


def weights(row: Row) -> str:
    """How a plan reads weights."""
    found, resident = counts(row.plan, row.graph, row.prediction), row.plan.resident
    parts = []
    if resident:
        size = show_nbytes(sum(place.nbytes for place in resident))
        parts.append(f"{len(resident)} of {len(row.graph.weights)} weights stay unpacked ({size})")
    if found.unpacks:
        parts.append(f"whole weights are unpacked {found.unpacks} x per step")
    if found.streamed_uses:
        parts.append(f"{'other uses unpack' if parts else 'weights are unpacked'} tile by tile")
    return ", ".join(parts)


def memory(row: Row) -> str:
    """Where the peak is, by part: what binds."""
    p = row.prediction
    return f"{show_nbytes(p.peak_bytes)}: {top(p.peak_breakdown, show_nbytes)}; fullest at {where(row.plan, p)}"


def live(row: Row) -> str:
    """The largest of what is live at the peak."""
    largest = live_at_peak(row.graph, row.prediction)[:LARGEST]
    return ", ".join(f"{tensors.count} x {tensors.name} {show_nbytes(tensors.nbytes)}" for tensors in largest)


def time(row: Row) -> str:
    """Where the step's time goes."""
    return top({part.value: ns for part, ns in row.prediction.time_breakdown.items()}, show_ns)


def proof(row: Row) -> str | None:
    """How near a solved plan is to the best that can be, by the solver's bounds."""
    if row.gap is None or row.whole_gap is None:
        return None
    any_kind = f"no plan of any kind is more than {row.whole_gap:.2%} faster"
    if row.plan.solver and row.plan.solver.scope == row.plan.solver.whole_scope:
        return any_kind
    own = "the fastest plan of its class" if row.gap == 0 else f"within {max(row.gap, 0.0001):.2%} of the fastest plan of its class"
    return f"{own}; {any_kind}"


def uses(row: Row) -> str:
    """How often weights are read which way, and how many are decompressed."""
    found = counts(row.plan, row.graph, row.prediction)
    numbers = {
        "uses streamed": found.streamed_uses,
        "uses read unpacked": found.unpacked_uses,
        "unpacked whole": found.unpacks,
        "resident": len(row.plan.resident),
    }
    parts = [f"{number} {what}" for what, number in numbers.items() if number]
    return f"{', '.join(parts)}; {show_count(found.unpacked_weights)} values decompressed per step"


def top(parts: Mapping[str, int], show: Callable[[float], str]) -> str:
    """The largest parts of a sum, and the rest."""
    largest = sorted(parts.items(), key=lambda item: -item[1])
    shown = [f"{name} {show(amount)}" for name, amount in largest[:MOST]]
    rest = sum(amount for _, amount in largest[MOST:])
    return ", ".join(shown + ([f"rest {show(rest)}"] if rest else []))


def where(plan: Plan, prediction: Prediction) -> str:
    """The instruction at which the arena is fullest."""
    instruction = plan.instructions[prediction.peak_index]
    match instruction:
        case Compute():
            return str(instruction.op)
        case Unpack():
            return f"unpack {instruction.weight}"
        case Load():
            return f"load {instruction.place.tensor}"
        case _:
            return str(instruction.tensor)
