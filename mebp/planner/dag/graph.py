"""A graph of ops, each with a cost and a result size, read from node-link JSON as networkx writes it.

Memory while a node runs: its inputs and its own result. A result stays until its last use before it is recomputed; nothing is
pinned.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log10
from pathlib import Path
from typing import Any

import networkx as nx

from mebp.errors import GraphError
from mebp.text import read_text, shortened

COST_FIELDS = ("cost_cpu", "cost", "time")
SIZE_FIELDS = ("cost_ram", "memory", "size")
LARGEST = 2**50
SMALLEST_COST = 1e-30  # what is not 0 and less is noise
SHOWN_NODES = 6  # of a cycle
DIGITS = 10  # of the sum of costs, where they are counted in small parts


@dataclass(frozen=True, kw_only=True)
class Dag:
    """Nodes 0..n-1 in topological order: the file's own id, cost of one run, bytes of the result, and the nodes whose results each
    reads. Costs are whole numbers of `unit`, in the file's unit of cost. `as_given` where the file had this order.
    """

    ids: tuple[int | str, ...]
    costs: tuple[int, ...]
    sizes: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    unit: float = 1.0
    as_given: bool = True

    @property
    def num_nodes(self) -> int:
        return len(self.costs)

    @property
    def total_cost(self) -> int:
        """Cost of running every node once: no plan costs less."""
        return sum(self.costs)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For every node those that read its result."""
        found: list[list[int]] = [[] for _ in self.costs]
        for node, reads in enumerate(self.inputs):
            for other in reads:
                found[other].append(node)
        return tuple(tuple(nodes) for nodes in found)

    @property
    def least_budget(self) -> int:
        """The largest working set of any one node: nothing runs in less."""
        return max(self.sizes[v] + sum(self.sizes[u] for u in self.inputs[v]) for v in range(self.num_nodes))

    def reordered(self, order: Sequence[int]) -> "Dag":
        """The same graph with its nodes in another topological order."""
        position = {node: at for at, node in enumerate(order)}
        return Dag(
            ids=tuple(self.ids[v] for v in order),
            costs=tuple(self.costs[v] for v in order),
            sizes=tuple(self.sizes[v] for v in order),
            inputs=tuple(tuple(sorted(position[u] for u in self.inputs[v])) for v in order),
            unit=self.unit,
        )

    def shown(self, node: int) -> str:
        """A node's id, escaped where a line of text cannot show it."""
        return shortened(str(self.ids[node]))

    def in_file_units(self, cost: int) -> int | float:
        """A cost as the file counts it."""
        return cost if self.unit == 1.0 else float(f"{cost * self.unit:.{DIGITS}g}")


def read_dag(path: Path, *, fine: bool = False) -> Dag:
    """Read node-link JSON; GraphError in one line for text that is none, a cycle, a missing or negative cost.

    With `fine` costs are counted in small parts, as they are wherever the file's are no whole numbers.
    """
    try:
        raw = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"cannot read graph {path}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{path} is not JSON: {error}") from None
    return parse_dag(raw, str(path), fine=fine)


def parse_dag(raw: Any, source: str, *, fine: bool = False) -> Dag:
    """Turn node-link data into a Dag; `source` names it in errors."""
    graph = _directed(raw, source)
    if not graph:
        raise GraphError(f"{source} has no nodes: a graph needs at least one")
    if not nx.is_directed_acyclic_graph(graph):
        nodes = [edge[0] for edge in nx.find_cycle(graph)]
        rest = f" -> {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
        cycle = " -> ".join(shortened(str(node)) for node in nodes[:SHOWN_NODES]) + rest
        raise GraphError(f"{source} has a cycle ({cycle}): a training step is acyclic")
    given = {node: at for at, node in enumerate(graph)}
    ordered = all(given[u] < given[v] for u, v in graph.edges)
    order = list(graph) if ordered else list(nx.lexicographical_topological_sort(graph, key=lambda node: given[node]))
    position = {node: at for at, node in enumerate(order)}
    costs = [_number(graph.nodes[node], COST_FIELDS, node, source) for node in order]
    unit = 1.0 if all(cost == int(cost) for cost in costs) and not fine else _small_unit(costs)
    return Dag(
        ids=tuple(order),
        costs=tuple(round(cost / unit) for cost in costs),
        sizes=tuple(_whole(graph.nodes[node], SIZE_FIELDS, node, source) for node in order),
        unit=unit,
        as_given=ordered,
        inputs=tuple(tuple(sorted(position[u] for u in graph.predecessors(node))) for node in order),
    )


def _directed(raw: Any, source: str) -> nx.DiGraph:
    if not isinstance(raw, dict) or not isinstance(raw.get("nodes"), list):
        raise GraphError(f"{source} is not a graph in node-link form: expected an object with nodes and links")
    if raw.get("directed", True) is not True:
        raise GraphError(f"{source} has directed = {shortened(repr(raw['directed']))}: a training step is a directed graph")
    lists = [raw[name] for name in ("links", "edges") if name in raw]
    if not lists or not all(isinstance(edges, list) for edges in lists):
        raise GraphError(f"{source} has neither links nor edges: expected node-link JSON as networkx writes it")
    if all(lists) and len(lists) > 1:
        raise GraphError(f"{source} has both links and edges: expected one of the two")
    edges = [edge for found in lists for edge in found]
    graph = nx.DiGraph()
    for node in raw["nodes"]:
        if not isinstance(node, dict) or not isinstance(node.get("id"), int | str) or node["id"] in graph:
            raise GraphError(
                f"{source}: node {shortened(repr(node))} must be an object with an id, text or whole number, that no other has"
            )
        graph.add_node(node["id"], **{key: value for key, value in node.items() if isinstance(key, str) and key != "id"})
    for edge in edges:
        ends = (edge.get("source"), edge.get("target")) if isinstance(edge, dict) else (None, None)
        if any(not isinstance(end, int | str) or end not in graph for end in ends):
            raise GraphError(f"{source}: link {shortened(repr(edge))} must name a source and a target among the nodes")
        graph.add_edge(*ends)
    return graph


def _small_unit(costs: Sequence[float]) -> float:
    """A power of ten that all costs together are DIGITS digits of: decimals that a profiler writes stay exact."""
    total = sum(costs)
    return 10.0 ** (ceil(log10(total)) - DIGITS) if total else 1.0


def _whole(fields: Mapping[str, Any], names: Sequence[str], node: Any, source: str) -> int:
    value = _number(fields, names, node, source)
    if value != int(value):
        name = next(name for name in names if name in fields)
        raise GraphError(f"{source}: node {shortened(repr(node))} has {name} = {value!r}: must be whole bytes: round it up")
    return int(value)


def _number(fields: Mapping[str, Any], names: Sequence[str], node: Any, source: str) -> float:
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise GraphError(f"{source}: node {shortened(repr(node))} has no {names[0]} (or {' or '.join(names[1:])})")
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        where = f"{source}: node {shortened(repr(node))} has {name}"
        raise GraphError(f"{where} = {shortened(repr(value))}: must be a number from 0 to {LARGEST}")
    if 0 < value < SMALLEST_COST:
        where = f"{source}: node {shortened(repr(node))} has {name}"
        raise GraphError(f"{where} = {value!r}: must be 0, or {SMALLEST_COST:g} at least: take a larger unit")
    return value
