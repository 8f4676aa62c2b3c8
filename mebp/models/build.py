"""Build the graph of one training step: the forward ops of a decoder with LoRA, the backward ops in reverse, the updates.

A family is an arrangement of kinds: what differs between families stands in forward.py and backward.py.
"""

from dataclasses import replace

from mebp.models.backward import Backward
from mebp.models.chunk import with_ops
from mebp.models.config import LINEARS, ModelConfig
from mebp.models.forward import STREAM_GRADIENT
from mebp.models.graph import Graph
from mebp.models.kind.rope import RopeParams
from mebp.models.kind.update import PerturbParams, UpdateParams
from mebp.models.op import IN_PLACE, Op, flat
from mebp.models.step import adapter_shapes
from mebp.models.tensor import FLOAT_BYTES, Role, TensorId
from mebp.models.workload import Workload, require_workload
from mebp.unit import require_kind


def build_graph(config: ModelConfig, workload: Workload) -> Graph:
    """Build one step of `workload` on `config`; raises InputError where the two do not fit."""
    require_kind("`config`", config, ModelConfig, remedy="load_model makes one")
    require_kind("`workload`", workload, Workload, remedy="Workload(lora=Lora(), weights=weight_formats(...)) makes one")
    require_workload(config, workload)
    step = _Builder(config, workload)
    match workload.method:
        case "mezo":
            step.mezo()
        case "evaluate":
            step.evaluate()
        case "backprop":
            step.backprop()
    used = {weight for op in step.ops for weight in op.weights}
    return Graph(
        config=config,
        workload=workload,
        tensors=step.tensors,
        weights={weight: step.weights[weight] for weight in step.weights if weight in used},
        ops=tuple(step.ops),
        stream=tuple(step.stream),
        stream_gradient=STREAM_GRADIENT if STREAM_GRADIENT in step.tensors else None,
        adapters=step.adapters,
        outside_bytes=_outside_bytes(step, workload),
    )


def num_trainable(config: ModelConfig, workload: Workload) -> int:
    """Trainable parameters: the elements of all LoRA pairs."""
    return sum(a[0] * a[1] + b[0] * b[1] for a, b in adapter_shapes(config, workload).values())


def _outside_bytes(step: "_Builder", workload: Workload) -> dict[str, int]:
    """Bytes that live outside the arena for the whole run, by name: fp32 adapters, optimizer state, gradients that wait for an
    update, rope tables, token ids, and the compressed weights of a layer where they are copied.
    """
    config = step.config
    trainable = num_trainable(config, workload) * FLOAT_BYTES
    deferred = {"deferred gradients": trainable} if workload.defers_gradients else {}
    copies = {"a layer's compressed weights": _layer_nbytes(config, workload)} if workload.layer_copies else {}
    rotated = {op.params.rope for _, op in flat(step.ops) if isinstance(op.params, RopeParams)}
    tables = sum(workload.seq_len * rope.width(config.head_dim) * workload.itemsize for rope in rotated)
    return {
        "adapters": trainable,
        "optimizer state": 0 if workload.states_in_file else trainable * workload.optimizer_states,
        **deferred,
        "rope tables": tables,
        "token ids": (2 * workload.tokens + workload.seq_len + (workload.labelled or 0)) * 8,
        **copies,
    }


def _layer_nbytes(config: ModelConfig, workload: Workload) -> int:
    """Bytes of one layer's compressed weights."""
    shapes = config.linear_shapes().items()
    return max(sum(workload.weights.of(f"{layer}.{name}").nbytes(*s) for name, s in shapes) for layer in range(config.num_layers))


