"""Shapes of ops and weights, and how much longer a machine takes for each than its rates say.

A profile's rates are one for each part of a step; `Device.shapes` says how many times as long an op of one kind and shape takes,
measured. A shape that it does not name takes the factor between those of the nearest that differ in their tokens alone; without
one an op takes what the rates say, a tile of the head's logits a launch, and a weight that is streamed the average of those that
were measured, or, where none was, what an Unpack takes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from math import log

from mebp.models.graph import Graph
from mebp.models.kind.table import KINDS
from mebp.models.op import Dims, Op, Rate, flat
from mebp.models.tensor import FLOAT_BYTES, Weight
from mebp.models.tile import reads_in_place
from mebp.models.workload import Workload
from mebp.sim.device import SHAPE_FACTOR, SHAPES, WORKSPACE, Device

UNPACK, STREAMED, HEAD_TILE, NO_DX = "unpack", "streamed", "head-tile", "no-dx"
EXTENTS_OF_TOKENS = {"rows", "batch", "seq", "first", "pairs", "tokens"}
MEASURED = {*KINDS, UNPACK, STREAMED, HEAD_TILE}


class Factors:
    """Measured factors by shape. Of those that differ in their tokens alone, a shape that was not measured takes the factor between
    the next shorter and the next longer one, linear in the logarithm of tokens, or that of the nearest where one is missing.
    """

    def __init__(self, shapes: Mapping[str, float]) -> None:
        self._shapes = shapes
        self._alike: dict[tuple[str, ...], list[tuple[int, float]]] = {}
        for shape, factor in shapes.items():
            others, tokens = _without_tokens(shape)
            if tokens:
                self._alike.setdefault(others, []).append((tokens, factor))

    def get(self, shape: str) -> float | None:
        """The factor, None where nothing like it was measured."""
        if shape in self._shapes or not self._alike:
            return self._shapes.get(shape)
        others, tokens = _without_tokens(shape)
        alike = self._alike.get(others, []) if tokens else []
        below = max((point for point in alike if point[0] <= tokens), default=None)
        above = min((point for point in alike if point[0] >= tokens), default=None)
        if below is None or above is None or below[0] == above[0]:
            nearest = below or above
            return nearest and nearest[1]
        part = log(tokens / below[0]) / log(above[0] / below[0])
        return below[1] + part * (above[1] - below[1])

    def know(self, shape: str) -> bool:
        """Whether the shape was measured, or one of fewer tokens and one of more."""
        others, tokens = _without_tokens(shape)
        sizes = [size for size, _ in self._alike.get(others, [])]
        between = tokens not in sizes and bool(sizes) and min(sizes) < tokens < max(sizes)
        return shape in self._shapes or between


def _without_tokens(shape: str) -> tuple[tuple[str, ...], int]:
    """The words of a shape but those that say how many tokens there are, and that number (0: it has none); of attention twice the
    keys that a query sees on average, which is about the length of a whole sequence.
    """
    words, extents = [], {}
    for word in shape.split():
        name, _, value = word.partition("=")
        if name not in EXTENTS_OF_TOKENS or (word.startswith("rows=") and shape.startswith((UNPACK, STREAMED))):
            words.append(word)
        else:
            extents[name] = int(value)
    tokens = extents.get("rows", extents.get("tokens", 0))
    return tuple(words), 2 * extents["pairs"] // extents["seq"] if extents.get("pairs") and extents.get("seq") else tokens


def shape_of(op: Op, tile: int = 0) -> str:
    """Kind, what becomes of dL/dx, extents. The head has one name for any vocabulary, and another where `tile` holds all of it."""
    dims, words = op.dims, [op.kind.name]
    if op.kind.makes_loss:
        words += ["whole"] if tile >= dims.outs else []
        dims = replace(dims, outs=0)
    elif op.kind.may_add_dx and "dx" in op.updates:
        words.append("adding")
    elif op.kind.may_add_dx and not op.makes_dx:
        words.append(NO_DX)
    return " ".join([*words, *_extents(dims)])


def head_tile_of(op: Op) -> str:
    """Key of the overhead per tile of the head's logits, measured in passes over its fp32 sums (rows, cols)."""
    return " ".join([HEAD_TILE, *_extents(replace(op.dims, outs=0))])


def unpacked_shape(weight: Weight) -> str:
    """A weight that is decompressed by itself."""
    return f"{UNPACK} rows={weight.rows} cols={weight.cols} {weight.format.name}"


def streamed_shape(workload: Workload, weight: Weight) -> str:
    """A weight that is decompressed within products of a workload's tokens and precision."""
    return f"{streamed_average(workload)} tokens={workload.chunk_tokens} rows={weight.rows} cols={weight.cols} {weight.format.name}"


def streamed_average(workload: Workload) -> str:
    """The average over the weights that were measured last in this precision: what any other weight takes."""
    return f"{STREAMED} itemsize={workload.itemsize}"


def is_fused(within: float, whole: float) -> bool:
    """Whether streaming a weight takes so much less than unpacking it whole that a kernel must do it within the product."""
    return 2 * within <= whole


def _extents(dims: Dims) -> Iterable[str]:
    return (f"{field.name}={value}" for field in fields(dims) if (value := getattr(dims, field.name)))


def knows(device: Device, graph: Graph) -> bool:
    """Whether the profile was measured at the shapes of a graph's products and of the weights that they unpack, or at fewer tokens
    and at more.
    """
    factors = Factors(device.shapes)
    products = [op for _, op in flat(graph.ops) if op.kind.is_linear or op.kind.is_attention]
    weights = (graph.weights[weight] for op in products for weight in op.weights)
    unpacked = (weight for weight in weights if not reads_in_place(weight.format, graph.workload.itemsize))
    needed = {shape_of(op) for op in products}
    needed |= {shape for weight in unpacked for shape in (unpacked_shape(weight), streamed_shape(graph.workload, weight))}
    return all(map(factors.know, needed))


def remember(device: Device, before: Device) -> Device:
    """A profile just measured, with the shapes that only the one `before` knew: what they take stays, while the rates move, and
    what libraries keep for them.

    That holds for an op that is bound by the same rate as before; one that is now bound by memory, and was not, comes out slow.
    """
    others = {shape: factor for shape, factor in before.shapes.items() if shape not in device.shapes and _kind(shape) in MEASURED}
    low, high = SHAPE_FACTOR
    kept = {shape: min(high, max(low, factor * _rate(shape, device) / _rate(shape, before))) for shape, factor in others.items()}
    spaces = {
        shape: nbytes for shape, nbytes in before.workspace.items() if shape not in device.workspace and _kind(shape) in KINDS
    }
    origins = {key: before.sources[key] for key in (*(f"{SHAPES}.{s}" for s in kept), *(f"{WORKSPACE}.{s}" for s in spaces))}
    return replace(
        device,
        shapes={**kept, **device.shapes},
        workspace={**spaces, **device.workspace},
        sources={**device.sources, **origins},
    )


def _kind(shape: str) -> str:
    return shape.partition(" ")[0]


def _rate(shape: str, device: Device) -> float:
    """The rate that a shape's time goes with."""
    kind = _kind(shape)
    if kind in (UNPACK, STREAMED):
        return device.runtime.unpack_rate
    if kind not in KINDS or NO_DX in shape:  # a tile of logits, or a backward whose products are those of the adapters alone
        return device.rate(Rate.MEMORY)
    return device.rate(KINDS[kind].rate, FLOAT_BYTES if shape.endswith(f"itemsize={FLOAT_BYTES}") else 2)
