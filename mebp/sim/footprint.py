"""What a device counts as footprint in addition to the arena, by name, and what a budget leaves for the arena."""

from collections.abc import Sequence

from mebp.models.graph import Graph
from mebp.models.kind.table import distinct_products
from mebp.models.op import Op
from mebp.models.tensor import FLOAT_BYTES
from mebp.sim.device import Device
from mebp.sim.published import published_bytes
from mebp.sim.shape import shape_of
from mebp.unit import require_budget

PER_GRAPH = ("rope tables", "token ids")  # that each graph has of its own; the rest they share


def outside_bytes(graph: Graph, device: Device) -> dict[str, int]:
    """Bytes of the footprint outside the arena, by name: the runtime's own, and what the graph needs for the whole run."""
    return session_bytes((graph,), device)


def session_bytes(graphs: Sequence[Graph], device: Device) -> dict[str, int]:
    """The same for a process that runs steps of several graphs in turn, which train the same adapters in one arena."""
    runtime = device.runtime
    ops = [op for graph in graphs for op in graph.ops]
    found = {
        "runtime baseline": int(runtime.footprint_bytes),
        "library workspace": library_bytes(ops, device),
        "plan and graph": int(runtime.op_bytes * len(ops)),
    }
    for graph in graphs:
        for name, nbytes in graph.outside_bytes.items():
            found[name] = found.get(name, 0) + nbytes if name in PER_GRAPH else max(found.get(name, 0), nbytes)
    return found


def library_bytes(ops: Sequence[Op], device: Device) -> int:
    """What the libraries of products keep for the shapes that they have met: as measured, else so much for each kernel."""
    per_kernel = {2: device.runtime.kernel_bytes, FLOAT_BYTES: device.runtime.kernel_bytes_fp32}
    products = distinct_products(ops)
    return sum(int(device.workspace.get(shape_of(op), op.kind.kernels(op) * per_kernel[op.dims.itemsize])) for op in products)


def outside_arena(graph: Graph, device: Device) -> int:
    """Bytes of the footprint that no plan can change."""
    return sum(outside_bytes(graph, device).values())


def footprint_bytes(arena_bytes: int, graph: Graph, device: Device) -> int:
    """The footprint of a plan with an arena of so many bytes: its own, or what the published implementation of it was measured to
    take, where that is more.
    """
    return max(arena_bytes + outside_arena(graph, device), published_bytes(graph, device))


def arena_budget(graph: Graph, device: Device, budget_bytes: int) -> int:
    """Bytes that an arena may have under a footprint of `budget_bytes` (negative where nothing fits)."""
    require_budget(budget_bytes)
    return budget_bytes - outside_arena(graph, device)
