"""Every exception that the project raises on purpose.

    MebpError                    one clear line for a person; the command exits with `exit_code`
    ├── InputError               a value from outside is wrong (2)
    │   ├── GraphError           a graph file is no graph, has a cycle, or a node without cost
    │   ├── ModelError           a model config is unknown, incomplete or absurd
    │   ├── ProfileError         a device profile has a missing, negative or misspelt entry
    │   └── StoreError           a file of weights or activations cannot be used: missing, cut off, of another model
    ├── InvalidPlan              a plan breaks a rule of the plan language (2)
    ├── InvalidPacking           two buffers that live together overlap (2)
    ├── InfeasibleBudget         no plan fits; carries the least budget found (1)
    ├── NoPlanInTime             the solver met its limit without any plan (3)
    ├── NotFinite            a loss or a gradient is nan or infinite; the step was abandoned (2)
    ├── Disagreement             measured differs from predicted beyond tolerance (4)
    └── Interrupted              Ctrl-C cut a search short, or a signal stopped a training run (130, 143, 129)

A text names the value, the bound and the remedy. Settings stand in backticks by their Python names (`seq_len`, `budget`); the
command spells them as its flags.
"""


class MebpError(Exception):
    """Base of every error that a user of the library may want to catch."""

    exit_code = 2


class InputError(MebpError):
    """A value that came from outside is wrong."""


class GraphError(InputError):
    """A graph file is no graph, has a cycle, or a node without cost."""


class ModelError(InputError):
    """A model config is unknown, incomplete or absurd."""


class ProfileError(InputError):
    """A device profile has a missing, negative or misspelt entry."""


class StoreError(InputError):
    """A file of weights or of spilled activations cannot be used: missing, cut off, of another model, or not writable."""


class InvalidPlan(MebpError):
    """A plan breaks `rule` at instruction number `index` (None: the plan as a whole)."""

    def __init__(self, rule: str, index: int | None, message: str) -> None:
        where = "the plan" if index is None else f"instruction {index}"
        super().__init__(f"invalid plan: {where} breaks the rule '{rule}': {message}")
        self.rule = rule
        self.index = index


class InvalidPacking(MebpError):
    """A packing gives bytes to two buffers at once, or lies outside its arena."""

    def __init__(self, message: str) -> None:
        super().__init__(f"invalid packing: {message}: a bug to report")


class InfeasibleBudget(MebpError):
    """No plan fits `budget_bytes`; none of less than `least_bytes` is known, or possible."""

    exit_code = 1

    def __init__(self, message: str, budget_bytes: int, least_bytes: int) -> None:
        super().__init__(message)
        self.budget_bytes = budget_bytes
        self.least_bytes = least_bytes


class NoPlanInTime(MebpError):
    """The solver met its limit without any plan."""

    exit_code = 3


class NotFinite(MebpError):
    """A loss or a gradient is nan or infinite; the step was abandoned."""


class Disagreement(MebpError):
    """A measurement lies beyond tolerance of its prediction, or a limit was overstepped."""

    exit_code = 4


class Interrupted(MebpError):
    """Ctrl-C cut a search short, and what it had found is given; or a signal stopped a training run, which is saved."""

    exit_code = 130
