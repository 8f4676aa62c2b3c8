"""What an op computes with besides its tensors: numbers and choices that a model's config makes, one class for a group of kinds."""

from dataclasses import dataclass

from mebp.models.config import Activation, Rope
from mebp.models.workload import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedParams:
    """Rows of the embedding are multiplied by `scale`."""

    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NormParams:
    """RMSNorm: y = x rsqrt(mean(x^2) + eps) (w + offset)."""

    eps: float
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearParams:
    """y = x W^T + b + lora_scale (x A^T) B^T. With `copied` the compressed weight is read into memory of the process's own
    first.
    """

    lora_scale: float
    copied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParams:
    """The rotary embedding whose table rotates queries or keys."""

    rope: Rope


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """softmax(scale q k^T) v; which keys a query sees is part of the op's dims."""

    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GluParams:
    """activation(gate) x up."""

    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateParams:
    """How adapters step along their gradients: after `accumulate` steps, their mean scaled down to the 2-norm `clip_norm` (0:
    never).
    """

    optimizer: Optimizer
    accumulate: int
    clip_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbParams:
    """MeZO's perturbation: adapter += sign x epsilon x z."""

    sign: int


Params = EmbedParams | NormParams | LinearParams | RopeParams | AttentionParams | GluParams | UpdateParams | PerturbParams
