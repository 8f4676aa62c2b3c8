"""The exact model: retention intervals (MOCCASIN, Bartan et al., 2023) in CP-SAT, with paging as a second way to bring a result
back.

Node v has up to `copies` intervals [start, end): a run at `start`, its result in memory up to `end`. With the order of first runs
fixed, time is cut into stages: stage j ends with the first run of node j, before it any earlier node i may be recomputed, at slot
j (j + 1) / 2 + i. With the order free, a run may stand at any of copies x n slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from ortools.sat.python import cp_model

from mebp.planner.dag.graph import Dag
from mebp.planner.dag.order import Flash, Run

UNITS = 1 << 20  # sizes are rounded to so many parts of the budget where their common divisor is too small


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One interval of a node: where it starts and ends, whether it is there, and whether it is a load."""

    start: cp_model.IntVar
    end: cp_model.IntVar
    present: cp_model.IntVar
    loaded: cp_model.IntVar


class Model:
    """The intervals of a graph under a budget, with queries to hint them and to read an order back.

    `rounded` where sizes had to be rounded up: then an order found is one, but neither bound nor infeasibility proves anything.
    """

    def __init__(self, dag: Dag, budget: int, *, copies: int, fixed_order: bool, flash: Flash | None) -> None:
        self.dag = dag
        self.flash = flash
        self.fixed_order = fixed_order
        self.model = cp_model.CpModel()
        n = dag.num_nodes
        self.horizon = n * (n + 1) // 2 if fixed_order else copies * n
        self.copies = [[self._copy(v, c) for c in range(copies if dag.sizes[v] else 1)] for v in range(n)]
        self.stored = [self.model.new_bool_var(f"stored {v}") for v in range(n)] if flash else []
        self._memory(budget)
        for v in range(n):
            self._succession(v)
            for copy in self.copies[v]:
                for u in dag.inputs[v]:
                    self._reads(u, copy)
        if not fixed_order:
            self._apart()
        self.model.minimize(self._cost())

    def slot(self, stage: int, node: int) -> int:
        """The slot of `node` in a stage, under a fixed order."""
        return stage * (stage + 1) // 2 + node

    def _copy(self, v: int, c: int) -> Copy:
        model, n = self.model, self.dag.num_nodes
        present = model.new_bool_var(f"present {v}.{c}")
        loaded = model.new_bool_var(f"loaded {v}.{c}")
        if c == 0:
            model.add(present == 1)
        if c == 0 or self.flash is None:
            model.add(loaded == 0)
        if not self.fixed_order:
            start = model.new_int_var(0, self.horizon - 1, f"start {v}.{c}")
        elif c == 0:
            start = model.new_constant(self.slot(v, v))
        else:
            slots = [self.slot(stage, v) for stage in range(v + 1, n)] or [self.slot(v, v)]
            start = model.new_int_var_from_domain(cp_model.Domain.from_values(slots), f"start {v}.{c}")
            if v == n - 1:
                model.add(present == 0)
        return Copy(start=start, end=model.new_int_var(1, self.horizon, f"end {v}.{c}"), present=present, loaded=loaded)

    def _memory(self, budget: int) -> None:
        sizes = self.dag.sizes
        unit = max(1, gcd(*sizes))
        self.rounded = budget // unit > UNITS * 1024
        if self.rounded:
            unit = max(1, budget // UNITS)
        intervals, demands = [], []
        for v, copies in enumerate(self.copies):
            for copy in copies:
                length = self.model.new_int_var(1, self.horizon, "")
                intervals.append(self.model.new_optional_interval_var(copy.start, length, copy.end, copy.present, ""))
                demands.append(-(-sizes[v] // unit))
        self.model.add_cumulative(intervals, demands, budget // unit)

    def _succession(self, v: int) -> None:
        """Copies follow each other, and a later one is there only after an earlier one; loads need their store."""
        for before, after in zip(self.copies[v], self.copies[v][1:], strict=False):
            self.model.add_implication(after.present, before.present)
            self.model.add(before.end <= after.start).only_enforce_if(after.present)
            self.model.add_implication(after.loaded, after.present)
            if self.flash:
                self.model.add_implication(after.loaded, self.stored[v])

    def _reads(self, u: int, reader: Copy) -> None:
        """Some copy of u is in memory while `reader` runs."""
        present = []
        for copy in self.copies[u]:
            live = self.model.new_bool_var("")
            self.model.add_implication(live, copy.present)
            self.model.add(copy.start + 1 <= reader.start).only_enforce_if(live)
            self.model.add(copy.end >= reader.start + 1).only_enforce_if(live)
            present.append(live)
        self.model.add_bool_or([*present, reader.present.negated(), reader.loaded])

    def _apart(self) -> None:
        """Each slot has one run."""
        everything = [
            self.model.new_optional_interval_var(copy.start, 1, copy.start + 1, copy.present, "")
            for copies in self.copies
            for copy in copies
        ]
        self.model.add_no_overlap(everything)

    def _cost(self) -> cp_model.LinearExprT:
        costs, sizes = self.dag.costs, self.dag.sizes
        terms: list[cp_model.LinearExprT] = []
        for v, copies in enumerate(self.copies):
            for copy in copies[1:]:
                terms.append(costs[v] * copy.present)
                if self.flash:
                    terms.append((self.flash.cost(sizes[v]) - costs[v]) * copy.loaded)
            if self.flash:
                terms.append(self.flash.cost(sizes[v]) * self.stored[v])
        return self.dag.total_cost + sum(terms)

    def hint(self, runs: Sequence[Run]) -> None:
        """Start from an order; runs of a node beyond the copies that it may have are left out."""
        seen = [0] * self.dag.num_nodes
        stage = 0
        for at, run in enumerate(runs):
            v, c = run.node, seen[run.node]
            seen[v] += 1
            if c < len(self.copies[v]):
                copy = self.copies[v][c]
                start = self.slot(stage, v) if self.fixed_order else at
                self.model.add_hint(copy.present, 1)
                self.model.add_hint(copy.loaded, int(run.loaded))
                if c or not self.fixed_order:
                    self.model.add_hint(copy.start, start)
            stage += c == 0
        for v, copies in enumerate(self.copies):
            for copy in copies[seen[v] :]:
                self.model.add_hint(copy.present, 0)

    def runs(self, value: "cp_model.CpSolver") -> list[Run]:
        """The order that a solver found."""
        found = [
            (value.value(copy.start), v, bool(value.boolean_value(copy.loaded)))
            for v, copies in enumerate(self.copies)
            for copy in copies
            if value.boolean_value(copy.present)
        ]
        return [Run(node=v, loaded=loaded) for _, v, loaded in sorted(found)]
