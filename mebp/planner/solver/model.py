"""The placement model of a problem: its variables, every rule posted, what is minimised, and the recipe that a solution
stands for.
"""

from collections.abc import Sequence
from itertools import accumulate

from ortools.sat.python import cp_model

from mebp.models.graph import Layer
from mebp.models.tensor import TensorId, WeightId
from mebp.planner.layer.chain import Stretch
from mebp.planner.layer.option import Option, relabel
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking
from mebp.planner.solver.objective import extra_time_ns, written_units
from mebp.planner.solver.problem import Problem
from mebp.planner.solver.rules import rules_of
from mebp.planner.solver.search import Solution
from mebp.planner.solver.variables import Variables

LARGEST_OBJECTIVE = 2**60


class Model:
    """The options in `shortlists` placed over the chain in `room` bytes of arena, or, given a range, in as many as are decided."""

    def __init__(
        self, problem: Problem, shortlists: Sequence[Sequence[int]], room: int | tuple[int, int], *, residence: bool = True
    ) -> None:
        self.problem = problem
        self.cp = cp_model.CpModel()
        self.variables = Variables(self.cp, problem.stretches, shortlists, problem.heads, problem.head_weight)
        self.room = self._room(room)
        for rule in rules_of(self.room, problem.flash_keeps_up, residence=residence):
            rule.post(self.cp, self.variables)
        self._unit, self._scale = _tie_break(problem)

    def minimise_time(self) -> None:
        """Least time first, then least bytes written."""
        variables = self.variables
        self.cp.minimize(extra_time_ns(variables) * self._scale + written_units(variables, self._unit))

    def minimise_room(self) -> None:
        """Least bytes of arena."""
        self.cp.minimize(self.room)

    def step_ns(self, objective: float) -> int:
        """The step time behind a value of the objective."""
        return self.problem.base_ns + int(objective // self._scale)

    def solved_step_ns(self, solution: Solution) -> int:
        """The step time of a solution."""
        return self.problem.base_ns + int(round(solution.solver.objective_value) // self._scale)

    def bound_ns(self, solution: Solution) -> int:
        """A step time that no placement of this model goes below; 0 where none was proven."""
        return 0 if solution.bound == -float("inf") else self.step_ns(solution.bound)

    def values(self, solution: Solution) -> dict[str, int]:
        """Every decision of a solution by name."""
        return {name: solution.solver.value(variable) for name, variable in self.variables.decisions.items()}

    def recipe(self, solution: Solution) -> Recipe:
        """What a solution decides: each layer's option in the layer's own names, resident weights, and the end of the
        stream kept.
        """
        graph, solver = self.problem.graph, solution.solver
        saving: dict[TensorId, Saving] = {graph.stream[-1]: Saving.KEEP}
        unpacking: dict[WeightId, Unpacking] = dict.fromkeys(self.problem.cost.ahead, Unpacking.AHEAD)
        for number, stretch in enumerate(self.variables.stretches):
            counts = [solver.value(count) for count in self.variables.count[number]]
            taken = [option for option, count in zip(self.variables.options[number], counts, strict=True) for _ in range(count)]
            for option, layer in zip(taken, _lowest_layers(stretch, taken), strict=True):
                source, span = stretch.menu.source, option.layers
                sources, targets = (graph.layers[n : n + span] for n in (source.number, layer.number))
                saving |= relabel(option.saving, sources, targets)
                unpacking |= {layer.weights[role]: Unpacking.SHARED for role in option.shared}
                unpacking |= {target.weights[role]: Unpacking.WHOLE for target in targets for role in option.whole}
            for candidate, count in zip(stretch.menu.candidates, self.variables.resident[number], strict=True):
                weights = _most_read(stretch, candidate.role, taken)[: solver.value(count)]
                unpacking |= dict.fromkeys(weights, Unpacking.RESIDENT)
        if self.variables.head_weight and solver.value(self.variables.head_resident):
            unpacking[graph.head.weights[0]] = Unpacking.RESIDENT
        chosen = [solver.boolean_value(tile) for tile in self.variables.head]
        return Recipe(saving=saving, unpacking=unpacking, head_tile=self.variables.heads[chosen.index(True)].tile)

    def _room(self, room: int | tuple[int, int]) -> cp_model.LinearExprT:
        if isinstance(room, int):
            return room
        variable = self.cp.new_int_var(*room, "room")
        self.variables.decisions["room"] = variable
        return variable


def most_room(problem: Problem) -> int:
    """Bytes of arena that no plan exceeds, what is resident apart."""
    layers = sum(max(o.kept_bytes + o.peak for o in s.menu.options) * len(s.layers) for s in problem.stretches)
    return layers + max(head.peak for head in problem.heads)


def _lowest_layers(stretch: Stretch, taken: Sequence[Option]) -> list[Layer]:
    """The lowest layer of each option, in the order in which a stretch's layers take them."""
    starts = accumulate((option.layers for option in taken[:-1]), initial=0)
    return [stretch.layers[at] for at in starts]


def _most_read(stretch: Stretch, role: str, taken: Sequence[Option]) -> list[WeightId]:
    """A stretch's weights of one role, weights of layers that read them again first, of those that take no residents last."""
    by_layer = [option for option in taken for _ in range(option.layers)]
    order = sorted(range(len(by_layer)), key=lambda at: (not by_layer[at].takes_residents, role not in by_layer[at].read_again))
    return [stretch.weight(at, role) for at in order]


def _tie_break(problem: Problem) -> tuple[int, int]:
    """(bytes of a unit written, how many such units a nanosecond outweighs): time first, then writes, in 62 bits."""
    smallest = min((o.stored_bytes for s in problem.stretches for o in s.menu.options if o.stored_bytes), default=1)
    unit = max(smallest, problem.cap_bytes * problem.base_ns // LARGEST_OBJECTIVE)
    return unit, problem.cap_bytes // unit + len(problem.graph.layers) + 1
