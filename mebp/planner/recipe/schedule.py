"""Put a recipe in order: which instruction follows which, before anything has an address.

Forward runs as the graph has it. In backward, what an op reads and the recipe did not save is brought back right before it:
loaded, or recomputed from what is there, each op at most once for each time its result is missing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mebp.models.graph import Graph
from mebp.models.op import Op, Weights
from mebp.models.tensor import TensorId, WeightId
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Compute an op, which reads the weights `streamed` compressed; `tile` is the head's logits at a time, 0 for every other op."""

    op: Op
    recompute: bool
    streamed: Weights
    tile: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """Decompress a whole weight."""

    weight: WeightId


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Write a tensor to the spill file."""

    tensor: TensorId


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Bring a tensor back."""

    tensor: TensorId


Step = Run | Unpacked | Stored | Loaded


def schedule(graph: Graph, recipe: Recipe, ops: Iterable[Op] | None = None, given: frozenset[TensorId] = frozenset()) -> list[Step]:
    """Order the steps of `ops` (default: the whole graph) under `recipe`; `given` tensors are there from the start."""
    chosen = graph.ops if ops is None else tuple(ops)
    order = _Order(graph, recipe, chosen, given)
    for position, op in enumerate(chosen):
        order.run(position, op)
    return order.steps


class _Order:
    """The steps so far, and what is available after them."""

    def __init__(self, graph: Graph, recipe: Recipe, ops: tuple[Op, ...], given: frozenset[TensorId]) -> None:
        self.graph = graph
        self.recipe = recipe
        self.steps: list[Step] = []
        self.position = {op.id: position for position, op in enumerate(ops)}
        self.available: set[TensorId] = set(given)
        self.shared: set[WeightId] = set()
        self.last_forward: dict[TensorId, int] = {}
        self.backward_uses: dict[TensorId, int] = {}
        for position, op in enumerate(ops):
            for tensor in op.touched:
                if op.backward:
                    self.backward_uses[tensor] = self.backward_uses.get(tensor, 0) + 1
                else:
                    self.last_forward[tensor] = position

    def run(self, position: int, op: Op) -> None:
        """Add an op's first run, behind all that it needs."""
        if op.backward:
            self._bring_back(op)
        self._emit(op, recompute=False)
        if op.backward:
            self._drop_used_up(op)
        else:
            self._drop_unsaved(position, op)

    def _drop_unsaved(self, position: int, op: Op) -> None:
        """After the last forward use only what is kept stays."""
        for tensor in op.writes.values():
            if self.recipe.saves(tensor) is Saving.STORE:
                self.steps.append(Stored(tensor=tensor))
        for tensor in (*op.reads.values(), *op.writes.values()):
            over = self.last_forward.get(tensor, -1) <= position
            from_head = self.graph.producer[tensor].kind.makes_loss
            if over and not from_head and self.recipe.saves(tensor) is not Saving.KEEP:
                self.available.discard(tensor)

    def _drop_used_up(self, op: Op) -> None:
        for tensor in op.touched:
            self.backward_uses[tensor] -= 1
            if not self.backward_uses[tensor] and self.recipe.saves(tensor) is not Saving.KEEP:
                self.available.discard(tensor)

    def _bring_back(self, op: Op) -> None:
        """Load or recompute what `op` reads and is not there; what no later backward op reads is dropped at once."""
        loads, recomputed, seen = self._missing(op)
        for tensor in reversed(loads):
            self.steps.append(Loaded(tensor=tensor))
        for producer in sorted(recomputed.values(), key=lambda other: self.position[other.id]):
            self._emit(producer, recompute=True)
        stays = {tensor for tensor in seen if self.backward_uses.get(tensor) and not self._is_transient(tensor, op)}
        self.available = (self.available - seen) | stays

    def _missing(self, op: Op) -> tuple[list[TensorId], dict[str, Op], set[TensorId]]:
        """What has to be loaded and recomputed for `op`, and all tensors that this brings back."""
        wanted = [tensor for tensor in op.touched if tensor not in self.available]
        loads: list[TensorId] = []
        recomputed: dict[str, Op] = {}
        seen: set[TensorId] = set()
        while wanted:
            tensor = wanted.pop()
            if tensor in seen or tensor in self.available:
                continue
            seen.add(tensor)
            if self.recipe.saves(tensor) is Saving.STORE:
                loads.append(tensor)
                continue
            producer = self.graph.producer[tensor]
            assert not producer.backward, f"{tensor} of {producer.id} was dropped before {op.id}"
            recomputed[producer.id] = producer
            wanted += producer.reads.values()
        return loads, recomputed, seen

    def _is_transient(self, tensor: TensorId, op: Op) -> bool:
        """Whether a tensor was recomputed only on the way to what `op` reads, and its own layer recomputes it once more."""
        return self.recipe.saves(tensor) is Saving.TRANSIENT and self.graph.producer[tensor].layer != op.layer

    def _emit(self, op: Op, *, recompute: bool) -> None:
        streamed = tuple(weight for weight in op.weights if not self._unpack_for(op, weight, recompute))
        tile = self.recipe.head_tile if op.kind.makes_loss else 0
        self.steps.append(Run(op=op, recompute=recompute, streamed=streamed, tile=tile))
        self.available |= set(op.writes.values())

    def _unpack_for(self, op: Op, weight: WeightId, recompute: bool) -> bool:
        """Unpack one of the op's weights where the recipe says so; returns whether the op finds it unpacked."""
        kind = op.kind
        match self.recipe.unpacks(weight):
            case Unpacking.RESIDENT:
                return kind.unpacks_whole
            case Unpacking.WHOLE if kind.is_of_layers:
                self.steps.append(Unpacked(weight=weight))
                return True
            case Unpacking.AHEAD if kind.unpacks_whole:
                self.steps.append(Unpacked(weight=weight))
                return True
            case Unpacking.SHARED if recompute:
                self.steps.append(Unpacked(weight=weight))
                self.shared.add(weight)
                return True
            case _:
                return weight in self.shared and op.backward


def tensors_of(step: Step, graph: Graph) -> Iterator[tuple[TensorId, bool]]:
    """Tensors that a step touches, each with whether the step writes it new."""
    match step:
        case Run(op=op, streamed=streamed):
            yield from ((tensor, False) for tensor in op.touched)
            yield from ((TensorId(weight), False) for weight in op.weights if weight not in streamed)
            yield from ((tensor, True) for tensor in op.writes.values())
        case Unpacked(weight=weight):
            yield TensorId(weight), True
        case Stored(tensor=tensor):
            yield tensor, False
        case Loaded(tensor=tensor):
            yield tensor, True
