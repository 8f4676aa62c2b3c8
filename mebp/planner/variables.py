"""The decision variables of the placement model, with queries that read as words.

Of each stretch it is decided how many layers (or segments of it) take each option, and of how many each weight is resident; of the
head, its tile and whether its weight is resident. `shortlists` names the options that are open, a tuple of numbers a stretch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from mebp.planner.chain import Holdable, Stretch, linear_of
from mebp.planner.menu import Option

RUNNING_SUM = "kept up to"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOption:
    """One tile of the head: logits at a time, live bytes while it runs beside what layers keep, its time streamed."""

    tile: int
    peak: int
    duration_ns: int


class Variables:
    """How many layers of each stretch take each open option, how many of its weights are resident, and the head's choice."""

    def __init__(
        self,
        model: cp_model.CpModel,
        stretches: Sequence[Stretch],
        shortlists: Sequence[Sequence[int]],
        heads: Sequence[HeadOption],
        head_weight: Holdable | None,
    ) -> None:
        self.stretches = stretches
        self.heads = heads
        self.head_weight = head_weight
        numbers = [sorted(shortlist) for shortlist in shortlists]
        self.options: list[list[Option]] = [
            [stretch.menu.options[m] for m in open_] for stretch, open_ in zip(stretches, numbers, strict=True)
        ]
        sizes = [len(stretch.layers) for stretch in stretches]
        self.count = [
            [
                model.new_int_var(0, size // option.layers, f"stretch {i} option {m}")
                for m, option in zip(open_, options, strict=True)
            ]
            for i, (size, open_, options) in enumerate(zip(sizes, numbers, self.options, strict=True))
        ]
        self.used = [[model.new_bool_var(f"stretch {i} uses option {m}") for m in open_] for i, open_ in enumerate(numbers)]
        self.resident = [
            [model.new_int_var(0, size, f"stretch {i} resident {item.linear}") for item in stretch.menu.holdables]
            for i, (size, stretch) in enumerate(zip(sizes, stretches, strict=True))
        ]
        self.resident_again = [
            [model.new_int_var(0, size, f"stretch {i} resident and read again {item.linear}") for item in stretch.menu.holdables]
            for i, (size, stretch) in enumerate(zip(sizes, stretches, strict=True))
        ]
        self.head = [model.new_bool_var(f"head tile {head.tile}") for head in heads]
        self.head_resident = model.new_int_var(0, 1 if head_weight else 0, "head resident")
        self.kept_up_to = [self._running_sums(model, number) for number in range(len(stretches))]
        self.resident_bytes = self._resident_bytes(model)

    def total(self, number: int, amount: str) -> cp_model.LinearExprT:
        """The sum of `amount` (a field of Option) over the layers of a stretch."""
        pairs = zip(self.options[number], self.count[number], strict=True)
        return sum(getattr(option, amount) * count for option, count in pairs)

    def everywhere(self, amount: str) -> cp_model.LinearExprT:
        """The sum of `amount` over all layers."""
        return sum(self.total(number, amount) for number in range(len(self.stretches)))

    def kept(self, number: int) -> cp_model.LinearExprT:
        """Bytes kept by all layers of a stretch."""
        return self.kept_up_to[number][-1]

    def kept_before(self, number: int) -> cp_model.LinearExprT:
        """Bytes kept by all layers below a stretch."""
        return sum(self.kept(other) for other in range(number))

    def read_again(self, number: int, linear: str) -> cp_model.LinearExprT:
        """Layers of a stretch whose option reads `linear` once more than forward and backward do."""
        pairs = zip(self.options[number], self.count[number], strict=True)
        return sum(count for option, count in pairs if any(linear_of(read) == linear for read in option.again))

    def in_segments(self, number: int) -> cp_model.LinearExprT:
        """Layers of a stretch that are part of a segment."""
        pairs = zip(self.options[number], self.count[number], strict=True)
        return sum(option.layers * count for option, count in pairs if option.layers > 1)

    def _running_sums(self, model: cp_model.CpModel, number: int) -> list[cp_model.IntVar]:
        """Bytes kept by the layers with the first option, the first two, ...: one variable each keeps every rule short."""
        most = max(option.kept_bytes for option in self.options[number]) * len(self.stretches[number].layers)
        sums: list[cp_model.IntVar] = []
        for option, count in zip(self.options[number], self.count[number], strict=True):
            total = model.new_int_var(0, most, f"stretch {number} {RUNNING_SUM} option {len(sums)}")
            model.add(total == option.kept_bytes * count + (sums[-1] if sums else 0))
            sums.append(total)
        return sums

    def _resident_bytes(self, model: cp_model.CpModel) -> cp_model.IntVar:
        """Bytes of all resident weights."""
        pairs = [
            (item.nbytes, count, len(stretch.layers))
            for stretch, counts in zip(self.stretches, self.resident, strict=True)
            for item, count in zip(stretch.menu.holdables, counts, strict=True)
        ]
        pairs += [(self.head_weight.nbytes, self.head_resident, 1)] if self.head_weight else []
        total = model.new_int_var(0, sum(nbytes * most for nbytes, _, most in pairs), "resident bytes")
        model.add(total == sum(nbytes * count for nbytes, count, _ in pairs))
        return total
