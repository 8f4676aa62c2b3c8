"""One way through a layer: what becomes of its activations, which weights recomputation and backward share, and what that costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mebp.models.graph import Graph, Layer
from mebp.models.op import Op, Weights
from mebp.models.tensor import Tensor, TensorId, align
from mebp.planner.recipe.flash import first_wait_ns, hoist_loads, hoist_unpacking
from mebp.planner.recipe.lower import live_profile
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking
from mebp.planner.recipe.schedule import Run, Step, Stored, schedule
from mebp.sim.cost import CostModel

FOREVER_NS = 10**14  # no store that takes longer hides behind anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way through a layer (or through a segment of `layers` in a row), written for the menu's source; bytes and nanoseconds.

    `forward_peak` and `backward_peak` include what the layer itself keeps and its input, not what other layers keep.
    `wait_ns` is how long its first load is waited for, where no layer above runs meanwhile. `shared` are the weights, by role, that
    are unpacked once for recomputation and backward, `whole` those that are unpacked before each op that uses them; `read_again`
    those that recomputation reads in addition to forward and backward, where residence would save that. `once_ns` is what
    recomputation takes at least where no chunked op unpacks a weight twice. `input_bytes` are those of the layer's input, whatever
    becomes of it.
    """

    saving: Mapping[TensorId, Saving]
    shared: frozenset[str]
    read_again: frozenset[str]
    input_bytes: int
    kept_bytes: int
    stored_bytes: int
    store_ns: int
    load_ns: int
    recompute_ns: int
    once_ns: int
    forward_peak: int
    backward_peak: int
    whole: frozenset[str] = frozenset()
    layers: int = 1
    wait_ns: int = 0

    @property
    def peak(self) -> int:
        return max(self.forward_peak, self.backward_peak)

    @property
    def takes_residents(self) -> bool:
        """Whether its weights may be resident."""
        return self.layers == 1 and not self.whole

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.kept_bytes, self.stored_bytes, self.peak


def make_option(
    graph: Graph,
    cost: CostModel,
    layer: Layer,
    saving: Mapping[TensorId, Saving],
    *,
    shared: frozenset[str] = frozenset(),
    whole: frozenset[str] = frozenset(),
    lead_ns: int | None = None,
) -> Option:
    """Read off a layer's schedule what a way of saving takes; with `lead_ns` (see flash.first_wait_ns) its first loads are waited
    for.
    """
    unpacking = dict.fromkeys(cost.ahead, Unpacking.AHEAD)
    for op in layer.ops:
        unpacking |= dict.fromkeys(_with_roles(graph, op, shared), Unpacking.SHARED)
        unpacking |= dict.fromkeys(_with_roles(graph, op, whole), Unpacking.WHOLE)
    forward, backward = _layer_steps(graph, Recipe(saving=saving, unpacking=unpacking, head_tile=0), layer)
    wait_ns = first_wait_ns(backward, cost, lead_ns) if lead_ns is not None else 0
    steps = hoist_loads([*forward, *backward], cost, turn := len(forward))
    steps = hoist_unpacking(steps[:turn], cost) + hoist_unpacking(steps[turn:], cost)
    profile = live_profile(steps, graph)
    recomputed = [step.op for step in steps if isinstance(step, Run) and step.recompute]
    streamed = [(op, _with_roles(graph, op, shared, others=True)) for op in recomputed]
    again_ns = sum(cost.op_ns(op, streamed=weights) for op, weights in streamed)  # a shared one's unpacking is what backward saves
    saved_ns = sum(cost.repeats_ns(op, _with_roles(graph, op, shared)) for op in layer.backward)
    saved_ns += sum(cost.whole_saves_ns(op, _with_roles(graph, op, whole)) for op in (*layer.ops, *recomputed))
    tensors: Mapping[TensorId, Tensor] = graph.tensors
    stored = [tensors[t].nbytes for t, choice in saving.items() if choice is Saving.STORE]
    input_bytes = align(tensors[layer.input].nbytes)
    given = 0 if input_ops(graph, layer) else input_bytes
    return Option(
        saving=saving,
        shared=shared,
        whole=whole,
        read_again=frozenset() if whole else frozenset(role for op in recomputed for role in _roles(graph, op)) - shared,
        input_bytes=input_bytes,
        kept_bytes=sum(align(tensors[t].nbytes) for t, choice in saving.items() if choice is Saving.KEEP),
        stored_bytes=sum(stored),
        store_ns=min(FOREVER_NS, sum(map(cost.store_ns, stored))),
        load_ns=min(FOREVER_NS, sum(map(cost.load_ns, stored))),
        recompute_ns=again_ns - saved_ns,
        wait_ns=wait_ns,
        once_ns=again_ns - sum(cost.repeats_ns(op, weights) for op, weights in streamed),
        forward_peak=given + max(profile[:turn], default=0),
        backward_peak=given + _gradient_bytes(graph) + max(profile[turn:], default=0) if layer.backward else 0,
    )


