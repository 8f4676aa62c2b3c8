"""The decision variables of the placement model, with queries that read as words.

Of each stretch it is decided how many layers (or segments of it) take each option, and of how many each weight is resident; of the
head, its tile and whether its weight is resident. `shortlists` names the options that are open, a tuple of numbers per stretch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from mebp.planner.layer.chain import Candidate, Stretch
from mebp.planner.layer.option import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOption:
    """One tile of the head: logits at a time, live bytes while it runs above what layers keep, its time streamed."""

    tile: int
    peak: int
    duration_ns: int


class Variables:
    """How many layers of each stretch take each open option, how many of its weights are resident, and the head's choice.

    `decisions` are all that is decided, by name; the running sums `kept_up_to` follow from them.
    """

    def __init__(
        self,
        model: cp_model.CpModel,
        stretches: Sequence[Stretch],
        shortlists: Sequence[Sequence[int]],
        heads: Sequence[HeadOption],
        head_weight: Candidate | None,
    ) -> None:
        self.stretches = stretches
        self.heads = heads
        self.head_weight = head_weight
        self.decisions: dict[str, cp_model.IntVar] = {}
        self._model = model
        numbers = [sorted(shortlist) for shortlist in shortlists]
        self.options: list[list[Option]] = [
            [stretch.menu.options[m] for m in open_] for stretch, open_ in zip(stretches, numbers, strict=True)
        ]
        sizes = [len(stretch.layers) for stretch in stretches]
        self.count = [
            [self._decide(size // option.layers, f"stretch {i} option {m}") for m, option in zip(open_, options, strict=True)]
            for i, (size, open_, options) in enumerate(zip(sizes, numbers, self.options, strict=True))
        ]
        self.used = [[self._decide(1, f"stretch {i} uses option {m}") for m in open_] for i, open_ in enumerate(numbers)]
        self.resident = self._per_candidate("resident")
        self.resident_again = self._per_candidate("resident and read again")
        self.head = [self._decide(1, f"head tile {head.tile}") for head in heads]
        self.head_resident = self._decide(1 if head_weight else 0, "head resident")
        self.kept_up_to = [self._running_sums(number) for number in range(len(stretches))]
        self.resident_bytes = self._resident_bytes()

    def hint(self, values: Mapping[str, int]) -> None:
        """Start from decisions by name; what they do not name is not taken."""
        for name, variable in self.decisions.items():
            self._model.add_hint(variable, values.get(name, 0))

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

    def read_again(self, number: int, role: str) -> cp_model.LinearExprT:
        """Layers of a stretch in which recomputation reads the weight of `role` in addition to forward and backward."""
        pairs = zip(self.options[number], self.count[number], strict=True)
        return sum(count for option, count in pairs if role in option.read_again)

    def without_residents(self, number: int) -> cp_model.LinearExprT:
        """Layers of a stretch whose options take no resident weights."""
        pairs = zip(self.options[number], self.count[number], strict=True)
        return sum(option.layers * count for option, count in pairs if not option.takes_residents)

    def _decide(self, most: int, name: str) -> cp_model.IntVar:
        variable = self._model.new_bool_var(name) if most == 1 else self._model.new_int_var(0, most, name)
        self.decisions[name] = variable
        return variable

    def _per_candidate(self, what: str) -> list[list[cp_model.IntVar]]:
        """A count of layers for each weight of each stretch that may be resident."""
        return [
            [self._decide(len(stretch.layers), f"stretch {i} {what} {candidate.role}") for candidate in stretch.menu.candidates]
            for i, stretch in enumerate(self.stretches)
        ]

    def _running_sums(self, number: int) -> list[cp_model.IntVar]:
        """Bytes kept by the layers with the first option, the first two, ...: one variable each keeps every rule short."""
        most = max(option.kept_bytes for option in self.options[number]) * len(self.stretches[number].layers)
        sums: list[cp_model.IntVar] = []
        for option, count in zip(self.options[number], self.count[number], strict=True):
            total = self._model.new_int_var(0, most, f"stretch {number} kept up to option {len(sums)}")
            self._model.add(total == option.kept_bytes * count + (sums[-1] if sums else 0))
            sums.append(total)
        return sums

    def _resident_bytes(self) -> cp_model.IntVar:
        """Bytes of all resident weights."""
        terms = [
            (candidate.nbytes, count, len(stretch.layers))
            for stretch, counts in zip(self.stretches, self.resident, strict=True)
            for candidate, count in zip(stretch.menu.candidates, counts, strict=True)
        ]
        terms += [(self.head_weight.nbytes, self.head_resident, 1)] if self.head_weight else []
        total = self._model.new_int_var(0, sum(nbytes * most for nbytes, _, most in terms), "resident bytes")
        self.decisions["resident bytes"] = total
        self._model.add(total == sum(nbytes * count for nbytes, count, _ in terms))
        return total
