"""Segments: layers in a row of which only the lowest one's input is saved; the inputs above it are recomputed in backward.

What a segment saves of each layer, inputs apart, is one option of the single layer's menu. In backward the layers below the top one
are recomputed for their outputs, the inputs; what else they make on the way is dropped and recomputed once more at their own turn
(TRANSIENT), or stays until then. Segments are offered where flash cannot take every layer's input: where it can, storing an input
costs nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mebp.models.graph import Graph, Layer
from mebp.models.tensor import TensorId
from mebp.planner.effort import no_limit
from mebp.planner.layer.option import Option, make_option, relabel, undominated
from mebp.planner.recipe.recipe import Saving
from mebp.sim.cost import CostModel

LENGTHS = (2, 3, 4, 6, 8, 12, 16)
BASES = 10  # options of a single layer that segments are made of


def segments(
    graph: Graph,
    cost: CostModel,
    alike: Sequence[Layer],
    options: Sequence[Option],
    whole_sets: Sequence[frozenset[str]] = (),
    require_time: Callable[[], None] = no_limit,
) -> list[Option]:
    """Undominated segments of `alike` layers, written for the first of them; none where there are fewer than two. Each is offered
    streaming all weights, and with each of `whole_sets` unpacked whole.
    """
    bases = _bases(alike[0], options)
    wholes = [frozenset[str](), *whole_sets]
    found: list[Option] = []
    for length in (length for length in LENGTHS if length <= len(alike)):
        require_time()
        unit = joined(alike[:length])
        savings = [saving for base in bases for saving in _savings(base, alike[:length])]
        options_of_length = [make_option(graph, cost, unit, saving, whole=whole) for saving in savings for whole in wholes]
        found += undominated([replace(option, layers=length, read_again=frozenset()) for option in options_of_length])
    return found


def joined(layers: Sequence[Layer]) -> Layer:
    """Layers in a row as one: their forward upwards, their backward downwards. It has no weights by role: each role occurs
    often.
    """
    return Layer(
        number=layers[0].number,
        input=layers[0].input,
        forward=tuple(op for layer in layers for op in layer.forward),
        backward=tuple(op for layer in reversed(layers) for op in layer.backward),
        weights={},
    )


def _bases(source: Layer, options: Iterable[Option]) -> list[Option]:
    """Options that save their input and stream their weights: those that keep least first, each less recomputation than the
    last.
    """
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.kept_bytes + o.stored_bytes, o.kept_bytes, o.peak)):
        saved = option.saving.get(source.input, Saving.RECOMPUTE)
        fresh = not found or option.recompute_ns < found[-1].recompute_ns
        if saved is Saving.KEEP and not (option.shared or option.whole or option.stored_bytes) and fresh:
            found.append(option)
    return found[:BASES]


def _savings(base: Option, layers: Sequence[Layer]) -> Iterable[dict[TensorId, Saving]]:
    """The base's decisions for every layer, only the lowest input saved; then the same with what is not saved dropped in
    between.
    """
    kept: dict[TensorId, Saving] = {}
    for layer in layers:
        kept |= relabel(base.saving, layers[:1], [layer])
    for layer in layers[1:]:
        del kept[layer.input]
    yield kept
    inner = {tensor for layer in layers[:-1] for op in layer.forward[:-1] for tensor in op.writes.values()}
    yield kept | dict.fromkeys(sorted(inner - set(kept)), Saving.TRANSIENT)
