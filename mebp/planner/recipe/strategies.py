"""Fixed recipes, each a small function of graph, device and budget. The rows that a solved plan is compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.models.tensor import TensorId, WeightId
from mebp.plan import Plan
from mebp.planner.recipe.greedy import greedy_recipe
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking, backward_reads, head_tile
from mebp.sim.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A named way to a recipe; `exact` is false where the gradient is not the true one. `changes` are those that it makes to what
    is computed.
    """

    name: str
    summary: str
    recipe: Callable[[Graph, Device, int], Recipe]
    exact: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)

    def graph(self, graph: Graph) -> Graph:
        """The graph that the strategy runs: the given one, or another of the same model (for MeZO, two forwards)."""
        return build_graph(graph.config, replace(graph.workload, **self.changes)) if self.changes else graph

    def plan(self, graph: Graph, device: Device, budget_bytes: int) -> Plan:
        """Write the strategy out as a plan for `graph` (as `self.graph` returns it)."""
        recipe = self.recipe(graph, device, budget_bytes)
        return lower(graph, device, recipe, name=self.name, budget_bytes=budget_bytes, exact=self.exact)


def keep_all(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """Keep every activation that backward reads; weights are streamed, the head is one pass."""
    return Recipe(saving=dict.fromkeys(backward_reads(graph), Saving.KEEP), head_tile=head_tile(graph))


def mebp(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """The paper's: every layer's input stored through mmap, whole weights unpacked for each use, full logits; as released, the loss
    is computed once more for a metric.
    """
    return Recipe(
        saving=dict.fromkeys(_inputs(graph), Saving.STORE),
        unpacking=dict.fromkeys(_layer_weights(graph), Unpacking.WHOLE),
        head_tile=graph.head.dims.outs,
    )


def mlx(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """The released MLX code's: every layer's input kept in memory (its default), products on compressed weights, which are read
    into memory of its own layer by layer, full logits.
    """
    return Recipe(saving=_checkpoints(graph, 1), head_tile=graph.head.dims.outs)


def mesp(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """Every layer's input kept in memory, whole weights unpacked for each use, structured backward (h = xA recomputed)."""
    return Recipe(
        saving=_checkpoints(graph, 1),
        unpacking=dict.fromkeys(_layer_weights(graph), Unpacking.WHOLE),
        head_tile=graph.head.dims.outs,
    )


def checkpoint(every: int) -> Callable[[Graph, Device, int], Recipe]:
    """Every `every`-th layer's input kept, the rest recomputed from it; weights streamed, the head one pass."""

    def recipe(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
        return Recipe(saving=_checkpoints(graph, every), head_tile=head_tile(graph))

    return recipe


def sqrt(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """Checkpoint about sqrt(L) layers (Chen et al., 2016)."""
    return checkpoint(max(1, isqrt(len(graph.layers))))(graph, device, budget_bytes)


def mezo(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """Two forwards and no backward (Malladi et al., 2023), as the paper's baseline ran it: whole weights, full logits."""
    return Recipe(unpacking=dict.fromkeys(_layer_weights(graph), Unpacking.WHOLE), head_tile=graph.head.dims.outs)


def evaluate(graph: Graph, device: Device, budget_bytes: int) -> Recipe:
    """A forward for the loss alone: streamed weights, the head one pass, nothing kept."""
    return Recipe(head_tile=head_tile(graph))


def _checkpoints(graph: Graph, every: int) -> dict[TensorId, Saving]:
    """Inputs of every `every`-th layer that has a backward, and the input of the final norm."""
    *inputs, last = _inputs(graph)
    return dict.fromkeys([*inputs[::every], last], Saving.KEEP)


def _inputs(graph: Graph) -> list[TensorId]:
    """Inputs of the layers that have a backward, and the input of the final norm."""
    return [*(layer.input for layer in graph.layers if layer.backward), graph.stream[-1]]


def _layer_weights(graph: Graph) -> list[WeightId]:
    return [weight.id for weight in graph.weights.values() if weight.layer is not None]


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            name="mebp",
            summary="the paper: checkpoints mmapped, whole weights, full logits computed twice",
            recipe=mebp,
            changes={"evaluations": 2},
        ),
        Strategy(
            name="mlx",
            summary="the released code: a layer's compressed weights read at a time, full logits computed twice",
            recipe=mlx,
            changes={"evaluations": 2, "layer_copies": True},
        ),
        Strategy(name="mesp", summary="checkpoints in memory, whole weights, full logits", recipe=mesp),
        Strategy(name="keep-all", summary="every activation kept, streamed weights, one-pass head", recipe=keep_all),
        Strategy(name="sqrt", summary="every sqrt(L)-th layer's input kept, the rest recomputed; streamed weights", recipe=sqrt),
        Strategy(
            name="checkpoint-2",
            summary="every second layer's input kept, the rest recomputed; streamed weights",
            recipe=checkpoint(2),
        ),
        Strategy(
            name="checkpoint-1", summary="every layer's input kept, the rest recomputed; streamed weights", recipe=checkpoint(1)
        ),
        Strategy(name="greedy", summary="most time saved per byte first, under the budget", recipe=greedy_recipe),
        Strategy(
            name="mezo",
            summary="two forwards, no backward: not an exact gradient",
            recipe=mezo,
            exact=False,
            changes={"method": "mezo"},
        ),
    )
}
EVALUATION = Strategy(
    name="evaluate", summary="a forward, for the loss", recipe=evaluate, exact=False, changes={"method": "evaluate"}
)
