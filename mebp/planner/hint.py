"""A plan to start from: every layer of a class takes the same option, and what room is left goes to resident weights.

Found by trying each option; the solver begins its search there and can only better it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ortools.sat.python import cp_model

from mebp.planner.menu import Option
from mebp.planner.variables import Holdable, Variables, linear_of

TRIED = 10_000  # combinations of options that are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """One option a class, by number, what that takes of room and flash, and how long it recomputes."""

    choice: tuple[int, ...]
    room: int
    stored: int
    flash_ns: int
    extra_ns: int


def uniform_plans(variables: Variables, head_peak: int) -> list[Uniform]:
    """Ways to give all layers of a class the same option."""
    each = max(6, int(TRIED ** (1 / len(variables.classes))))
    numbers = [_shortlist(c.options, each) for c in variables.classes]
    return [_uniform(variables, choice, head_peak) for choice in product(*numbers)]


def _shortlist(options: Sequence[Option], count: int) -> list[int]:
    """Numbers of about `count` options: a spread over recomputation, those that keep least, those that neither store nor keep much."""
    numbers = range(len(options))
    third = max(1, count // 3)
    by_time = sorted(numbers, key=lambda m: (options[m].recompute_ns, options[m].kept_bytes))
    by_room = sorted(numbers, key=lambda m: (options[m].kept_bytes, options[m].peak, options[m].recompute_ns))
    by_flash = sorted(numbers, key=lambda m: (options[m].stored_bytes, options[m].kept_bytes, options[m].peak))
    return sorted({*by_time[:: max(1, len(by_time) // third)], *by_room[:third], *by_flash[:third]})


def _uniform(variables: Variables, choice: tuple[int, ...], head_peak: int) -> Uniform:
    taken = [c.options[m] for c, m in zip(variables.classes, choice, strict=True)]
    sizes = [len(c.layers) for c in variables.classes]
    kept = sum(option.kept_bytes * size for option, size in zip(taken, sizes, strict=True))
    room = kept + max([head_peak, *(option.peak - option.kept_bytes for option in taken)])
    return Uniform(
        choice=choice,
        room=room,
        stored=sum(option.stored_bytes * size for option, size in zip(taken, sizes, strict=True)),
        flash_ns=sum(option.flash_ns * size for option, size in zip(taken, sizes, strict=True)),
        extra_ns=sum(option.recompute_ns * size for option, size in zip(taken, sizes, strict=True)),
    )


def hint_fastest(model: cp_model.CpModel, variables: Variables, plans: Sequence[Uniform], room: int) -> None:
    """Hint the fastest uniform plan within `room`, and residence for the weights that fill what is left."""
    fitting = [plan for plan in plans if plan.room <= room]
    if fitting:
        best = min(fitting, key=lambda plan: (plan.extra_ns, plan.stored, plan.room))
        _hint(model, variables, best, room - best.room)


def hint_smallest(model: cp_model.CpModel, variables: Variables, plans: Sequence[Uniform], room: cp_model.IntVar) -> None:
    """Hint the uniform plan that takes least room."""
    if plans:
        best = min(plans, key=lambda plan: (plan.room, plan.stored))
        _hint(model, variables, best, 0)
        model.add_hint(room, best.room)


def _hint(model: cp_model.CpModel, variables: Variables, plan: Uniform, spare: int) -> None:
    room = spare
    for number, layer_class in enumerate(variables.classes):
        size = len(layer_class.layers)
        for m, (count, used) in enumerate(zip(variables.count[number], variables.used[number], strict=True)):
            model.add_hint(count, size if m == plan.choice[number] else 0)
            model.add_hint(used, m == plan.choice[number])
        again = {linear_of(weight) for weight in layer_class.options[plan.choice[number]].again}
        for w, item in enumerate(variables.holdable[number]):
            fill = min(len(item.weights), spare // item.nbytes)
            spare -= fill * item.nbytes
            model.add_hint(variables.resident[number][w], fill)
            model.add_hint(variables.resident_again[number][w], fill if item.linear in again else 0)
        kept = 0
        for m, total in enumerate(variables.kept_up_to[number]):
            kept += layer_class.options[m].kept_bytes * size if m == plan.choice[number] else 0
            model.add_hint(total, kept)
    head: Holdable | None = variables.head
    fill = int(head is not None and head.nbytes <= spare)
    model.add_hint(variables.head_resident, fill)
    model.add_hint(variables.resident_bytes, room - spare + (head.nbytes if head is not None and fill else 0))
