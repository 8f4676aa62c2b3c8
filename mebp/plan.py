"""The plan language: a plan is a program over one arena, and the only thing that planner, checker, simulator and executor share.

    Compute   run an op (`recompute` marks a second run); a weight is read unpacked, or `streamed` through the op's scratch
    Unpack    decompress a whole weight into the arena
    Store     write a tensor to the spill file
    Load      bring it back
    Free      its bytes may be reused

Execution rule, the same everywhere: each engine runs its instructions in plan order; an instruction starts when (1) the one
before it on its engine has ended, (2) the producers of all that it reads have ended, (3) every earlier instruction that touches
the arena bytes that it writes has ended. The arena is one allocation of `arena_bytes`: its size belongs to the plan, not to timing.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mebp.errors import InputError, InvalidPlan
from mebp.models.config import ModelConfig
from mebp.models.op import OpId
from mebp.models.tensor import TensorId, WeightId
from mebp.models.workload import Workload
from mebp.text import read_text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SCHEMA_VERSION = 6
HOST = "host"  # the name of every machine that was measured by itself: the device's title says which


class Engine(StrEnum):
    """What runs an instruction. Each engine works through its own instructions in plan order."""

    COMPUTE = "compute"
    UNPACK = "unpack"
    STORE = "store"
    LOAD = "load"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`nbytes` of the arena from `offset` on, given to a tensor (or to scratch)."""

    tensor: TensorId
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Run `op`. `writes` are its new tensors; `updates` it changes in place; it reads the weights `streamed` compressed, its others
    unpacked; `tile` is the head's logits per tile, else 0.
    """

    do: Literal["compute"] = "compute"
    op: OpId
    recompute: bool = False
    reads: tuple[TensorId, ...]
    writes: tuple[Place, ...]
    updates: tuple[TensorId, ...] = ()
    scratch: Place | None = None
    streamed: tuple[WeightId, ...] = ()
    tile: int = 0

    @property
    def engine(self) -> Engine:
        return Engine.COMPUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """Decompress the whole of `weight` into `place`; on `engine` compute it shares the processor of the products."""

    do: Literal["unpack"] = "unpack"
    weight: WeightId
    place: Place
    engine: Engine = Engine.COMPUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Write `tensor` to the spill file; it stays in the arena until freed."""

    do: Literal["store"] = "store"
    tensor: TensorId

    @property
    def engine(self) -> Engine:
        return Engine.STORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Read a stored tensor back into `place`."""

    do: Literal["load"] = "load"
    place: Place

    @property
    def engine(self) -> Engine:
        return Engine.LOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """Give the bytes of `tensor` back."""

    do: Literal["free"] = "free"
    tensor: TensorId

    @property
    def engine(self) -> Engine:
        return Engine.NONE


Instruction = Annotated[Compute | Unpack | Store | Load | Free, Field(discriminator="do")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverFacts:
    """What the solver says of a plan; `scope` names the class of plans that `bound_ns` holds for, `whole_scope` the larger one.

    `objective_ns` is the simulated step, `model_ns` the same without waits for flash: what the solver's own model says.
    """

    status: Literal["optimal", "feasible"]
    objective_ns: Annotated[int, Field(ge=0)]
    model_ns: Annotated[int, Field(ge=0)]
    bound_ns: Annotated[int, Field(ge=0)]
    gap: Annotated[float, Field(ge=0, le=1)]
    whole_bound_ns: Annotated[int, Field(ge=0)]
    wall_s: float
    scope: str
    whole_scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training step for one graph (`signature`), made for `device`, with `overrides` of its profile, under `budget_bytes` of
    footprint. `device_title` says which machine the profile is of.

    `resident` tensors are unpacked weights that stay in the arena across steps. `exact` is false where the gradient is not the
    true one (MeZO).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    schema_version: int
    name: str
    exact: bool = True
    signature: str
    device: str
    device_title: str = ""
    overrides: tuple[str, ...] = ()
    budget_bytes: Annotated[int, Field(ge=0)]
    config: ModelConfig
    workload: Workload
    arena_bytes: int
    resident: tuple[Place, ...] = ()
    instructions: tuple[Instruction, ...]
    solver: SolverFacts | None = None

    def __repr__(self) -> str:
        return f"<Plan {self.name} of {self.config.name}: arena {self.arena_bytes} bytes, {len(self.instructions)} instructions>"


@cache
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


def dump_plan(plan: Plan) -> str:
    """Write a plan as JSON; `parse_plan` reads it back equal."""
    return _adapter().dump_json(plan, exclude_defaults=False).decode() + "\n"


def parse_plan(text: str, source: str) -> Plan:
    """Read a plan from JSON; `source` names it in the one-line InputError for text that is none."""
    _require_version(text, source)
    try:
        plan = _adapter().validate_json(text)
    except ValidationError as error:
        raise InputError(f"{source} is not a plan: {_first(error.errors()[0])}: plan it again") from None
    facts = plan.solver
    if facts is not None and max(facts.bound_ns, facts.whole_bound_ns) > facts.objective_ns:
        raise InputError(f"{source} is not a plan: its bound is above its own time: plan it again")
    if not all(text.isprintable() for text in (plan.name, plan.device, plan.device_title, plan.config.name)):
        raise InputError(f"{source} is not a plan: its name, device or model holds control characters: plan it again")
    return plan


def _require_version(text: str, source: str) -> None:
    """Refuse a plan of another version of this program before its fields are compared with this one's."""
    with suppress(ValueError, RecursionError):  # text that is no JSON is refused by the schema
        raw = json.loads(text)
        version = raw.get("schema_version", SCHEMA_VERSION) if isinstance(raw, dict) else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise InputError(f"{source}: schema_version {version!r:.20} is not {SCHEMA_VERSION}: plan it again")


