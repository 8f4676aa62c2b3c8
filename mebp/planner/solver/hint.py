"""A plan to start from: layers of a stretch take one option, and what room is left goes to resident weights.

Uniform plans take one option per menu, found by pricing memory and writes at a grid of prices, and by barring options with high
peaks. The search begins with the best that fits and can only better it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from mebp.planner.layer.chain import Stretch
from mebp.planner.layer.option import Option
from mebp.planner.solver.bound import distinct_menus
from mebp.planner.solver.variables import HeadOption, Variables

MEMORY_PRICES = 48
PEAKS = 6  # how many limits on a layer's own peak are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One option per stretch (by number) and a head tile, what that takes of room and flash, and its time above the base."""

    choice: tuple[int, ...]
    head: int
    room: int
    stored: int
    store_ns: int
    load_ns: int
    extra_ns: int


def uniform_plans(stretches: Sequence[Stretch], heads: Sequence[HeadOption]) -> list[Start]:
    """Uniform plans at a grid of prices, each with every head tile."""
    menus = distinct_menus(stretches)
    columns = {menu.number: np.array([_columns(option) for option in menu.options], float) for menu in menus}
    peaks = np.concatenate([table[:, 3] for table in columns.values()])
    floor = max(np.nanmin(table[:, 3]) for table in columns.values())
    limits = sorted({floor, *np.quantile(peaks[peaks >= floor], np.linspace(0, 1, PEAKS)), np.inf})
    scale = max(1.0, *(table[:, 0].max() / max(64.0, table[:, 1].max()) for table in columns.values()))
    prices = np.concatenate(([0.0], np.geomspace(1e-4, 1e3, MEMORY_PRICES))) * scale
    choices = {
        tuple(_cheapest(columns[menu.number], price, written * price, limit) for menu in menus)
        for price in prices
        for written in (0.0, 0.5, 1e6)
        for limit in limits
    }
    numbers = {menu.number: at for at, menu in enumerate(menus)}
    return [
        _start(stretches, heads, head, tuple(choice[numbers[stretch.menu.number]] for stretch in stretches))
        for choice in sorted(choices)
        for head in range(len(heads))
    ]


def _columns(option: Option) -> tuple[float, ...]:
    """Time, bytes kept, bytes stored, peak; a segment has no peak that any limit allows."""
    return option.recompute_ns, option.kept_bytes, option.stored_bytes, option.peak if option.layers == 1 else np.nan


def _cheapest(table: np.ndarray, price: float, written: float, limit: float) -> int:
    costs = table[:, 0] + price * table[:, 1] + written * table[:, 2] + np.where(table[:, 3] <= limit, 0.0, np.inf)
    return int(np.argmin(costs))


def _start(stretches: Sequence[Stretch], heads: Sequence[HeadOption], head: int, choice: tuple[int, ...]) -> Start:
    taken: list[tuple[Option, int]] = [(s.menu.options[number], len(s.layers)) for s, number in zip(stretches, choice, strict=True)]
    kept = room = 0
    for option, size in taken:
        room = max(room, kept + (size - 1) * option.kept_bytes + option.peak)
        kept += size * option.kept_bytes
    return Start(
        choice=choice,
        head=head,
        room=max(room, kept + heads[head].peak),
        stored=sum(option.stored_bytes * size for option, size in taken),
        store_ns=sum(option.store_ns * size for option, size in taken),
        load_ns=sum(option.load_ns * size for option, size in taken),
        extra_ns=sum((option.recompute_ns + option.wait_ns) * size for option, size in taken) + heads[head].duration_ns,
    )


def hint_start(model: cp_model.CpModel, variables: Variables, plan: Start, spare: int) -> None:
    """Hint every variable: the plan's options, and resident weights, most time per byte first, in `spare` bytes."""
    resident = _fill(variables, plan, spare)
    for number, stretch in enumerate(variables.stretches):
        chosen = stretch.menu.options[plan.choice[number]]
        size, kept = len(stretch.layers), 0
        for m, option in enumerate(variables.options[number]):
            count = size if option is chosen else 0
            kept += count * option.kept_bytes
            model.add_hint(variables.count[number][m], count)
            model.add_hint(variables.used[number][m], int(count > 0))
            model.add_hint(variables.kept_up_to[number][m], kept)
        for w, candidate in enumerate(stretch.menu.candidates):
            count = resident.get((number, w), 0)
            model.add_hint(variables.resident[number][w], count)
            model.add_hint(variables.resident_again[number][w], count if candidate.role in chosen.read_again else 0)
    for m, chosen_tile in enumerate(variables.head):
        model.add_hint(chosen_tile, int(m == plan.head))
    model.add_hint(variables.head_resident, resident.get(HEAD, 0))
    model.add_hint(variables.resident_bytes, _bytes(variables, resident))


HEAD = (-1, -1)


def _fill(variables: Variables, plan: Start, spare: int) -> dict[tuple[int, int], int]:
    """How many of each weight to keep resident: those first that save most time per byte."""
    worth: list[tuple[float, tuple[int, int], int, int]] = []
    for number, stretch in enumerate(variables.stretches):
        chosen = stretch.menu.options[plan.choice[number]]
        again = chosen.read_again
        for w, candidate in enumerate(stretch.menu.candidates):
            saved = candidate.streaming_ns * (candidate.uses + (candidate.role in again))
            most = len(stretch.layers) if chosen.takes_residents else 0
            worth.append((saved / candidate.nbytes, (number, w), candidate.nbytes, most))
    if weight := variables.head_weight:
        worth.append((weight.streaming_ns * weight.uses / weight.nbytes, HEAD, weight.nbytes, 1))
    found: dict[tuple[int, int], int] = {}
    for _, key, nbytes, most in sorted(worth, key=lambda item: (-item[0], item[1])):
        found[key] = min(most, max(0, spare) // nbytes)
        spare -= found[key] * nbytes
    return found


def _bytes(variables: Variables, resident: dict[tuple[int, int], int]) -> int:
    total = 0
    for (number, w), count in resident.items():
        candidate = variables.head_weight if (number, w) == HEAD else variables.stretches[number].menu.candidates[w]
        total += count * candidate.nbytes if candidate else 0
    return total
