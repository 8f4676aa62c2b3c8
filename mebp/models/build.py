"""Build the graph of one training step: the forward ops of a decoder with LoRA, the head, the backward ops in reverse, the updates.

A family is an arrangement of kinds: what differs between families is which norms, biases, windows and rope tables a layer has.
"""

from collections.abc import Mapping
from dataclasses import replace

from mebp.models.config import LINEARS, LinearName, ModelConfig
from mebp.models.graph import Graph, Op, Role, TensorId, WeightId
from mebp.models.kind import CHANGES_ADAPTERS, FLOAT_BYTES
from mebp.models.step import Step, adapter_shapes
from mebp.models.workload import Workload, require_workload

EMBEDDING = WeightId("embedding.weight")
HEAD = WeightId("head.weight")
STREAM_GRADIENT = "stream.grad"  # dL/d(residual stream): one tensor, updated in place through the whole backward
ADAM_STATES = 2


def build_graph(config: ModelConfig, workload: Workload) -> Graph:
    """Build one step of `workload` on `config`; raises InputError where the two do not fit."""
    require_workload(config, workload)
    step = _Builder(config, workload)
    if workload.method == "mezo":
        step.mezo()
    else:
        step.backprop()
    used = {weight for op in step.ops for weight in op.weights}
    return Graph(
        config=config,
        workload=workload,
        tensors=step.tensors,
        weights={weight: step.weights[weight] for weight in step.weights if weight in used},
        ops=tuple(step.ops),
        outside_bytes=_outside_bytes(config, workload),
    )


def num_trainable(config: ModelConfig, workload: Workload) -> int:
    """Trainable parameters: the elements of all LoRA pairs."""
    return sum(a[0] * a[1] + b[0] * b[1] for a, b in adapter_shapes(config, workload).values())


