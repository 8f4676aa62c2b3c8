"""The rules of the placement model, one class each. `rules_of` is the one list of them; model.py posts it.

`post` adds a rule's constraints to the model.
"""

from dataclasses import dataclass
from typing import Protocol

from ortools.sat.python import cp_model

from mebp.planner.solver.variables import Variables


class Rule(Protocol):
    """What a placement has to keep to."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        """Add the rule's constraints."""


def rules_of(room: cp_model.LinearExprT, flash: "FlashKeepsUp", *, residence: bool = True) -> tuple[Rule, ...]:
    """Every rule of a placement in `room` bytes of arena (a number or a variable); without `residence` no weight is resident."""
    return (
        OneOptionPerLayer(),
        ResidentReadAgain(),
        ResidentWhereStreamed(),
        flash,
        FitsTheArena(room=room),
        *(() if residence else (NothingResident(),)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOptionPerLayer:
    """sum_m layers[m] n[s, m] = layers of stretch s; used[s, m] holds wherever n[s, m] > 0; the head has one tile."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        for number, stretch in enumerate(variables.stretches):
            counts, used = variables.count[number], variables.used[number]
            spans = [option.layers for option in variables.options[number]]
            model.add(sum(span * count for span, count in zip(spans, counts, strict=True)) == len(stretch.layers))
            for count, flag in zip(counts, used, strict=True):
                model.add(count <= len(stretch.layers) * flag)
        model.add_exactly_one(variables.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitsTheArena:
    """resident + kept by lower stretches + kept by equals before + peak <= room, for the last layer of every option used.

    What a layer keeps is part of its own peak. At the head every layer's kept tensors come on top of the head's own peak. `room` is
    a number or a variable.
    """

    room: cp_model.LinearExprT

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        resident = variables.resident_bytes
        for number, options in enumerate(variables.options):
            below = variables.kept_before(number)
            for m, option in enumerate(options):
                before = variables.kept_up_to[number][m] - option.kept_bytes
                model.add(resident + below + before + option.peak <= self.room).only_enforce_if(variables.used[number][m])
        kept = variables.kept_before(len(variables.stretches))
        for head, chosen in zip(variables.heads, variables.head, strict=True):
            model.add(resident + kept + head.peak <= self.room).only_enforce_if(chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashKeepsUp:
    """sum stored <= cap; sum store_ns <= the forward's time; sum load_ns <= the backward's.

    So transfers can run concurrently with the processor; single waits are left to the simulator, whose time is the one reported.
    """

    cap_bytes: int
    store_ns: int
    load_ns: int

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        model.add(variables.everywhere("stored_bytes") <= self.cap_bytes)
        model.add(variables.everywhere("store_ns") <= self.store_ns)
        model.add(variables.everywhere("load_ns") <= self.load_ns)

    def allows(self, stored_bytes: int, store_ns: int, load_ns: int) -> bool:
        """Whether flash can take so much."""
        return stored_bytes <= self.cap_bytes and store_ns <= self.store_ns and load_ns <= self.load_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentReadAgain:
    """z[s, w] <= resident[s, w] and z[s, w] <= layers that read w again: residence saves those a third unpacking."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        for number, stretch in enumerate(variables.stretches):
            both, resident = variables.resident_again[number], variables.resident[number]
            for w, candidate in enumerate(stretch.menu.candidates):
                model.add(both[w] <= resident[w])
                model.add(both[w] <= variables.read_again(number, candidate.role))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentWhereStreamed:
    """resident[s, w] + layers of s that take no residents <= layers of s: the weights of a segment, or of a layer that unpacks some
    of its own whole, are not resident.
    """

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        for number, stretch in enumerate(variables.stretches):
            for resident in variables.resident[number]:
                model.add(resident + variables.without_residents(number) <= len(stretch.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingResident:
    """resident = 0: for the least budget, where room is short and time does not matter."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        model.add(variables.resident_bytes == 0)