class _Builder(Backward):
    """Arranges whole steps: forward, backward and updates, or MeZO's two forwards."""

    def __init__(self, config: ModelConfig, workload: Workload) -> None:
        super().__init__(config, workload)
        self._update_params = UpdateParams(
            optimizer=workload.optimizer, accumulate=workload.accumulate, clip_norm=workload.clip_norm
        )

    def backprop(self) -> None:
        """Forward, loss, backward, and each layer's update right after its backward, or one update of all at the end."""
        self._forward("")
        for layer in reversed(range(self.config.num_layers)):
            self._layer_backward(layer)
            self._update(layer)
        if self.workload.defers_gradients:
            adapters = tuple(self.adapters)
            self._append("apply", "apply", None, self._adapter_dims(adapters, 0), params=self._update_params, adapters=adapters)
        self._prune()

    def evaluate(self) -> None:
        """Forward and loss."""
        self._forward("")

    def mezo(self) -> None:
        """Two forwards with perturbed adapters (Malladi et al., 2023), and an update along the perturbation."""
        self._perturb("+perturb", sign=1)
        self._forward("+")
        self._perturb("-perturb", sign=-2)
        self._forward("-")
        adapters, losses = tuple(self.adapters), {"plus": TensorId("+loss"), "minus": TensorId("-loss")}
        self._append("mezo_update", "mezo_update", None, self._adapter_dims(adapters, 0), reads=losses, adapters=adapters)

    def _update(self, layer: int) -> None:
        """Step the layer's adapters, or add to their deferred gradients."""
        adapters = tuple(adapter for name in LINEARS for adapter in self._adapters(layer, name))
        if not adapters:
            return
        reads = {f"{name}.{slot}": TensorId(f"{name}.{slot}") for name in adapters for slot in ("dA", "dB")}
        kind = "accumulate" if self.workload.defers_gradients else "update"
        dims, params = self._adapter_dims(adapters, self.workload.optimizer_states), self._update_params
        self._append(kind, f"{layer}.{kind}", layer, dims, reads=reads, params=params, adapters=adapters)

    def _perturb(self, name: str, sign: int) -> None:
        adapters = tuple(self.adapters)
        dims, params = self._adapter_dims(adapters, 0), PerturbParams(sign=sign)
        self._append("perturb", name, None, dims, params=params, adapters=adapters)

    def _prune(self) -> None:
        """Drop backward ops, and optional outputs, that no adapter below needs."""
        needed: set[TensorId] = set()
        kept: list[Op] = []
        for whole in reversed(self.ops):
            op, made = whole, {*whole.writes.values(), *whole.updates.values()}
            if whole.backward and not whole.kind.changes_adapters:
                if not made & needed:
                    continue
                op = _chunks_without_unneeded(whole, needed) if whole.chunks else _without_unneeded(whole, needed)
            needed -= set(op.writes.values())
            needed |= {*op.reads.values(), *op.updates.values()}
            kept.append(op)
        self.ops = kept[::-1]
        alive = {tensor for op in self.ops for tensor in (*op.reads.values(), *op.writes.values(), *op.updates.values())}
        self.tensors = {tid: t for tid, t in self.tensors.items() if tid in alive or t.role is Role.WEIGHT}


def _chunks_without_unneeded(op: Op, needed: set[TensorId]) -> Op:
    """Take what nothing needs from what a chunked op runs."""
    kept: list[tuple[Op, ...]] = []
    for some in op.chunks:
        wanted, ops = needed - some.tensors.keys(), []
        for inner in reversed(some.ops):
            if wanted.isdisjoint((*inner.writes.values(), *inner.updates.values())):
                continue
            ops.append(_without_unneeded(inner, wanted))
            wanted = wanted - set(inner.writes.values()) | set(ops[-1].touched)
        kept.append(tuple(ops[::-1]))
    return with_ops(op, kept)


def _without_unneeded(op: Op, needed: set[TensorId]) -> Op:
    """Take the optional outputs from an op that nothing reads; its weight is not needed for the others either."""
    made = {**op.writes, **op.updates}
    dropped = {slot for slot in op.kind.optional if slot in made and made[slot] not in needed}
    if not dropped:
        return op
    writes, updates = ({slot: t for slot, t in slots.items() if slot not in dropped} for slots in (op.writes, op.updates))
    reads = {**op.reads, **{slot: made[slot] for slot in dropped if slot in IN_PLACE}}
    return replace(op, reads=reads, writes=writes, updates=updates, weights=())
