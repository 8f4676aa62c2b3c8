"""The menu of one layer: which sets of its activations are worth saving, and what each costs.

An exact CP-SAT model a distinct layer: minimise recomputation under a cap on saved bytes, lower the cap below what was used,
and again (epsilon-constraint), so that every set on the frontier of bytes against time is found. Each set is then offered
kept, stored, or split between layer input and rest, and with weights held from recomputation to backward or streamed
twice. What each way needs of memory is read off the schedule of that layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from ortools.sat.python import cp_model

from mebp.models.build import STREAM_GRADIENT
from mebp.models.graph import Graph, Op, Tensor, TensorId, WeightId
from mebp.models.kind import align, op_scratch
from mebp.planner.flash import first_wait_ns, hoist_loads, hoist_unpacking
from mebp.planner.lower import live_profile
from mebp.planner.recipe import Recipe, Saving, Unpacking, layer_inputs
from mebp.planner.schedule import Run, Step, Stored, schedule
from mebp.sim.cost import CostModel

FOREVER_NS = 10**14  # no store that takes longer hides behind anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way through a layer (or through a segment of `layers` in a row), written for the menu's source; bytes and nanoseconds.

    `forward_peak` and `backward_peak` include what the layer itself keeps and its input, not what other layers keep.
    `wait_ns` is how long its first load is waited for, where no layer above runs meanwhile.
    `again` are the weights that recomputation reads a time more than forward and backward do. `input_bytes` are those of the
    layer's input, whatever becomes of it.
    """

    saving: Mapping[TensorId, Saving]
    hold: frozenset[WeightId]
    again: frozenset[WeightId]
    input_bytes: int
    kept_bytes: int
    stored_bytes: int
    store_ns: int
    load_ns: int
    recompute_ns: int
    forward_peak: int
    backward_peak: int
    layers: int = 1
    wait_ns: int = 0

    @property
    def peak(self) -> int:
        return max(self.forward_peak, self.backward_peak)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.kept_bytes, self.stored_bytes, self.peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's ops, its input, and its class: layers of one class have the same menu up to names."""

    number: int
    input: TensorId
    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    shape: tuple[object, ...]


def layers(graph: Graph, cost: CostModel) -> list[Layer]:
    """Split a graph into its decoder layers."""
    inputs = layer_inputs(graph)
    found = []
    for number in range(graph.config.num_layers):
        ops = [op for op in graph.ops if op.layer == number]
        forward = tuple(op for op in ops if not op.backward)
        backward = tuple(op for op in ops if op.backward)
        shape = tuple((op.kind, tuple(op.writes), _op_ns(cost, op), _scratch(graph, op)) for op in ops)
        found.append(Layer(number=number, input=inputs[number], forward=forward, backward=backward, shape=(number == 0, shape)))
    return found


def menu(graph: Graph, cost: CostModel, layer: Layer, tile: int, *, last: bool = False) -> list[Option]:
    """Every undominated option of `layer`; the `last` one has no layer above it during whose backward its first load could run."""
    lead_ns = _lead_ns(graph, cost) if last else None
    found: list[Option] = []
    for saved in saved_sets(graph, cost, layer):
        for saving in _savings(saved, layer):
            again = _recomputed(graph, layer, saving)
            weights = frozenset(weight for op in again for weight in op.weights)
            backward_weights = frozenset(weight for op in layer.backward for weight in op.weights)
            holds = [frozenset[WeightId]()]
            if held := (weights & backward_weights) - cost.ahead:
                holds.append(held)
            found += [make_option(graph, cost, layer, saving, hold=hold, tile=tile, lead_ns=lead_ns) for hold in holds]
    unpack_ns = {weight: cost.unpacking_ns(graph.weights[weight]) for op in layer.forward for weight in op.weights}
    return undominated(found, unpack_ns)


def relabel(option: Option, source: Layer, target: Layer) -> tuple[dict[TensorId, Saving], frozenset[WeightId]]:
    """The decisions of an option that was written for `source`, in the names of `target`."""

    def name(tensor: str) -> str:
        if tensor == source.input:
            return target.input
        number, _, rest = tensor.partition(".")
        return f"{target.number + int(number) - source.number}.{rest}"

    saving = {TensorId(name(tensor)): choice for tensor, choice in option.saving.items()}
    return saving, frozenset(WeightId(name(weight)) for weight in option.hold)


def _lead_ns(graph: Graph, cost: CostModel) -> int:
    """What runs between the head and the last layer's backward."""
    ops = list(graph.ops)
    turn = next(at for at, op in enumerate(ops) if op.kind == "head") + 1
    return sum(_op_ns(cost, op) for op in takewhile(lambda op: op.layer is None, ops[turn:]))


