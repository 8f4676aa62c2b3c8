"""Why a plan is what it is: what lies in the arena at its peak, and what becomes of each kind of activation, with what that
saves.
"""

from dataclasses import dataclass

from mebp.models.graph import Graph
from mebp.models.tensor import TensorId, align
from mebp.plan import Compute, Free, Load, Plan, Store, Unpack
from mebp.planner.recipe.recipe import backward_reads
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction

LAYER_INPUT = "layer input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Activations of one name over all layers: how many are kept, stored and recomputed, the bytes of one, ns to recompute it."""

    name: str
    nbytes: int
    kept: int
    stored: int
    recomputed: int
    recompute_ns: int

    @property
    def ns_per_byte(self) -> float:
        """Recomputation that a byte kept saves, its own op alone."""
        return self.recompute_ns / self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTensors:
    """Tensors of one name that are live at the peak: how many, and their bytes together."""

    name: str
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A plan in numbers, to compare with another's: forward ops run and recomputed, tensors stored and loaded, weights
    decompressed, uses of weights streamed and read unpacked, and weights unpacked whole.
    """

    forward: int
    recomputed: int
    stored: int
    loaded: int
    unpacked_weights: int
    streamed_uses: int
    unpacked_uses: int
    unpacks: int


def fates(plan: Plan, graph: Graph, device: Device) -> list[Fate]:
    """What becomes of every activation that backward reads, by name, most expensive to recompute per byte first."""
    cost = CostModel(graph, device)
    recomputed = {i.op for i in plan.instructions if isinstance(i, Compute) and i.recompute}
    stored = {i.tensor for i in plan.instructions if isinstance(i, Store)}
    alike: dict[tuple[str, int], list[TensorId]] = {}
    for tensor in sorted(backward_reads(graph)):
        alike.setdefault((family(graph, tensor), graph.tensors[tensor].nbytes), []).append(tensor)
    found: list[Fate] = []
    for (name, nbytes), tensors in alike.items():
        producer = graph.producer[tensors[-1]]
        num_stored = sum(tensor in stored for tensor in tensors)
        num_recomputed = sum(tensor not in stored and graph.producer[tensor].id in recomputed for tensor in tensors)
        found.append(
            Fate(
                name=name,
                nbytes=align(nbytes),
                kept=len(tensors) - num_stored - num_recomputed,
                stored=num_stored,
                recomputed=num_recomputed,
                recompute_ns=cost.op_ns(producer, streamed=producer.weights),
            )
        )
    return sorted(found, key=lambda fate: -fate.ns_per_byte)


def live_at_peak(graph: Graph, prediction: Prediction) -> list[LiveTensors]:
    """What is live in the arena at the peak, by name, largest first."""
    found: dict[str, tuple[int, int]] = {}
    for tensor, nbytes in prediction.peak_tensors.items():
        name = family(graph, tensor) if tensor in graph.tensors else str(tensor)
        count, total = found.get(name, (0, 0))
        found[name] = (count + 1, total + nbytes)
    live = (LiveTensors(name=name, count=count, nbytes=nbytes) for name, (count, nbytes) in found.items())
    return sorted(live, key=lambda tensors: (-tensors.nbytes, tensors.name))


def family(graph: Graph, tensor: TensorId) -> str:
    """A tensor's name within its layer; what lies on the residual stream between layers is called a layer's input."""
    return LAYER_INPUT if tensor in graph.stream else graph.tensors[tensor].name


def kept_bytes(plan: Plan, graph: Graph) -> int:
    """Bytes of activations that lie in the arena when the head runs, from forward to backward."""
    live: dict[TensorId, int] = {}
    for instruction in plan.instructions:
        match instruction:
            case Compute():
                if graph.op[instruction.op].kind.makes_loss:
                    return sum(live.values())
                live |= {place.tensor: place.nbytes for place in instruction.writes}
            case Free():
                live.pop(instruction.tensor, None)
            case _:
                pass  # unpacked weights, and transfers of what lies there
    return 0


def counts(plan: Plan, graph: Graph, prediction: Prediction) -> Counts:
    """The numbers of a plan."""
    computes = [i for i in plan.instructions if isinstance(i, Compute)]
    streamed_uses = sum(len(i.streamed) for i in computes)
    return Counts(
        forward=sum(not op.backward for op in graph.ops),
        recomputed=sum(i.recompute for i in computes),
        stored=len({i.tensor for i in plan.instructions if isinstance(i, Store)}),
        loaded=sum(isinstance(i, Load) for i in plan.instructions),
        unpacked_weights=prediction.unpacked_weights,
        streamed_uses=streamed_uses,
        unpacked_uses=sum(len(graph.op[i.op].weights) for i in computes) - streamed_uses,
        unpacks=sum(isinstance(i, Unpack) for i in plan.instructions),
    )
