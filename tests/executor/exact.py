"""Plans executed against transformers + PEFT with autograd, on the same decompressed weights: what tests of the executor share."""

import pytest
from torch import Tensor

from mebp.executor.executor import Executor
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.effort import Effort
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.footprint import outside_arena
from mebp.sim.profile import load_device, override
from tests.executor.families import Trial
from tests.plans import leanest, posed, solved

DEVICE = load_device("iphone15promax")
EXACT = [name for name, strategy in STRATEGIES.items() if strategy.exact]
DRY = override(DEVICE, ["runtime.flash_write_cap_bytes=0"])  # nowhere to store: the least plan makes layer inputs again
PLANS = [*EXACT, "solved", "least", "least-dry"]
UNLIKE = ("qwen2", "gemma3", "gemma2", "phi3", "olmo2")  # families that differ most: biases, windows, caps, rotation, norms
TOLERANCE = 1e-5


def plan_named(name: str, graph: Graph) -> Plan:
    """A fixed strategy's plan, or a solved one under a budget between the least and keep-all."""
    if name in STRATEGIES:
        return STRATEGIES[name].plan(graph, DEVICE, DEVICE.default_budget_bytes)
    problem = posed(graph, DRY if name == "least-dry" else DEVICE)
    least = leanest(problem, Effort())
    if name in ("least", "least-dry"):
        return least
    return solved(problem, outside_arena(graph, DEVICE) + least.arena_bytes * 5 // 4, Effort())


def run_once(plan: Plan, given: Trial, labels: Tensor | None = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and every adapter gradient of one executed step; the arena must be used to the byte."""
    gradients: dict[str, Tensor] = {}
    executor = Executor(plan, given.graph, given.store, given.fresh_adapters())
    result = executor.step(given.ids, labels, on_gradient=lambda name, gradient: gradients.update({name: gradient.clone()}))
    assert executor.arena.used_bytes == plan.arena_bytes
    return result.loss, gradients


def worst_error(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest relative error of any gradient, in the 2-norm."""
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def require_exact(given: Trial, plans: list[str], labels: Tensor | None = None, mask: Tensor | None = None) -> None:
    """Every plan's loss and gradients equal those of transformers + PEFT."""
    loss, expected = given.expected(labels, mask=mask)
    for name in plans:
        ours, gradients = run_once(plan_named(name, given.graph), given, labels)
        assert ours == pytest.approx(loss, rel=TOLERANCE), name
        assert worst_error(gradients, expected) <= TOLERANCE, name