def recomputed_ops(graph: Graph, layer: Layer, saving: Mapping[TensorId, Saving]) -> list[Op]:
    """Ops that are recomputed under `saving`."""
    steps = schedule(graph, Recipe(saving=saving, head_tile=0), _ops(graph, layer), _given(graph, layer))
    return [step.op for step in steps if isinstance(step, Run) and step.recompute]


def pass_ns(graph: Graph, cost: CostModel, layer: Layer) -> dict[str, int]:
    """By role, the time that a pass over all tokens takes above one that finds the weight unpacked: where the layer runs in chunks,
    each of them streams it.
    """
    uses = {role: sum(op.uses(weight) for op in layer.forward) for role, weight in layer.weights.items()}
    return {role: uses[role] * cost.streaming_ns(graph.weights[weight]) for role, weight in layer.weights.items()}


def input_ops(graph: Graph, layer: Layer) -> tuple[Op, ...]:
    """The embedding, where it makes the layer's input: it may be recomputed."""
    producer = graph.producer[layer.input]
    return (producer,) if producer.kind.gathers else ()


def undominated(options: list[Option], streaming_ns: Mapping[str, int] | None = None) -> list[Option]:
    """Pareto-optimal options in bytes kept and stored, in peak, and in time whatever is resident; `streaming_ns` by role."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.recompute_ns, o.kept_bytes, o.stored_bytes, o.peak)):
        if not any(_covers(other, option, streaming_ns or {}) for other in kept):
            kept.append(option)
    return kept


def relabel(saving: Mapping[TensorId, Saving], sources: Sequence[Layer], targets: Sequence[Layer]) -> dict[TensorId, Saving]:
    """Decisions that were written for layers `sources` in the names of as many layers `targets` that are alike."""
    names = {source.input: target.input for source, target in zip(sources, targets, strict=True)}
    for source, target in zip(sources, targets, strict=True):
        for op, same_op in zip(source.forward, target.forward, strict=True):
            names |= zip(op.writes.values(), same_op.writes.values(), strict=True)
    return {names[tensor]: choice for tensor, choice in saving.items()}


def _covers(other: Option, option: Option, streaming_ns: Mapping[str, int]) -> bool:
    """Whether `other` dominates `option` even if residence saves the streaming of every weight that only `option` reads again. An
    option whose weights may be resident is never dominated by one whose may not.
    """
    if option.takes_residents and not other.takes_residents:
        return False
    saved = sum(streaming_ns[role] for role in option.read_again - other.read_again)
    faster = other.recompute_ns + saved <= option.recompute_ns and other.wait_ns <= option.wait_ns
    return faster and all(a <= b for a, b in zip(other.sizes, option.sizes, strict=True))


def _layer_steps(graph: Graph, recipe: Recipe, layer: Layer) -> tuple[list[Step], list[Step]]:
    """A layer's steps up to the turn from forward to backward, and from there."""
    steps = schedule(graph, recipe, _ops(graph, layer), _given(graph, layer))
    if not layer.backward:
        return steps, []
    first = sum(isinstance(step, Run) and not step.recompute and not step.op.backward for step in steps)
    turn, seen = 0, 0
    while seen < first or isinstance(steps[turn], Stored):
        step = steps[turn]
        seen += isinstance(step, Run)
        turn += 1
    return steps[:turn], steps[turn:]


def _ops(graph: Graph, layer: Layer) -> tuple[Op, ...]:
    return (*input_ops(graph, layer), *layer.forward, *layer.backward)


def _given(graph: Graph, layer: Layer) -> frozenset[TensorId]:
    """What is there before the layer's own ops run: its input, unless it makes that itself, and the stream's gradient."""
    own = {tensor for op in input_ops(graph, layer) for tensor in op.writes.values()}
    return frozenset({_stream_gradient(graph), layer.input} - own)


def _stream_gradient(graph: Graph) -> TensorId:
    assert graph.stream_gradient is not None, "only a graph with a backward has options"
    return graph.stream_gradient


def _gradient_bytes(graph: Graph) -> int:
    return align(graph.tensors[_stream_gradient(graph)].nbytes)


def _roles(graph: Graph, op: Op) -> Iterable[str]:
    """Roles of a layer's weights that an op multiplies with."""
    return (graph.weights[weight].role for weight in op.weights if op.kind.is_of_layers)


def _with_roles(graph: Graph, op: Op, roles: frozenset[str], *, others: bool = False) -> Weights:
    """An op's weights that have one of these roles; or the `others`."""
    return tuple(weight for weight in op.weights if (graph.weights[weight].role in roles) is not others)
