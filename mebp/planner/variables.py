"""The decision variables of the placement model, with queries that read as words.

Layers of one class are alike, so what is decided is how many of them take each option, and of how many each weight is resident.
Within a class, layers take options in a fixed order: those that need most workspace beyond what they keep come first. Swapping
two neighbours out of that order never lowers the higher of their two memory rows, so nothing is lost by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from mebp.models.graph import Graph, TensorId, WeightId
from mebp.models.kind import align, reads_in_place
from mebp.planner.menu import Layer, Option
from mebp.sim.cost import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerClass:
    """Layers that are alike, lowest first, and the menu written for the first of them, in the order in which it is taken."""

    layers: tuple[Layer, ...]
    options: tuple[Option, ...]


def layer_class(layers: Sequence[Layer], options: Sequence[Option]) -> LayerClass:
    """Sort a menu into the order in which layers take it."""
    ordered = sorted(options, key=lambda option: (option.kept_bytes - option.peak, option.kept_bytes))
    return LayerClass(layers=tuple(layers), options=tuple(ordered))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdable:
    """Alike weights that may be resident: unpacked bytes, time of one unpacking and uses of each, in how many layers."""

    linear: str
    weights: tuple[WeightId, ...]
    nbytes: int
    unpack_ns: int
    uses: int


class Variables:
    """How many layers of each class take each option, and how many of its weights are resident."""

    def __init__(self, model: cp_model.CpModel, graph: Graph, cost: CostModel, classes: Sequence[LayerClass]) -> None:
        self.classes = classes
        self.count = [
            [model.new_int_var(0, len(c.layers), f"class {i} option {m}") for m in range(len(c.options))]
            for i, c in enumerate(classes)
        ]
        self.used = [
            [model.new_bool_var(f"class {i} uses option {m}") for m in range(len(c.options))] for i, c in enumerate(classes)
        ]
        self.holdable = [_layer_holdables(graph, cost, c) for c in classes]
        self.resident = [[_up_to(model, item, "resident") for item in items] for items in self.holdable]
        self.resident_again = [[_up_to(model, item, "resident, read again") for item in items] for items in self.holdable]
        self.head = _head_holdable(graph, cost)
        self.head_resident = model.new_int_var(0, 1 if self.head else 0, "head resident")
        self.kept_up_to = [self._running_sums(model, number) for number in range(len(classes))]
        self.resident_bytes = self._resident_bytes(model)

    def total(self, number: int, amount: str) -> cp_model.LinearExprT:
        """The sum of `amount` (a field of Option) over the layers of a class."""
        pairs = zip(self.classes[number].options, self.count[number], strict=True)
        return sum(getattr(option, amount) * count for option, count in pairs)

    def kept(self, number: int) -> cp_model.LinearExprT:
        """Bytes kept by all layers of a class."""
        return self.kept_up_to[number][-1]

    def read_again(self, number: int, linear: str) -> cp_model.LinearExprT:
        """Layers of a class whose option reads `linear` once more than forward and backward do."""
        pairs = zip(self.classes[number].options, self.count[number], strict=True)
        return sum(count for option, count in pairs if any(linear_of(read) == linear for read in option.again))

    def _running_sums(self, model: cp_model.CpModel, number: int) -> list[cp_model.IntVar]:
        """Bytes kept by the layers with the first option, the first two, ...: one variable each keeps every rule short."""
        most = max(option.kept_bytes for option in self.classes[number].options) * len(self.classes[number].layers)
        sums: list[cp_model.IntVar] = []
        for option, count in zip(self.classes[number].options, self.count[number], strict=True):
            total = model.new_int_var(0, most, f"class {number} kept up to option {len(sums)}")
            model.add(total == option.kept_bytes * count + (sums[-1] if sums else 0))
            sums.append(total)
        return sums

    def _resident_bytes(self, model: cp_model.CpModel) -> cp_model.IntVar:
        """Bytes of all resident weights."""
        pairs = [
            (item.nbytes, count)
            for items, counts in zip(self.holdable, self.resident, strict=True)
            for item, count in zip(items, counts, strict=True)
        ]
        pairs += [(self.head.nbytes, self.head_resident)] if self.head else []
        most = sum(item.nbytes * len(item.weights) for items in self.holdable for item in items)
        total = model.new_int_var(0, most + (self.head.nbytes if self.head else 0), "resident bytes")
        model.add(total == sum(nbytes * count for nbytes, count in pairs))
        return total


def linear_of(weight: str) -> str:
    """Which of a layer's linears a weight is: the middle of `layer.linear.weight`."""
    return weight.split(".")[1]


def _up_to(model: cp_model.CpModel, item: Holdable, name: str) -> cp_model.IntVar:
    return model.new_int_var(0, len(item.weights), f"{name} {item.weights[0]}")


def _layer_holdables(graph: Graph, cost: CostModel, layer_class: LayerClass) -> list[Holdable]:
    first = layer_class.layers[0]
    found: list[Holdable] = []
    for op in first.forward:
        for wid in op.weights:
            weight = graph.weights[wid]
            if not reads_in_place(weight.format, graph.workload.itemsize):
                linear = linear_of(wid)
                found.append(
                    Holdable(
                        linear=linear,
                        weights=tuple(WeightId(f"{layer.number}.{linear}.weight") for layer in layer_class.layers),
                        nbytes=align(graph.tensors[TensorId(wid)].nbytes),
                        unpack_ns=cost.unpack_ns(weight),
                        uses=1 + sum(wid in other.weights for other in first.backward),
                    )
                )
    return found


def _head_holdable(graph: Graph, cost: CostModel) -> Holdable | None:
    head = next(op for op in graph.ops if op.kind == "head")
    weight = graph.weights[head.weights[0]]
    if reads_in_place(weight.format, graph.workload.itemsize):
        return None
    nbytes = align(graph.tensors[TensorId(weight.id)].nbytes)
    return Holdable(linear="head", weights=(weight.id,), nbytes=nbytes, unpack_ns=cost.unpack_ns(weight), uses=1)
