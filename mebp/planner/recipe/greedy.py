"""The greedy recipe: from checkpoint-1 upwards, take whatever saves most time per byte while the budget lasts.

Items are activations (kept instead of recomputed: saves their op) and weights (resident: saves streaming at each use). This is what
a solver has to beat, so it is a row of every table.
"""

from dataclasses import dataclass

from mebp.models.graph import Graph
from mebp.models.op import Op
from mebp.models.tensor import TensorId, WeightId, align
from mebp.planner.recipe.lower import live_profile
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking, backward_reads, head_tile
from mebp.planner.recipe.schedule import schedule
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.footprint import arena_budget

PACKING_SLACK = 0.98  # part of the budget that live bytes may take, so that gaps between tensors still fit
USES = 3  # a layer's weight is read in forward, recomputation and backward


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    gain: float
    activation: TensorId | None = None
    weight: WeightId | None = None


def greedy_recipe(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """Take the longest prefix of items, best first, whose live bytes stay within the budget."""
    room = int(arena_budget(graph, device, budget_bytes) * PACKING_SLACK)
    items = sorted(_items(graph, device), key=lambda item: -item.gain)
    low, high = 0, len(items)
    while low < high:
        middle = (low + high + 1) // 2
        if _live_peak(graph, _recipe(graph, items[:middle])) <= room:
            low = middle
        else:
            high = middle - 1
    return _recipe(graph, items[:low])


def _items(graph: Graph, device: Device) -> list[_Item]:
    cost = CostModel(graph, device)
    saved = set(graph.stream)
    found = [
        _Item(gain=cost.op_ns(op, streamed=op.weights) / _kept_bytes(graph, op), activation=tensor)
        for op in _recomputable(graph)
        for tensor in op.writes.values()
        if tensor not in saved
    ]
    for wid, weight in graph.weights.items():
        tensor = graph.tensors[TensorId(wid)]
        if cost.streaming_ns(weight):
            uses = USES if tensor.layer is not None else 1
            found.append(_Item(gain=uses * cost.streaming_ns(weight) / tensor.nbytes, weight=wid))
    return found


def _recomputable(graph: Graph) -> list[Op]:
    reads = backward_reads(graph)
    return [op for op in graph.ops if not op.backward and reads & set(op.writes.values())]


def _kept_bytes(graph: Graph, op: Op) -> int:
    return sum(align(graph.tensors[tensor].nbytes) for tensor in op.writes.values())


def _recipe(graph: Graph, items: list[_Item]) -> Recipe:
    saving = dict.fromkeys(graph.stream, Saving.KEEP)
    saving |= {item.activation: Saving.KEEP for item in items if item.activation}
    unpacking = {item.weight: Unpacking.RESIDENT for item in items if item.weight}
    return Recipe(saving=saving, unpacking=unpacking, head_tile=head_tile(graph))


def _live_peak(graph: Graph, recipe: Recipe) -> int:
    """Live bytes of a recipe at their highest; resident weights come on top of whatever the steps make."""
    resident = [weight for weight, choice in recipe.unpacking.items() if choice is Unpacking.RESIDENT]
    sizes = sum(align(graph.tensors[TensorId(weight)].nbytes) for weight in resident)
    return sizes + max(live_profile(schedule(graph, recipe), graph))
