"""What must end before what: the execution rule of the plan language as a list of predecessors per instruction.

The simulator turns it into start times, the executor into waits; that is why both live by the same rule.
"""

from bisect import bisect_left, bisect_right

from mebp.models.tensor import TensorId
from mebp.plan import Compute, Engine, Free, Instruction, Load, Place, Plan, Store, Unpack


def predecessors(plan: Plan) -> list[tuple[int, ...]]:
    """For every instruction the earlier ones that must have ended before it starts, by number; a Free waits for nothing.

    Contains rule 1 (the one before on its engine), rule 2 (producers of what it reads) and rule 3 (all that touched the bytes
    that it writes or changes in place; for a tensor that comes back, all that touched it in its last stay).
    """
    ordering = _Ordering()
    for place in plan.resident:
        ordering.live[place.tensor] = place
        ordering.touchers[place.tensor] = []
    return [ordering.follow(index, instruction) for index, instruction in enumerate(plan.instructions)]


class _Ordering:
    def __init__(self) -> None:
        self.last_on: dict[Engine, int] = {}
        self.producer: dict[TensorId, int] = {}
        self.stored_by: dict[TensorId, int] = {}
        self.live: dict[TensorId, Place] = {}
        self.touchers: dict[TensorId, list[int]] = {}
        self.earlier: dict[TensorId, list[int]] = {}  # what touched a tensor in its last stay
        self.freed = _FreedBytes()

    def follow(self, index: int, instruction: Instruction) -> tuple[int, ...]:
        match instruction:
            case Free():
                touchers = self.earlier[instruction.tensor] = self.touchers.pop(instruction.tensor)
                self.freed.release(self.live.pop(instruction.tensor), touchers)
                return ()
            case Compute():
                before = {other for tensor in instruction.updates for other in self.touchers[tensor]}
                before |= self._touch(index, (*instruction.reads, *instruction.updates))
                before |= self._write(index, instruction.writes, instruction.scratch)
                self.producer |= dict.fromkeys(instruction.updates, index)
            case Unpack():
                before = self._write(index, (instruction.place,), None)
            case Store():
                before = self._touch(index, (instruction.tensor,))
                self.stored_by[instruction.tensor] = index
            case Load():
                before = self._write(index, (instruction.place,), None)
                before.add(self.stored_by[instruction.place.tensor])
        if instruction.engine in self.last_on:
            before.add(self.last_on[instruction.engine])
        self.last_on[instruction.engine] = index
        return tuple(sorted(before))

    def _touch(self, index: int, tensors: tuple[TensorId, ...]) -> set[int]:
        for tensor in tensors:
            self.touchers[tensor].append(index)
        return {self.producer[tensor] for tensor in tensors if tensor in self.producer}

    def _write(self, index: int, places: tuple[Place, ...], scratch: Place | None) -> set[int]:
        before: set[int] = set()
        for place in (*places, *((scratch,) if scratch else ())):
            before |= self.freed.claim(place)
        for place in places:
            before |= set(self.earlier.get(place.tensor, ()))  # a second stay begins when the first one's readers are done
            self.live[place.tensor] = place
            self.touchers[place.tensor] = [index]
            self.producer[place.tensor] = index
        if scratch:
            self.freed.release(scratch, [index])
        return before


class _FreedBytes:
    """Which instructions touched the free stretches of the arena last: disjoint stretches, sorted by offset."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.stretches: list[tuple[int, int, frozenset[int]]] = []

    def release(self, place: Place, touchers: list[int]) -> None:
        """Give a stretch back, with the instructions that touched it."""
        self._cut(place.offset, place.end)
        self._insert(place.offset, place.end, frozenset(touchers))

    def claim(self, place: Place) -> set[int]:
        """Take a stretch; returns all instructions that touched any byte of it."""
        taken = self._cut(place.offset, place.end)
        return {index for _, _, touchers in taken for index in touchers}

    def _cut(self, start: int, end: int) -> list[tuple[int, int, frozenset[int]]]:
        low = max(0, bisect_right(self.starts, start) - 1)
        high = bisect_left(self.starts, end)
        overlapping = [s for s in self.stretches[low:high] if s[1] > start and s[0] < end]
        untouched = [s for s in self.stretches[low:high] if not (s[1] > start and s[0] < end)]
        rests = [(s[0], start, s[2]) for s in overlapping if s[0] < start]
        rests += [(end, s[1], s[2]) for s in overlapping if s[1] > end]
        kept = sorted(untouched + rests)
        self.stretches[low:high] = kept
        self.starts[low:high] = [s[0] for s in kept]
        return overlapping

    def _insert(self, start: int, end: int, touchers: frozenset[int]) -> None:
        at = bisect_left(self.starts, start)
        self.starts.insert(at, start)
        self.stretches.insert(at, (start, end, touchers))