def read_plan(path: Path) -> Plan:
    """Read a plan file; InputError in one line where there is none."""
    try:
        return parse_plan(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read plan {path}: {getattr(error, 'strerror', None) or error}") from None


def _first(error: "ErrorDetails") -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the file"
    given = error["input"]
    value = f" = {given!r:.40}" if isinstance(given, int | float | str) else ""
    return f"{where}{value}: {error['msg'].lower()}"


def require_signature(plan: Plan, signature: str, what: str) -> None:
    """Refuse a plan that was made for another graph than `what`."""
    if plan.signature != signature:
        raise InvalidPlan("same graph", None, f"it was made for {plan.config.name} ({plan.signature}), not for {what}: plan again")


def listing(plan: Plan) -> Iterator[str]:
    """Print a plan, one line per instruction: number, engine, what, bytes and offsets."""
    yield f"plan {plan.name}: arena {plan.arena_bytes} bytes, {len(plan.instructions)} instructions"
    for place in plan.resident:
        yield f"resident {_place(place)}"
    for index, instruction in enumerate(plan.instructions):
        yield f"{index:5d}  {instruction.engine:8s}{_describe(instruction)}"


def _describe(instruction: Compute | Unpack | Store | Load | Free) -> str:
    match instruction:
        case Compute():
            marks = [mark for mark, on in (("again", instruction.recompute), ("streamed", bool(instruction.streamed))) if on]
            marks += [f"tile {instruction.tile}"] if instruction.tile else []
            parts = [f"{instruction.op}{' (' + ', '.join(marks) + ')' if marks else ''}"]
            parts += [f"reads {', '.join(instruction.reads)}"] if instruction.reads else []
            parts += [f"updates {', '.join(instruction.updates)}"] if instruction.updates else []
            parts += [f"writes {', '.join(_place(place) for place in instruction.writes)}"] if instruction.writes else []
            parts += [f"scratch {_extent(instruction.scratch)}"] if instruction.scratch else []
            return "; ".join(parts)
        case Unpack():
            return f"unpack {_place(instruction.place)}"
        case Store():
            return f"store {instruction.tensor}"
        case Load():
            return f"load {_place(instruction.place)}"
        case Free():
            return f"free {instruction.tensor}"


def _place(place: Place) -> str:
    return f"{place.tensor} {_extent(place)}"


def _extent(place: Place) -> str:
    return f"[{place.offset}:{place.end}]"
