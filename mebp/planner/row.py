"""A row of the trade-off table: a plan, checked and simulated."""

from dataclasses import dataclass, replace

from mebp.check import check
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.recipe.strategies import Strategy
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction, simulate
from mebp.sim.uncertainty import peak_margin
from mebp.unit import show_nbytes, show_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan, checked and simulated. It `fits` where its peak and its writes stay within budget and cap; `surely` where its peak
    does at the upper end of its range too, `margin_bytes` above.
    """

    plan: Plan
    graph: Graph
    prediction: Prediction
    margin_bytes: int
    within_cap: bool

    def __repr__(self) -> str:
        peak, step = show_nbytes(self.prediction.peak_bytes), show_ns(self.prediction.step_ns)
        return f"<Row {self.name}: {peak}, {step} per step, {'fits' if self.fits else 'does not fit'}>"

    @property
    def fits(self) -> bool:
        return self.prediction.peak_bytes <= self.plan.budget_bytes and self.within_cap

    @property
    def surely(self) -> bool:
        return self.fits and self.prediction.peak_bytes + self.margin_bytes <= self.plan.budget_bytes

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the step per second."""
        return self.graph.workload.tokens / self.prediction.step_ns * 1e9

    @property
    def status(self) -> str | None:
        """`optimal` where the simulated step meets the solver's bound, else `feasible`; None for fixed strategies."""
        return None if self.gap is None else "optimal" if self.gap == 0 else "feasible"

    @property
    def proven(self) -> bool:
        """Whether the solver's bounds hold for this time: it is the one that they were proven for."""
        solver = self.plan.solver
        return solver is not None and solver.objective_ns == self.prediction.step_ns

    @property
    def gap(self) -> float | None:
        """How far the simulated step can be above the optimum of the solver's class; None where nothing is proven."""
        solver = self.plan.solver
        return 1 - solver.bound_ns / self.prediction.step_ns if solver and self.proven else None

    @property
    def whole_gap(self) -> float | None:
        """How far the simulated step is above a bound on every plan of the language; None where nothing is proven."""
        solver = self.plan.solver
        return 1 - solver.whole_bound_ns / self.prediction.step_ns if solver and self.proven else None


def strategy_row(strategy: Strategy, graph: Graph, device: Device, budget_bytes: int) -> Row:
    """Plan, check and simulate one fixed strategy, for the budget less the margin by which predictions may be too low."""
    own = strategy.graph(graph)
    plan = strategy.plan(own, device, max(0, budget_bytes - peak_margin(own, device)))
    return row_of(replace(plan, budget_bytes=budget_bytes), own, device)


def row_of(plan: Plan, graph: Graph, device: Device) -> Row:
    """Check and simulate a plan."""
    check(plan, graph)
    prediction = simulate(plan, graph, device)
    within_cap = prediction.flash_written_bytes <= device.runtime.flash_write_cap_bytes
    margin = peak_margin(graph, device)
    return Row(plan=plan, graph=graph, prediction=prediction, margin_bytes=margin, within_cap=within_cap)
