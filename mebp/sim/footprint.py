"""What a device counts as footprint in addition to the arena, by name, and what a budget leaves for the arena."""

from mebp.models.graph import Graph
from mebp.models.kind.table import num_kernels
from mebp.sim.device import Device


def outside_bytes(graph: Graph, device: Device) -> dict[str, int]:
    """Bytes of the footprint outside the arena, by name: the runtime's own, and what the graph needs for the whole run."""
    runtime = device.runtime
    return {
        "runtime baseline": int(runtime.footprint_bytes),
        "library workspace": int(runtime.kernel_bytes) * num_kernels(graph.ops),
        "plan and graph": int(runtime.op_bytes * len(graph.ops)),
        **graph.outside_bytes,
    }


def outside_arena(graph: Graph, device: Device) -> int:
    """Bytes of the footprint that no plan can change."""
    return sum(outside_bytes(graph, device).values())


def arena_budget(graph: Graph, device: Device, budget_bytes: int) -> int:
    """Bytes that an arena may have under a footprint of `budget_bytes` (negative where nothing fits)."""
    return budget_bytes - outside_arena(graph, device)
