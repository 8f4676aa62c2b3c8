"""What a budget leaves for the arena."""

from mebp.models.graph import Graph
from mebp.sim.device import Device
from mebp.sim.simulate import outside_bytes


def outside_arena(graph: Graph, device: Device) -> int:
    """Bytes of the footprint that no plan can change."""
    return sum(outside_bytes(graph, device).values())


def arena_budget(graph: Graph, device: Device, budget_bytes: int) -> int:
    """Bytes that an arena may have under a footprint of `budget_bytes` (negative where nothing fits)."""
    return budget_bytes - outside_arena(graph, device)
