"""Shapes of ops and weights, and what a machine needs for each beside what its rates say.

A profile's rates are one for each part of a step; `Device.shapes` says how many times as long an op of one kind and shape takes,
measured. A shape that it does not name takes what the rates say.
"""

from collections.abc import Iterable
from dataclasses import fields, replace

from mebp.models.format import WeightFormat
from mebp.models.graph import Dims, Graph, Op
from mebp.models.kind import KINDS, Part
from mebp.sim.device import SHAPE_FACTOR, Device

UNPACK, HEAD_TILE = "unpack", "head-tile"


def shape_of(op: Op, tile: int = 0) -> str:
    """Kind, what becomes of dL/dx, extents. The head has one name for any vocabulary, and another where `tile` holds all of it."""
    dims, words = op.dims, [op.kind]
    if op.kind == "head":
        words += ["whole"] if tile >= dims.outs else []
        dims = replace(dims, outs=0)
    elif "dx" in op.updates:
        words.append("adding")
    elif op.backward and "dx" not in op.writes:
        words.append("no-dx")
    return " ".join([*words, *_extents(dims)])


def head_tile_of(op: Op) -> str:
    """What a tile of the head's logits takes beside its products, whatever its size."""
    return " ".join([HEAD_TILE, *_extents(replace(op.dims, outs=0))])


def unpacked_shape(rows: int, cols: int, fmt: WeightFormat) -> str:
    """A weight that is decompressed."""
    return f"{UNPACK} rows={rows} cols={cols} {fmt.name}"


def _extents(dims: Dims) -> Iterable[str]:
    return (f"{field.name}={value}" for field in fields(dims) if (value := getattr(dims, field.name)))


def knows(device: Device, graph: Graph) -> bool:
    """Whether the profile was measured at the shapes of a graph's products."""
    return all(shape_of(op) in device.shapes for op in graph.ops if op.kind in ("linear", "linear_backward"))


def remember(device: Device, before: Device) -> Device:
    """A profile measured anew, with the shapes that only the one `before` knew: what they take stays, while the rates move."""
    kept = {shape: factor * _faster(shape, device, before) for shape, factor in before.shapes.items() if shape not in device.shapes}
    low, high = SHAPE_FACTOR
    kept = {shape: min(high, max(low, factor)) for shape, factor in kept.items()}
    origins = {f"shapes.{shape}": before.sources[f"shapes.{shape}"] for shape in kept}
    return replace(device, shapes={**kept, **device.shapes}, sources={**device.sources, **origins})


def _faster(shape: str, device: Device, before: Device) -> float:
    """How many times the rate behind a shape is what it was."""
    kind = shape.partition(" ")[0]
    now, then = (_rate(kind, one) for one in (device, before))
    return now / then


def _rate(kind: str, device: Device) -> float:
    runtime, flops = device.runtime, device.hardware.product_flops
    if kind == UNPACK:
        return runtime.unpack_rate
    if kind == HEAD_TILE:
        return 1 / runtime.launch_seconds if runtime.launch_seconds else 1.0
    if kind == "linear_backward":
        return flops * runtime.backward_fraction
    rates = {Part.PRODUCTS: runtime.product_fraction, Part.ATTENTION: runtime.attention_fraction, Part.HEAD: runtime.head_fraction}
    part = KINDS[kind].part
    return flops * rates[part] if part in rates else device.hardware.memory_bandwidth * runtime.bandwidth_fraction