def _outside_bytes(config: ModelConfig, workload: Workload) -> dict[str, int]:
    """Bytes held for the whole run outside the arena, by name: fp32 adapters, optimiser state and gradients that wait for an
    update, rope tables, token ids, and the compressed weights of a layer where they are copied.
    """
    trainable = num_trainable(config, workload) * FLOAT_BYTES
    states = ADAM_STATES if workload.optimizer == "adamw" and workload.method == "backprop" else 0
    held = {"held gradients": trainable} if workload.holds_gradients else {}
    copies = {"a layer's compressed weights": _layer_nbytes(config, workload)} if workload.layer_copies else {}
    num_tables = 2 if config.rope != config.local_rope else 1
    tables = num_tables * 2 * workload.seq_len * (config.head_dim // 2) * workload.itemsize
    return {
        "adapters": trainable,
        "optimizer state": trainable * states,
        **held,
        "rope tables": tables,
        "token ids": (2 * workload.tokens + workload.seq_len) * 8,
        **copies,
    }


def _layer_nbytes(config: ModelConfig, workload: Workload) -> int:
    """Bytes of one layer's compressed weights."""
    return sum(workload.weights.nbytes(*config.linear_shape(name)) for name in LINEARS)


class _Builder(Step):
    """Arranges the ops of a step: the forward of each layer, the backward in reverse, the updates."""

    def backprop(self) -> None:
        """Forward, loss, backward, and each layer's update right after its backward, or one update of all at the end."""
        self._forward("")
        self._backward_of_final_norm()
        for layer in reversed(range(self.config.num_layers)):
            self._layer_backward(layer)
            self._update(layer)
        if self.workload.holds_gradients:
            self._sweep_adapters("apply", "apply", sign=0)
        self._prune()

    def mezo(self) -> None:
        """Two forwards with perturbed adapters (Malladi et al., 2023), and an update along the perturbation."""
        self._sweep_adapters("perturb", "+perturb", sign=1)
        self._forward("+")
        self._sweep_adapters("perturb", "-perturb", sign=-2)
        self._forward("-")
        losses = {"plus": TensorId("+loss"), "minus": TensorId("-loss")}
        self._sweep_adapters("mezo_update", "mezo_update", sign=1, reads=losses)

    # -- forward ------------------------------------------------------------------------------------------------------

    def _forward(self, tag: str) -> None:
        c, N = self.config, self.workload.tokens
        x = self._op(
            "embed", f"{tag}embed", None, {}, {"y": (f"{tag}embed.out", c.hidden)}, self._dims(cols=c.hidden), weights=(EMBEDDING,)
        )["y"]
        for layer in range(c.num_layers):
            x = self._layer_forward(tag, layer, x)
        dims = self._dims(cols=c.hidden)
        x = self._op("norm", f"{tag}final_norm", None, {"x": x}, {"y": (f"{tag}final_norm.out", c.hidden)}, dims, ("final_norm",))[
            "y"
        ]
        head = EMBEDDING if c.tied else HEAD
        loss = self._tensor(f"{tag}loss", (1,), Role.LOSS, None, FLOAT_BYTES)
        writes = {"loss": loss}
        if self.workload.method == "backprop":
            writes["dx"] = self._tensor("final_norm.out.grad", (N, c.hidden), Role.GRADIENT, None)
        self._append("head", f"{tag}head", None, {"x": x}, writes, {}, self._dims(cols=c.hidden, outs=c.vocab), weights=(head,))
        if self.workload.method == "backprop" and self.workload.evaluations > 1:
            metric = {"loss": self._tensor("metric.loss", (1,), Role.LOSS, None, FLOAT_BYTES)}
            dims = self._dims(cols=c.hidden, outs=c.vocab)
            self._append("head", "metric.head", None, {"x": x}, metric, {}, dims, weights=(head,))

    def _layer_forward(self, tag: str, layer: int, x: TensorId) -> TensorId:
        c = self.config
        normed = self._norm(tag, layer, "norm1", x)
        heads: dict[str, TensorId] = {}
        counts: tuple[tuple[LinearName, int], ...] = (("q", c.num_heads), ("k", c.num_kv_heads))
        for name, count in counts:
            y = self._linear(tag, layer, name, normed)
            if c.qk_norm:
                y = self._norm(tag, layer, f"{name}_norm", y, heads=count)
            heads[name] = self._rope(tag, layer, name, y, count)
        heads["v"] = self._linear(tag, layer, "v", normed)
        out = (f"{tag}{layer}.attention.out", c.q_width)
        y = self._op("attention", f"{tag}{layer}.attention", layer, heads, {"y": out}, self._attention_dims(layer))["y"]
        y = self._linear(tag, layer, "o", y)
        if c.four_norms:
            y = self._norm(tag, layer, "post_attention_norm", y)
        middle = self._residual(tag, layer, "residual1", x, y)
        normed = self._norm(tag, layer, "norm2", middle)
        gate, up = self._linear(tag, layer, "gate", normed), self._linear(tag, layer, "up", normed)
        out = (f"{tag}{layer}.glu.out", c.ffn)
        y = self._op("glu", f"{tag}{layer}.glu", layer, {"gate": gate, "up": up}, {"y": out}, self._dims(cols=c.ffn))["y"]
        y = self._linear(tag, layer, "down", y)
        if c.four_norms:
            y = self._norm(tag, layer, "post_ffn_norm", y)
        return self._residual(tag, layer, "residual2", middle, y)

    def _norm(self, tag: str, layer: int, name: str, x: TensorId, heads: int = 0) -> TensorId:
        dims, width = self._norm_dims(heads)
        out = {"y": (f"{tag}{layer}.{name}.out", width)}
        return self._op("norm", f"{tag}{layer}.{name}", layer, {"x": x}, out, dims, (f"{layer}.{name}",))["y"]

    def _linear(self, tag: str, layer: int, name: LinearName, x: TensorId) -> TensorId:
        c = self.config
        bias = (f"{layer}.{name}_bias",) if c.qkv_bias and name in ("q", "k", "v") else ()
        out = {"y": (f"{tag}{layer}.{name}.out", c.linear_shape(name)[0])}
        weights, adapters = (self._layer_weight(layer, name),), self._adapters(layer, name)
        return self._op("linear", f"{tag}{layer}.{name}", layer, {"x": x}, out, self._linear_dims(name), bias, weights, adapters)[
            "y"
        ]

    def _rope(self, tag: str, layer: int, name: str, x: TensorId, heads: int) -> TensorId:
        width = heads * self.config.head_dim
        out = {"y": (f"{tag}{layer}.{name}_rope.out", width)}
        return self._op("rope", f"{tag}{layer}.{name}_rope", layer, {"x": x}, out, self._rope_dims(layer, heads))["y"]

    def _residual(self, tag: str, layer: int, name: str, x: TensorId, y: TensorId) -> TensorId:
        d = self.config.hidden
        out = {"y": (f"{tag}{layer}.{name}.out", d)}
        return self._op("residual", f"{tag}{layer}.{name}", layer, {"x": x, "branch": y}, out, self._dims(cols=d))["y"]

    # -- backward -----------------------------------------------------------------------------------------------------

    def _backward_of_final_norm(self) -> None:
        d = self.config.hidden
        last = TensorId(f"{self.config.num_layers - 1}.residual2.out")
        reads = {"dy": TensorId("final_norm.out.grad"), "x": last}
        writes = {"dx": self._tensor(STREAM_GRADIENT, (self.workload.tokens, d), Role.GRADIENT, None)}
        self._append("norm_backward", "final_norm.backward", None, reads, writes, {}, self._dims(cols=d), ("final_norm",))

    def _layer_backward(self, layer: int) -> None:
        c, stream = self.config, TensorId(STREAM_GRADIENT)
        dy = self._norm_backward_fresh(layer, "post_ffn_norm", stream, "down") if c.four_norms else stream
        dy = self._linear_backward(layer, "down", dy, f"{layer}.glu.out", c.ffn)
        reads = {"dy": dy, "gate": TensorId(f"{layer}.gate.out"), "up": TensorId(f"{layer}.up.out")}
        grads = {f"d{name}": self._gradient(layer, f"{name}.out", c.ffn) for name in ("gate", "up")}
        self._append("glu_backward", f"{layer}.glu.backward", layer, reads, grads, {}, self._dims(cols=c.ffn))
        dx = self._linear_backward(layer, "up", grads["dup"], f"{layer}.norm2.out", c.hidden)
        self._linear_backward(layer, "gate", grads["dgate"], f"{layer}.norm2.out", c.hidden, into=dx)
        self._norm_backward_into_stream(layer, "norm2", dx, f"{layer}.residual1.out")
        dy = self._norm_backward_fresh(layer, "post_attention_norm", stream, "o") if c.four_norms else stream
        dy = self._linear_backward(layer, "o", dy, f"{layer}.attention.out", c.q_width)
        dx = self._attention_backward(layer, dy)
        below = f"{layer - 1}.residual2.out" if layer else "embed.out"
        self._norm_backward_into_stream(layer, "norm1", dx, below)

    def _attention_backward(self, layer: int, dy: TensorId) -> TensorId:
        c = self.config
        q, k, v = (TensorId(f"{layer}.{name}.out") for name in ("q_rope", "k_rope", "v"))
        widths = {"q": c.q_width, "k": c.kv_width, "v": c.kv_width}
        grads = {f"d{name}": self._gradient(layer, f"{name}.out", width) for name, width in widths.items()}
        reads = {"dy": dy, "q": q, "k": k, "v": v}
        self._append("attention_backward", f"{layer}.attention.backward", layer, reads, grads, {}, self._attention_dims(layer))
        dx = self._linear_backward(layer, "v", grads["dv"], f"{layer}.norm1.out", c.hidden)
        for name, heads in (("k", c.num_kv_heads), ("q", c.num_heads)):
            grad = grads[f"d{name}"]
            update = {"dy": grad}
            self._append("rope_backward", f"{layer}.{name}_rope.backward", layer, {}, {}, update, self._rope_dims(layer, heads))
            if c.qk_norm:
                x, norm = {"x": TensorId(f"{layer}.{name}.out")}, f"{layer}.{name}_norm"
                self._append("norm_backward", f"{norm}.backward", layer, x, {}, update, self._norm_dims(heads)[0], (norm,))
            self._linear_backward(layer, name, grad, f"{layer}.norm1.out", c.hidden, into=dx)  # type: ignore[arg-type]
        return dx

    def _norm_backward_fresh(self, layer: int, name: str, dy: TensorId, below: str) -> TensorId:
        dx = self._gradient(layer, f"{below}.out", self.config.hidden)
        reads = {"dy": dy, "x": TensorId(f"{layer}.{below}.out")}
        dims = self._norm_dims(0)[0]
        self._append("norm_backward", f"{layer}.{name}.backward", layer, reads, {"dx": dx}, {}, dims, (f"{layer}.{name}",))
        return dx

    def _norm_backward_into_stream(self, layer: int, name: str, dy: TensorId, x: str) -> None:
        reads, updates = {"dy": dy, "x": TensorId(x)}, {"dx": TensorId(STREAM_GRADIENT)}
        dims = self._norm_dims(0)[0]
        self._append("norm_backward", f"{layer}.{name}.backward", layer, reads, {}, updates, dims, (f"{layer}.{name}",))

    def _linear_backward(
        self, layer: int, name: LinearName, dy: TensorId, x: str, width: int, into: TensorId | None = None
    ) -> TensorId:
        rows, cols = self.config.linear_shape(name)
        rank, adapters = self.workload.lora.rank, self._adapters(layer, name)
        reads, writes, updates = {"dy": dy}, {}, {}
        if adapters:
            reads["x"] = TensorId(x)
            for slot, shape in (("dA", (rank, cols)), ("dB", (rows, rank))):
                writes[slot] = self._tensor(f"{layer}.{name}.{slot}", shape, Role.ADAPTER_GRADIENT, layer, FLOAT_BYTES)
        dx = into or self._gradient(layer, x.removeprefix(f"{layer}."), width)
        if into is None:
            writes["dx"] = dx
        else:
            updates["dx"] = dx
        weights = (self._layer_weight(layer, name),)
        dims = self._linear_dims(name)
        self._append("linear_backward", f"{layer}.{name}.backward", layer, reads, writes, updates, dims, (), weights, adapters)
        return dx

    # -- updates ------------------------------------------------------------------------------------------------------

    def _update(self, layer: int) -> None:
        targets = [name for name in LINEARS if name in self.workload.lora.targets]
        reads = {f"{name}.{slot}": TensorId(f"{layer}.{name}.{slot}") for name in targets for slot in ("dA", "dB")}
        adapters = tuple(f"{layer}.{name}" for name in targets)
        states = ADAM_STATES if self.workload.optimizer == "adamw" else 0
        kind = "accumulate" if self.workload.holds_gradients else "update"
        self._append(kind, f"{layer}.{kind}", layer, reads, {}, {}, self._adapter_dims(adapters, states), adapters=adapters)

    def _sweep_adapters(self, kind: str, name: str, sign: int, reads: Mapping[str, TensorId] | None = None) -> None:
        adapters = tuple(adapter_shapes(self.config, self.workload))
        dims = self._adapter_dims(adapters, 0)
        self._append(kind, name, None, reads or {}, {}, {}, dims, adapters=adapters, sign=sign)

    def _prune(self) -> None:
        """Drop backward ops, and input gradients of linears, that no adapter below needs."""
        needed: set[TensorId] = set()
        kept: list[Op] = []
        for whole in reversed(self.ops):
            op, made = whole, {*whole.writes.values(), *whole.updates.values()}
            if whole.backward and whole.kind not in CHANGES_ADAPTERS:
                if not made & needed:
                    continue
                op = _without_unneeded_dx(whole, needed)
            needed -= set(op.writes.values())
            needed |= {*op.reads.values(), *op.updates.values()}
            kept.append(op)
        self.ops = kept[::-1]
        alive = {tensor for op in self.ops for tensor in (*op.reads.values(), *op.writes.values(), *op.updates.values())}
        self.tensors = {tid: t for tid, t in self.tensors.items() if tid in alive or t.role is Role.WEIGHT}


def _without_unneeded_dx(op: Op, needed: set[TensorId]) -> Op:
    """Take dx from a linear's backward where nothing reads it; its weight is not needed then either."""
    dx = op.writes.get("dx") or op.updates.get("dx")
    if op.kind != "linear_backward" or dx in needed:
        return op
    writes = {slot: tid for slot, tid in op.writes.items() if slot != "dx"}
    return replace(op, writes=writes, updates={}, weights=())
