"""The decoder as a chain of stretches: consecutive layers that are alike share one menu of options, and one list of weights.

A stretch is what placement decides about: how many of its layers take each option. Within it, layers take options in a fixed
order: those that need most workspace beyond what they keep come first. Swapping two neighbours out of that order never lowers
the higher of their two memory rows, so nothing is lost by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mebp.models.graph import Graph, Op, TensorId, WeightId
from mebp.models.kind import align
from mebp.planner.menu import Layer, Option, layers, menu
from mebp.planner.segment import segments
from mebp.sim.cost import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdable:
    """A weight that may be resident: its unpacked bytes, the time that each use saves by it, and uses a step (recomputation
    apart).
    """

    linear: str
    nbytes: int
    unpacking_ns: int
    uses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """Options written for layer `source`, in the order in which layers take them, and its weights that may be resident."""

    source: Layer
    options: tuple[Option, ...]
    holdables: tuple[Holdable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Consecutive layers with one menu."""

    layers: tuple[Layer, ...]
    menu: Menu

    def weight(self, at: int, linear: str) -> WeightId:
        """The weight of the stretch's layer number `at` that is called `linear`."""
        return WeightId(f"{self.layers[at].number}.{linear}.weight")


def stretches(graph: Graph, cost: CostModel, tile: int, *, segmented: bool) -> tuple[Stretch, ...]:
    """Split a graph into stretches, the last layer one of its own;
    layers that are alike share a menu wherever they stand. Where `segmented` it offers segments too.
    """
    *below, last = layers(graph, cost)
    groups = [tuple(group) for _, group in groupby(below, key=lambda layer: layer.shape)]
    menus: dict[tuple[object, ...], Menu] = {}
    for alike in sorted(groups, key=len, reverse=True):  # a menu is written for the longest stretch: it has the longest segments
        source = alike[0]
        if source.shape not in menus:
            options = menu(graph, cost, source, tile)
            options += segments(graph, cost, alike, options, tile) if segmented else []
            menus[source.shape] = make_menu(source, options, layer_holdables(graph, cost, source))
    at_the_head = make_menu(last, menu(graph, cost, last, tile, last=True), layer_holdables(graph, cost, last))
    return (*(Stretch(layers=alike, menu=menus[alike[0].shape]) for alike in groups), Stretch(layers=(last,), menu=at_the_head))


def make_menu(source: Layer, options: Sequence[Option], holdables: Sequence[Holdable]) -> Menu:
    """Sort options into the order in which layers take them."""
    ordered = sorted(options, key=lambda option: (option.kept_bytes - option.peak, option.kept_bytes))
    return Menu(source=source, options=tuple(ordered), holdables=tuple(holdables))


def linear_of(weight: str) -> str:
    """Which of a layer's linears a weight is: the middle of `layer.linear.weight`."""
    return weight.split(".")[1]


def layer_holdables(graph: Graph, cost: CostModel, layer: Layer) -> list[Holdable]:
    """The weights of a layer that residence would save time for."""
    found: list[Holdable] = []
    for op in layer.forward:
        for wid in op.weights:
            if cost.unpack_ns(graph.weights[wid]):
                found.append(
                    Holdable(
                        linear=linear_of(wid),
                        nbytes=align(graph.tensors[TensorId(wid)].nbytes),
                        unpacking_ns=cost.unpacking_ns(graph.weights[wid]),
                        uses=1 + sum(wid in other.weights for other in layer.backward),
                    )
                )
    return found


def head_holdable(graph: Graph, cost: CostModel) -> Holdable | None:
    """The head's weight, where residence would save time for it."""
    op = head_of(graph)
    weight = graph.weights[op.weights[0]]
    if not cost.unpack_ns(weight) or weight.id in cost.ahead:
        return None
    nbytes = align(graph.tensors[TensorId(weight.id)].nbytes)
    return Holdable(linear="head", nbytes=nbytes, unpacking_ns=cost.unpack_ns(weight), uses=1)


def head_of(graph: Graph) -> Op:
    """The op that makes the loss."""
    return next(op for op in graph.ops if op.kind == "head")
