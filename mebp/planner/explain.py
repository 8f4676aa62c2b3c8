"""Why a plan is what it is: what lies in the arena at its peak, and what becomes of each kind of activation, with what that
saves.
"""

from dataclasses import dataclass

from mebp.models.graph import Graph, TensorId
from mebp.models.kind import align
from mebp.plan import Compute, Free, Plan, Store
from mebp.planner.recipe import backward_reads
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Activations of one name over all layers: how many are kept, stored and made again, bytes of one, ns that making it takes."""

    name: str
    nbytes: int
    kept: int
    stored: int
    remade: int
    remake_ns: int

    @property
    def ns_per_byte(self) -> float:
        """Recomputation that a byte kept saves, its own op alone."""
        return self.remake_ns / self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Tensors of one name that are live at the peak: how many, and their bytes together."""

    name: str
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A plan in three numbers, to put beside another's: forward ops run again, tensors stored, weights decompressed."""

    run_again: int
    stored: int
    unpacked_weights: int


def fates(plan: Plan, graph: Graph, device: Device) -> list[Fate]:
    """What becomes of every activation that backward reads, by name, dearest to make again (per byte) first."""
    cost = CostModel(graph, device)
    again = {i.op for i in plan.instructions if isinstance(i, Compute) and i.recompute}
    stored = {i.tensor for i in plan.instructions if isinstance(i, Store)}
    alike: dict[tuple[str, int], list[TensorId]] = {}
    for tensor in sorted(backward_reads(graph)):
        alike.setdefault((family(graph, tensor), graph.tensors[tensor].nbytes), []).append(tensor)
    found: list[Fate] = []
    for (name, nbytes), tensors in alike.items():
        producer = graph.producer[tensors[-1]]
        written = sum(tensor in stored for tensor in tensors)
        remade = sum(tensor not in stored and graph.producer[tensor].id in again for tensor in tensors)
        found.append(
            Fate(
                name=name,
                nbytes=align(nbytes),
                kept=len(tensors) - written - remade,
                stored=written,
                remade=remade,
                remake_ns=cost.op_ns(producer, streamed=bool(producer.weights)),
            )
        )
    return sorted(found, key=lambda fate: -fate.ns_per_byte)


def held_at_peak(graph: Graph, prediction: Prediction) -> list[Held]:
    """What is live in the arena at the peak, by name, largest first."""
    found: dict[str, tuple[int, int]] = {}
    for tensor, nbytes in prediction.peak_tensors.items():
        name = family(graph, tensor) if tensor in graph.tensors else str(tensor)
        count, total = found.get(name, (0, 0))
        found[name] = (count + 1, total + nbytes)
    return sorted(
        (Held(name=name, count=c, nbytes=n) for name, (c, n) in found.items()), key=lambda held: (-held.nbytes, held.name)
    )


def family(graph: Graph, tensor: TensorId) -> str:
    """A tensor's name without its layer's number; layer inputs, the ends of the layers below, are called that."""
    if graph.tensors[tensor].layer is None:
        return "layer input" if tensor == "embed.out" else str(tensor)
    name = tensor.partition(".")[2]
    return "layer input" if name == "residual2.out" else name


def kept_bytes(plan: Plan, graph: Graph) -> int:
    """Bytes of activations that lie in the arena when the head runs, from forward to backward."""
    live: dict[TensorId, int] = {}
    for instruction in plan.instructions:
        match instruction:
            case Compute():
                if graph.op[instruction.op].kind == "head":
                    return sum(live.values())
                live |= {place.tensor: place.nbytes for place in instruction.writes}
            case Free():
                live.pop(instruction.tensor, None)
            case _:
                pass  # unpacked weights, and transfers of what lies there
    return 0


def counts(plan: Plan, prediction: Prediction) -> Counts:
    """The three numbers of a plan."""
    return Counts(
        run_again=sum(isinstance(i, Compute) and i.recompute for i in plan.instructions),
        stored=len({i.tensor for i in plan.instructions if isinstance(i, Store)}),
        unpacked_weights=prediction.unpacked_weights,
    )
