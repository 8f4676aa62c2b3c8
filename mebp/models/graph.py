"""The nouns of a training step: Tensor, Weight, Op, Graph. Plain data; mebp/models/kind.py says what an op costs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import NewType

from mebp.models.config import ModelConfig
from mebp.models.format import WeightFormat
from mebp.models.workload import Workload

TensorId = NewType("TensorId", str)
WeightId = NewType("WeightId", str)
OpId = NewType("OpId", str)


class Role(StrEnum):
    """What the bytes of an arena tensor are, as the memory breakdown names them."""

    ACTIVATION = "activations"
    GRADIENT = "gradients"
    ADAPTER_GRADIENT = "adapter gradients"
    WEIGHT = "unpacked weights"
    LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that may live in the arena; `layer` is None outside the decoder layers."""

    id: TensorId
    shape: tuple[int, ...]
    itemsize: int
    role: Role
    layer: int | None

    @property
    def nbytes(self) -> int:
        count = self.itemsize
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A frozen matrix of (rows, cols) = (out, in features), stored in `format`; unpacked it is the tensor of the same id."""

    id: WeightId
    rows: int
    cols: int
    format: WeightFormat

    @property
    def count(self) -> int:
        return self.rows * self.cols

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.rows, self.cols)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Extents of an op; those that do not apply are 0.

    rows: tokens, or tokens x heads for a norm over head_dim. cols, outs: in and out features. pairs: (query, key) pairs
    that one head of one sequence attends to.
    """

    rows: int
    cols: int = 0
    outs: int = 0
    rank: int = 0
    batch: int = 0
    seq: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    pairs: int = 0
    itemsize: int = 2
    state: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One fused op. Tensors sit in named slots: `reads`, `writes` (made new) and `updates` (changed in place).

    `weights` are frozen matrices (at most one), `vectors` uncompressed parameters, `adapters` the linears whose LoRA pair the
    op reads (or, for an update, changes).
    """

    id: OpId
    kind: str
    layer: int | None
    backward: bool
    dims: Dims
    reads: Mapping[str, TensorId]
    writes: Mapping[str, TensorId]
    updates: Mapping[str, TensorId]
    weights: tuple[WeightId, ...] = ()
    vectors: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    sign: int = 0

    @property
    def touched(self) -> tuple[TensorId, ...]:
        """Tensors that must be in the arena before the op runs."""
        return (*self.reads.values(), *self.updates.values())


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One training step in program order, every tensor and weight that it names, and the bytes that live outside the arena."""

    config: ModelConfig
    workload: Workload
    tensors: Mapping[TensorId, Tensor]
    weights: Mapping[WeightId, Weight]
    ops: tuple[Op, ...]
    outside_bytes: Mapping[str, int]

    @cached_property
    def op(self) -> Mapping[OpId, Op]:
        """Ops by id."""
        return {op.id: op for op in self.ops}

    @cached_property
    def producer(self) -> Mapping[TensorId, Op]:
        """The op that makes each tensor new."""
        return {tensor: op for op in self.ops for tensor in op.writes.values()}

    @cached_property
    def signature(self) -> str:
        """Hash of all that decides the graph: dimensions and workload, not the model's name."""
        return signature(self.config, self.workload)


def signature(config: ModelConfig, workload: Workload) -> str:
    """Hash dimensions and workload; plans and stores carry it to be refused where they do not belong."""
    fields = asdict(config) | {"name": ""}
    text = json.dumps([fields, asdict(workload)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
