"""The decoder as a chain of stretches: consecutive layers that are alike share one menu of options, and one list of weights.

A stretch is what placement decides about: how many of its layers take each option. Within it, layers take options in a fixed
order: those that need most workspace beyond what they keep come first. Swapping two neighbours out of that order never lowers
the higher of their two memory rows, so nothing is lost by it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from mebp.models.graph import Graph, Layer
from mebp.models.op import Part
from mebp.models.tensor import TensorId, Weight, WeightId, align
from mebp.planner.layer.menu import layer_shape, menu_options, whole_sets
from mebp.planner.layer.option import Option, pass_ns
from mebp.planner.layer.segment import segments
from mebp.sim.cost import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A weight that may be resident: its unpacked bytes, the time that each pass over all tokens saves by it, passes per step
    (recomputation apart), and how often a pass streams it.
    """

    role: str
    nbytes: int
    streaming_ns: int
    uses: int
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """Options written for layer `source`, in the order in which layers take them, and its weights that may be resident. `number`
    tells the menus of a chain apart.
    """

    number: int
    source: Layer
    options: tuple[Option, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Consecutive layers with one menu."""

    layers: tuple[Layer, ...]
    menu: Menu

    def weight(self, at: int, role: str) -> WeightId:
        """The weight that has `role` in the stretch's layer number `at`."""
        return self.layers[at].weights[role]


def stretches(graph: Graph, cost: CostModel, require_time: Callable[[], None], *, segmented: bool) -> tuple[Stretch, ...]:
    """Split a graph into stretches, the last layer one of its own; layers that are alike share a menu wherever they stand. Where
    `segmented` it offers segments too. `require_time` is called now and then, and raises where there is no time to go on.
    """
    *below, last = graph.layers
    shapes = {layer.number: layer_shape(graph, cost, layer) for layer in below}
    groups = [tuple(group) for _, group in groupby(below, key=lambda layer: shapes[layer.number])]
    menus: dict[tuple[object, ...], Menu] = {}
    for alike in sorted(groups, key=len, reverse=True):  # a menu is written for the longest stretch: it has the longest segments
        source = alike[0]
        shape = shapes[source.number]
        if shape not in menus:
            options = menu_options(graph, cost, source, require_time)
            wholes = whole_sets(graph, cost, source)
            options += segments(graph, cost, alike, options, wholes, require_time) if segmented else []
            menus[shape] = make_menu(len(menus), source, options, layer_candidates(graph, cost, source))
    options = menu_options(graph, cost, last, require_time, last=True)
    at_the_head = make_menu(len(menus), last, options, layer_candidates(graph, cost, last))
    found = [Stretch(layers=alike, menu=menus[shapes[alike[0].number]]) for alike in groups]
    return (*found, Stretch(layers=(last,), menu=at_the_head))


def make_menu(number: int, source: Layer, options: Sequence[Option], candidates: Sequence[Candidate] = ()) -> Menu:
    """Sort options into the order in which layers take them."""
    ordered = sorted(options, key=lambda option: (option.kept_bytes - option.peak, option.kept_bytes))
    return Menu(number=number, source=source, options=tuple(ordered), candidates=tuple(candidates))


def layer_candidates(graph: Graph, cost: CostModel, layer: Layer) -> list[Candidate]:
    """The weights of a layer that residence would save time for."""
    found: list[Candidate] = []
    for role, streaming_ns in pass_ns(graph, cost, layer).items():
        weight = graph.weights[layer.weights[role]]
        forward, backward = (sum(op.uses(weight.id) for op in ops) for ops in (layer.forward, layer.backward))
        found += [_candidate(graph, weight, streaming_ns, 1 + backward // forward, forward)] if streaming_ns else []
    return found


def head_candidate(graph: Graph, cost: CostModel) -> Candidate | None:
    """The head's weight, where residence would save time for it."""
    weight = graph.weights[graph.head.weights[0]]
    chunks = graph.head.uses(weight.id)
    streaming_ns = chunks * cost.streaming_parts(weight)[Part.UNPACK]
    return _candidate(graph, weight, streaming_ns, 1, chunks) if streaming_ns else None


def _candidate(graph: Graph, weight: Weight, streaming_ns: int, uses: int, chunks: int) -> Candidate:
    nbytes = align(graph.tensors[TensorId(weight.id)].nbytes)
    return Candidate(role=weight.role, nbytes=nbytes, streaming_ns=streaming_ns, uses=uses, chunks=chunks)
