"""Ops that change adapters: updates along a gradient, and MeZO's perturbation and update."""

from dataclasses import dataclass

from mebp.models.op import Buffer, Kind, Op, Part, Scratch, WeightUse
from mebp.models.tensor import FLOAT_BYTES
from mebp.models.tile import no_scratch
from mebp.models.workload import OptimizerName


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateParams:
    """How adapters step along their gradients: after `accumulate` steps, their mean scaled down to the 2-norm `clip_norm` (0:
    never).
    """

    optimizer: OptimizerName
    accumulate: int
    clip_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbParams:
    """MeZO's perturbation: adapter += sign x epsilon x z."""

    sign: int


def _moved(op: Op) -> int:
    return (3 + 2 * op.dims.state) * op.dims.rows * FLOAT_BYTES


def _scratch(op: Op, use: WeightUse) -> Scratch:
    """fp32 values of the largest adapter matrix: a denominator, or noise."""
    return Scratch(always=(Buffer(name="values", shape=(op.dims.cols,), dtype="fp32"),))


def _kind(name: str, *, backward: bool, scratch: bool = True) -> Kind:
    return Kind(
        name=name,
        part=Part.UPDATE,
        moved=_moved,
        scratch=_scratch if scratch else no_scratch,
        backward=backward,
        changes_adapters=True,
    )


KINDS = (
    _kind("update", backward=True),
    _kind("accumulate", backward=True, scratch=False),
    _kind("apply", backward=True),
    _kind("perturb", backward=False),
    _kind("mezo_update", backward=False),
)
