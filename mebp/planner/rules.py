"""The rules of the placement model, one class each. `post` adds a rule's constraints to the model."""

from dataclasses import dataclass

from ortools.sat.python import cp_model

from mebp.planner.variables import Variables


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOptionPerLayer:
    """sum_m n[c, m] = layers of class c; used[c, m] holds wherever n[c, m] > 0."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        for counts, used, layer_class in zip(variables.count, variables.used, variables.classes, strict=True):
            model.add(sum(counts) == len(layer_class.layers))
            for count, flag in zip(counts, used, strict=True):
                model.add(count <= len(layer_class.layers) * flag)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitsTheArena:
    """resident + kept by layers before + kept by its own equals before + peak <= room, for the last layer of every option used.

    Layers of other classes count as if all came before (they may: classes interleave); layer 0, a class of its own, does come
    before all. At the head every layer's kept tensors lie beside the head's own `head_peak`. `room` is a number or a variable.
    """

    room: cp_model.LinearExprT
    head_peak: int

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        resident = variables.resident_bytes
        numbers = range(len(variables.classes))
        for number in numbers:
            first_layer = variables.classes[number].layers[0].number
            others = sum(variables.kept(other) for other in numbers if other != number) if first_layer else 0
            for m, option in enumerate(variables.classes[number].options):
                before = variables.kept_up_to[number][m] - option.kept_bytes  # the last layer's own is part of its peak
                model.add(resident + others + before + option.peak <= self.room).only_enforce_if(variables.used[number][m])
        model.add(resident + sum(variables.kept(number) for number in numbers) + self.head_peak <= self.room)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashKeepsUp:
    """sum stored <= cap, and sum flash_ns <= time: all writing takes no longer than the forward.

    So stores can run beside it; loads and single waits are left to the simulator, whose time is the one that is reported.
    """

    cap_bytes: int
    time_ns: int

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        numbers = range(len(variables.classes))
        model.add(sum(variables.total(number, "stored_bytes") for number in numbers) <= self.cap_bytes)
        model.add(sum(variables.total(number, "flash_ns") for number in numbers) <= self.time_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentReadAgain:
    """z[c, w] <= resident[c, w] and z[c, w] <= layers that read w again: residence saves those a third unpacking."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        for number, items in enumerate(variables.holdable):
            for item, both, resident in zip(
                items, variables.resident_again[number], variables.resident[number], strict=True
            ):
                model.add(both <= resident)
                model.add(both <= variables.read_again(number, item.linear))


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingResident:
    """resident = 0: for the least budget, where room is short and time is not asked for."""

    def post(self, model: cp_model.CpModel, variables: Variables) -> None:
        model.add(variables.resident_bytes == 0)