def saved_sets(graph: Graph, cost: CostModel, layer: Layer) -> list[frozenset[TensorId]]:
    """Sets of saved activations on the frontier of bytes against recomputation: with all weights streamed, and with none
    (residence and holding may make that the cheaper way).
    """
    sets = [found for streamed in (True, False) for found in _saved_sets(graph, cost, layer, streamed=streamed)]
    return list(dict.fromkeys(sets))


def _saved_sets(graph: Graph, cost: CostModel, layer: Layer, *, streamed: bool) -> list[frozenset[TensorId]]:
    producers = _producers(graph, layer)
    needed = {tensor for op in layer.backward for tensor in op.touched} & set(producers)
    sizes = {tensor: align(graph.tensors[tensor].nbytes) for tensor in producers}
    model = cp_model.CpModel()
    saved = {tensor: model.new_bool_var(f"saved {tensor}") for tensor in producers}
    again = {op.id: model.new_bool_var(f"again {op.id}") for op in producers.values()}
    for tensor in needed:
        model.add_bool_or(saved[tensor], again[producers[tensor].id])
    for op in {op.id: op for op in producers.values()}.values():
        for tensor in op.reads.values():
            if tensor in producers:
                model.add_bool_or(again[op.id].negated(), saved[tensor], again[producers[tensor].id])
    if producers[layer.input].kind != "embed":
        model.add(again[producers[layer.input].id] == 0)
    ops = {op.id: op for op in producers.values()}.values()
    time = sum(cost.op_ns(op, streamed=streamed and bool(op.weights)) * again[op.id] for op in ops)
    size = sum(nbytes * saved[tensor] for tensor, nbytes in sizes.items())
    return _epsilon_constraint(model, time, size, saved, sizes)


def _epsilon_constraint(
    model: cp_model.CpModel,
    time: cp_model.LinearExprT,
    size: cp_model.LinearExprT,
    saved: Mapping[TensorId, cp_model.IntVar],
    sizes: Mapping[TensorId, int],
) -> list[frozenset[TensorId]]:
    """Solve for time, then for bytes at that time, then below those bytes, until nothing is left."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.catch_sigint_signal = False  # it would leave no handler behind
    found: list[frozenset[TensorId]] = []
    limit = sum(sizes.values())
    unit = max(1, min(sizes.values()))
    scale = limit // unit + 1
    while True:
        bounded = model.clone()
        bounded.add(size <= limit)
        bounded.minimize(time * scale + sum((sizes[t] // unit) * var for t, var in saved.items()))
        if solver.solve(bounded) != cp_model.OPTIMAL:
            return found
        chosen = frozenset(tensor for tensor, var in saved.items() if solver.boolean_value(var))
        found.append(chosen)
        limit = sum(sizes[tensor] for tensor in chosen) - 1


def _producers(graph: Graph, layer: Layer) -> dict[TensorId, Op]:
    """What may be saved: outputs of the layer's forward ops but its last, and its input."""
    inner = {tensor: op for op in layer.forward[:-1] for tensor in op.writes.values()}
    return {layer.input: graph.producer[layer.input]} | inner


def _scratch(graph: Graph, op: Op) -> int:
    weight = graph.weights[op.weights[0]] if op.weights else None
    return op_scratch(op, weight, streamed=bool(op.weights), tile=0)


def _op_ns(cost: CostModel, op: Op) -> int:
    return cost.op_ns(op, streamed=bool(op.weights))


def _savings(saved: frozenset[TensorId], layer: Layer) -> Iterable[dict[TensorId, Saving]]:
    """Ways to save a set: kept, stored, or one of input and rest kept and the other stored."""
    rest = saved - {layer.input}
    splits = {
        frozenset[TensorId](),
        saved,
        saved & {layer.input},
        rest,
    }
    for stored in sorted(splits, key=sorted):
        yield {tensor: Saving.STORE if tensor in stored else Saving.KEEP for tensor in sorted(saved)}


def _recomputed(graph: Graph, layer: Layer, saving: Mapping[TensorId, Saving]) -> list[Op]:
    """Ops that run again under `saving`."""
    steps = schedule(graph, Recipe(saving=saving, head_tile=1), _ops(graph, layer), _given(graph, layer))
    return [step.op for step in steps if isinstance(step, Run) and step.recompute]


def _input_ops(graph: Graph, layer: Layer) -> tuple[Op, ...]:
    """The embedding, where it makes the layer's input: it may run again."""
    producer = graph.producer[layer.input]
    return (producer,) if producer.kind == "embed" else ()


