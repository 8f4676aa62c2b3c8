"""networkx views of a graph, for analysis: dominators, live sets, the critical path. The Graph itself stays plain data."""

from collections.abc import Callable

import networkx as nx

from mebp.models.graph import Graph
from mebp.models.op import Op, OpId
from mebp.models.tensor import TensorId


def dataflow(graph: Graph) -> nx.DiGraph:
    """Ops as nodes (attribute `op`), an edge from each op to those that need its result, in-place updates kept in order."""
    view = nx.DiGraph()
    last_writer: dict[str, OpId] = {}
    for op in graph.ops:
        view.add_node(op.id, op=op)
        for tensor in op.touched:
            view.add_edge(last_writer[tensor], op.id, tensor=tensor)
        last_writer |= dict.fromkeys((*op.writes.values(), *op.updates.values()), op.id)
    return view


def dominators(graph: Graph) -> list[OpId]:
    """Forward ops that every path from the embedding to the loss goes through, in order: the natural places for a checkpoint."""
    view = dataflow(graph)
    parents = nx.immediate_dominators(view, graph.ops[0].id)
    chain = [graph.head.id]
    while parents.get(chain[-1]) not in (None, chain[-1]):
        chain.append(parents[chain[-1]])
    return chain[::-1]


def live_after(graph: Graph, after: OpId) -> set[TensorId]:
    """Tensors written up to and including op `after` that some later op reads: what any plan must keep, store or recompute
    there.
    """
    position = {op.id: at for at, op in enumerate(graph.ops)}
    cut = position[after]
    written = {tensor for op in graph.ops[: cut + 1] for tensor in (*op.writes.values(), *op.updates.values())}
    return {tensor for op in graph.ops[cut + 1 :] for tensor in op.touched if tensor in written}


def critical_path(graph: Graph, duration: Callable[[Op], int]) -> tuple[int, list[OpId]]:
    """The longest chain of dependent ops and its length, each op taking `duration(op)`: no number of engines can be faster."""
    view = dataflow(graph)
    best: dict[OpId, tuple[int, OpId | None]] = {}
    for op in graph.ops:
        before = max(((best[other][0], other) for other in view.predecessors(op.id)), default=(0, None))
        best[op.id] = (before[0] + duration(op), before[1])
    path = [max(best, key=lambda op_id: best[op_id][0])]
    while (before_it := best[path[-1]][1]) is not None:
        path.append(before_it)
    return best[path[0]][0], path[::-1]
