"""The menu of one layer: which sets of its activations are worth saving, and what each costs.

An exact CP-SAT model per distinct layer: minimise recomputation under a cap on saved bytes, lower the cap below what was used,
and again (epsilon-constraint), so that every set on the trade-off curve of bytes against time is found. Each set is then offered
kept, stored, or split between layer input and rest, and with weights shared by recomputation and backward or streamed twice; where
the layer runs in chunks also with more and more weights unpacked whole, which each chunk would else stream. What each way needs of
memory is read off the schedule of that layer.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile

from ortools.sat.python import cp_model

from mebp.models.graph import Graph, Layer
from mebp.models.op import Op
from mebp.models.tensor import TensorId, align
from mebp.planner.effort import no_limit
from mebp.planner.layer.option import Option, input_ops, make_option, pass_ns, recomputed_ops, undominated
from mebp.planner.recipe.recipe import Saving
from mebp.sim.cost import CostModel


def layer_shape(graph: Graph, cost: CostModel, layer: Layer) -> tuple[object, ...]:
    """What decides a layer's menu up to names: layers that agree here are alike."""
    ops = (
        (op.kind.name, tuple(op.writes), _op_ns(cost, op), graph.scratch(op, streamed=op.weights, tile=0).nbytes)
        for op in layer.ops
    )
    return (layer.number == 0, *ops)


def menu_options(
    graph: Graph, cost: CostModel, layer: Layer, require_time: Callable[[], None] = no_limit, *, last: bool = False
) -> list[Option]:
    """Every undominated option of `layer`; the `last` one has no layer above it during whose backward its first load could run."""
    lead_ns = _lead_ns(graph, cost) if last else None
    backward_weights = {weight for op in layer.backward for weight in op.weights}
    wholes = whole_sets(graph, cost, layer)
    found: list[Option] = []
    for saved in saved_sets(graph, cost, layer):
        require_time()
        for saving in _savings(saved, layer):
            recomputed = {weight for op in recomputed_ops(graph, layer, saving) for weight in op.weights}
            shareable = {w for w in (recomputed & backward_weights) - cost.ahead if not cost.streams_within(graph.weights[w])}
            shares = {frozenset[str](), frozenset(graph.weights[weight].role for weight in shareable)}
            found += [make_option(graph, cost, layer, saving, shared=shared, lead_ns=lead_ns) for shared in sorted(shares, key=len)]
            found += [make_option(graph, cost, layer, saving, whole=whole, lead_ns=lead_ns) for whole in wholes]
    return undominated(found, pass_ns(graph, cost, layer))


def whole_sets(graph: Graph, cost: CostModel, layer: Layer) -> list[frozenset[str]]:
    """Weights, by role, to unpack whole where a layer runs in chunks: those of its first op, then the smallest of the others too,
    the two smallest and so on.
    """
    if not graph.workload.chunk:
        return []
    first, *others = ([graph.weights[weight] for weight in op.weights] for op in layer.forward if op.kind.is_of_layers)
    later = sorted((weight for weights in others for weight in weights), key=lambda weight: weight.count)
    roles = [weight.role for weight in (*first, *later) if weight.id not in cost.ahead and not cost.streams_within(weight)]
    return [frozenset(roles[:count]) for count in range(len(first), len(roles) + 1)]


def _lead_ns(graph: Graph, cost: CostModel) -> int:
    """What runs between the head and the last layer's backward."""
    behind = graph.ops[graph.ops.index(graph.head) + 1 :]
    return sum(_op_ns(cost, op) for op in takewhile(lambda op: op.layer is None, behind))


def saved_sets(graph: Graph, cost: CostModel, layer: Layer) -> list[frozenset[TensorId]]:
    """Sets of saved activations on the curve of bytes against recomputation: with all weights streamed, and with none (resident and
    shared weights may make that the cheaper way).
    """
    sets = [found for streamed in (True, False) for found in _saved_sets(graph, cost, layer, streamed=streamed)]
    return list(dict.fromkeys(sets))


def _saved_sets(graph: Graph, cost: CostModel, layer: Layer, *, streamed: bool) -> list[frozenset[TensorId]]:
    producers = _producers(graph, layer)
    needed = {tensor for op in layer.backward for tensor in op.touched} & set(producers)
    sizes = {tensor: align(graph.tensors[tensor].nbytes) for tensor in producers}
    model = cp_model.CpModel()
    saved = {tensor: model.new_bool_var(f"saved {tensor}") for tensor in producers}
    recomputed = {op.id: model.new_bool_var(f"recomputed {op.id}") for op in producers.values()}
    ops = {op.id: op for op in producers.values()}.values()
    for tensor in needed:
        model.add_bool_or(saved[tensor], recomputed[producers[tensor].id])
    for op in ops:
        for tensor in op.reads.values():
            if tensor in producers:
                model.add_bool_or(recomputed[op.id].negated(), saved[tensor], recomputed[producers[tensor].id])
    if not input_ops(graph, layer):
        model.add(recomputed[producers[layer.input].id] == 0)
    time = sum(cost.op_ns(op, streamed=op.weights if streamed else ()) * recomputed[op.id] for op in ops)
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
    solver.parameters.catch_sigint_signal = False  # CP-SAT would replace Python's handler
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


def _op_ns(cost: CostModel, op: Op) -> int:
    return cost.op_ns(op, streamed=op.weights)


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