def _ops(graph: Graph, layer: Layer) -> tuple[Op, ...]:
    return (*_input_ops(graph, layer), *layer.forward, *layer.backward)


def _given(graph: Graph, layer: Layer) -> frozenset[TensorId]:
    """What is there before the layer's own ops run: its input, unless it makes that itself, and the stream's gradient."""
    own = {tensor for op in _input_ops(graph, layer) for tensor in op.writes.values()}
    return frozenset({TensorId(STREAM_GRADIENT), layer.input} - own)


def make_option(
    graph: Graph,
    cost: CostModel,
    layer: Layer,
    saving: Mapping[TensorId, Saving],
    *,
    hold: frozenset[WeightId] = frozenset(),
    tile: int,
    lead_ns: int | None = None,
) -> Option:
    """Read off a layer's schedule what a way of saving takes;
    with `lead_ns` (see flash.first_wait_ns) its first loads are waited for.
    """
    unpacking = dict.fromkeys(cost.ahead, Unpacking.AHEAD) | dict.fromkeys(hold, Unpacking.HOLD)
    recipe = Recipe(saving=saving, unpacking=unpacking, head_tile=tile)
    forward, backward = layer_steps(graph, recipe, layer)
    wait_ns = first_wait_ns(backward, cost, lead_ns) if lead_ns is not None else 0
    steps = hoist_loads([*forward, *backward], cost, tile, turn := len(forward))
    steps = hoist_unpacking(steps[:turn], cost, tile) + hoist_unpacking(steps[turn:], cost, tile)
    profile = live_profile(steps, graph, recipe, beside=bool(cost.device.runtime.unpack_beside))
    again = [step.op for step in steps if isinstance(step, Run) and step.recompute]
    tensors: Mapping[TensorId, Tensor] = graph.tensors
    kept = sum(align(tensors[t].nbytes) for t, choice in saving.items() if choice is Saving.KEEP)
    stored = sum(tensors[t].nbytes for t, choice in saving.items() if choice is Saving.STORE)
    given = 0 if _input_ops(graph, layer) else align(tensors[layer.input].nbytes)
    gradient = align(tensors[TensorId(STREAM_GRADIENT)].nbytes)
    return Option(
        saving=saving,
        hold=hold,
        again=frozenset(w for op in again for w in op.weights if op.kind == "linear") - hold,
        input_bytes=align(tensors[layer.input].nbytes),
        kept_bytes=kept,
        stored_bytes=stored,
        store_ns=min(FOREVER_NS, sum(cost.store_ns(tensors[t].nbytes) for t in saving if saving[t] is Saving.STORE)),
        load_ns=min(FOREVER_NS, sum(cost.load_ns(tensors[t].nbytes) for t in saving if saving[t] is Saving.STORE)),
        recompute_ns=sum(_again_ns(cost, op, hold) for op in again),
        wait_ns=wait_ns,
        forward_peak=given + max(profile[:turn], default=0),
        backward_peak=given + gradient + max(profile[turn:], default=0),
    )


def layer_steps(graph: Graph, recipe: Recipe, layer: Layer) -> tuple[list[Step], list[Step]]:
    """A layer's steps up to the turn from forward to backward, and from there."""
    steps = schedule(graph, recipe, _ops(graph, layer), _given(graph, layer))
    first = sum(isinstance(step, Run) and not step.recompute and not step.op.backward for step in steps)
    turn, seen = 0, 0
    while seen < first or isinstance(steps[turn], Stored):
        step = steps[turn]
        seen += isinstance(step, Run)
        turn += 1
    return steps[:turn], steps[turn:]


def _again_ns(cost: CostModel, op: Op, hold: frozenset[WeightId]) -> int:
    """A second run; where its weight is held, the unpacking it needs is the one that backward saves."""
    return cost.op_ns(op, streamed=bool(op.weights) and op.weights[0] not in hold)


def undominated(options: list[Option], unpack_ns: Mapping[WeightId, int] | None = None) -> list[Option]:
    """Options that no other equals or betters in bytes kept and stored, in peak, and in time whatever is resident."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.recompute_ns, o.kept_bytes, o.stored_bytes, o.peak)):
        if not any(_covers(other, option, unpack_ns or {}) for other in kept):
            kept.append(option)
    return kept


def _covers(other: Option, option: Option, unpack_ns: Mapping[WeightId, int]) -> bool:
    """Residence can save `option` the unpacking of what it reads again; `other` must be as fast even then."""
    saved = sum(unpack_ns[weight] for weight in option.again - other.again)
    faster = other.recompute_ns + saved <= option.recompute_ns and other.wait_ns <= option.wait_ns
    return faster and all(a <= b for a, b in zip(other.sizes, option.sizes, strict=True))
