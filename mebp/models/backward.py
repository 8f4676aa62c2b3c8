"""The backward of a step, layer by layer from the top: gradients of activations and adapters, never of a frozen weight."""

from collections.abc import Callable, Collection, Mapping, Sequence

from mebp.models.config import LinearName
from mebp.models.forward import KV, QKV, STREAM_GRADIENT, Forward
from mebp.models.kind.rope import RopeParams
from mebp.models.tensor import FLOAT_BYTES, Role, TensorId


class Backward(Forward):
    """Arranges the backward ops behind the forward ones. dL/d(stream) is one tensor, updated in place through the whole
    backward.
    """

    def _end(self, tag: str, x: TensorId) -> None:
        """The end of the forward, and where there is one the beginning of the backward."""
        super()._end(tag, x)
        if self.workload.method != "backprop":
            return
        d = self.config.hidden
        reads = {"dy": TensorId("final_norm.out.grad"), "x": x}
        writes = {"dx": self._tensor("", STREAM_GRADIENT, (self.workload.tokens, d), Role.GRADIENT, None)}
        dims, params = self._dims(cols=d), self._norm_params
        self._append(
            "norm_backward",
            "final_norm.backward",
            None,
            dims,
            reads=reads,
            writes=writes,
            params=params,
            vectors=("final_norm",),
        )

    def _layer_backward(self, layer: int) -> None:
        """In chunks it is two ops, as the forward is: the first adds up the gradients of keys and values. Where attention runs
        whole, its backward stands between them.
        """
        if not self.workload.chunk:
            dy = self._after_attention_backward(layer)
            self._projections_backward(layer, self._attention_backward(layer, dy), QKV)
        elif self.workload.whole_attention:
            dy = TensorId(f"{layer}.attention.out.grad")
            self._chunked_backward(layer, "block", (dy,), lambda: self._recompute_after_attention(layer))
            grads = self._attention_backward(layer, dy)
            self._chunked_backward(layer, "qkv", (), lambda: self._recompute_projections(layer, QKV, grads))
        else:
            sums = [TensorId(f"{layer}.{name}.out.grad") for name in KV]
            self._chunked_backward(layer, "block", sums, lambda: self._recompute_block(layer))
            self._chunked_backward(layer, "kv", (), lambda: self._recompute_kv(layer))

    def _chunked_backward(self, layer: int, name: str, spanning: Collection[TensorId], arrange: Callable[[], None]) -> None:
        self._chunked("chunked_backward", f"{layer}.{name}.backward", layer, spanning, arrange)

    def _recompute_block(self, layer: int) -> None:
        """Recompute a chunk's forward, then run its backward; forward ops that the backward does not need are dropped later."""
        self._layer_block("", layer, self.stream[layer], ("q",))
        grads = self._attention_backward(layer, self._after_attention_backward(layer))
        self._projections_backward(layer, grads, ("q",))

    def _recompute_after_attention(self, layer: int) -> None:
        """Recompute a chunk from attention's output on, then run its backward."""
        self._after_attention("", layer, self.stream[layer], TensorId(f"{layer}.attention.out"))
        self._after_attention_backward(layer)

    def _recompute_kv(self, layer: int) -> None:
        """Recompute what the backward of keys and values needs, then run it; their gradients are sums in fp32."""
        width, grads = self.config.kv_width, {}
        for name in KV:
            grads[f"d{name}"] = self._gradient(layer, f"{name}.part", width)
            reads, writes = {"x": TensorId(f"{layer}.{name}.out.grad")}, {"y": grads[f"d{name}"]}
            self._append("narrow", f"{layer}.{name}.narrow", layer, self._dims(cols=width), reads=reads, writes=writes)
        self._recompute_projections(layer, KV, grads)

    def _recompute_projections(self, layer: int, names: Sequence[LinearName], grads: Mapping[str, TensorId]) -> None:
        """Recompute what the backward of these queries, keys and values needs, then run it."""
        normed = self._normed_input("", layer, self.stream[layer])
        for name in names:
            if name != "v" and self.config.qk_norm_width(name):
                self._linear("", layer, name, normed)
        self._projections_backward(layer, grads, names)

    def _after_attention_backward(self, layer: int) -> TensorId:
        """The backward of a layer down to what attention made; its gradient."""
        c, middle = self.config, TensorId(f"{layer}.residual1.out")
        dy = self._branch_backward(layer, "residual2", "post_ffn_norm", "down")
        y = TensorId(f"{layer}.glu.out")  # whose place its gradient takes; without an adapter nothing needs y at all
        dy = self._linear_backward(layer, "down", dy, y, c.ffn, into=y if self._adapters(layer, "down") else None)
        dgate, dup = self._glu_backward(layer, dy)
        x, dx = self._block_input(layer, "norm2", middle)
        dx = self._linear_backward(layer, "up", dup, x, c.hidden, into=dx)
        self._linear_backward(layer, "gate", dgate, x, c.hidden, into=dx)
        self._norm_backward_into_stream(layer, "norm2", dx, middle)
        dy = self._branch_backward(layer, "residual1", "post_attention_norm", "o")
        return self._linear_backward(layer, "o", dy, TensorId(f"{layer}.attention.out"), c.q_width)

    def _branch_backward(self, layer: int, residual: str, norm: str, linear: LinearName) -> TensorId:
        """The gradient of what `linear` adds to the stream, by way of the residual's scale and the norm after it."""
        c, dy, d = self.config, STREAM_GRADIENT, self.config.hidden
        if c.residual_scale != 1.0:
            scaled = self._gradient(layer, f"{residual}.branch", d)
            reads, writes, params = {"dy": dy}, {"dx": scaled}, self._residual_params
            name, dims = f"{layer}.{residual}.backward", self._dims(cols=d)
            self._append("residual_backward", name, layer, dims, reads=reads, writes=writes, params=params)
            dy = scaled
        return dy if c.norms == "before" else self._norm_backward_fresh(layer, norm, dy, linear)

    def _block_input(self, layer: int, norm: str, stream: TensorId) -> tuple[TensorId, TensorId | None]:
        """What attention or MLP read, and where its gradient goes: a tensor that the first op to need it makes (None), or, without
        a norm before the block, the stream's gradient.
        """
        return (stream, STREAM_GRADIENT) if self.config.norms == "after" else (TensorId(f"{layer}.{norm}.out"), None)

    def _glu_backward(self, layer: int, dy: TensorId) -> tuple[TensorId, TensorId]:
        """The gradients of gate and up, in their places."""
        gate, up = TensorId(f"{layer}.gate.out"), TensorId(f"{layer}.up.out")
        dims, params, updates = self._dims(cols=self.config.ffn), self._glu_params, {"gate": gate, "up": up}
        self._append("glu_backward", f"{layer}.glu.backward", layer, dims, reads={"dy": dy}, updates=updates, params=params)
        return gate, up

    def _attention_backward(self, layer: int, dy: TensorId) -> dict[str, TensorId]:
        c, size = self.config, FLOAT_BYTES if self._in_chunk else 0
        q, k, v = (self._attention_input(layer, name) for name in QKV)
        grads = {f"d{name}": self._gradient(layer, name, c.kv_width, itemsize=size) for name in KV}
        writes, updates = ({}, {"q": q, **grads}) if self._in_chunk else (grads, {"q": q})
        y, lse = (TensorId(f"{layer}.attention.{slot}") for slot in ("out", "lse"))
        dims, params, reads = self._attention_dims(layer), self._attention_params, {"dy": dy, "y": y, "lse": lse, "k": k, "v": v}
        name = f"{layer}.attention.backward"
        self._append("attention_backward", name, layer, dims, reads=reads, writes=writes, updates=updates, params=params)
        return grads | {"dq": q}

    def _projections_backward(self, layer: int, grads: Mapping[str, TensorId], names: Sequence[LinearName]) -> None:
        """From the gradients of queries, keys and values to that of the layer's input."""
        c = self.config
        x, dx = self._block_input(layer, "norm1", self.stream[layer])
        for name in reversed(names):
            if name != "v":
                self._unrotate(layer, name, grads[f"d{name}"], c.num_heads if name == "q" else c.num_kv_heads)
            dx = self._linear_backward(layer, name, grads[f"d{name}"], x, c.hidden, into=dx)
        assert dx is not None
        self._norm_backward_into_stream(layer, "norm1", dx, self.stream[layer])

    def _unrotate(self, layer: int, name: LinearName, grad: TensorId, num_heads: int) -> None:
        """Back through the rotation and the norm of queries or keys, in place."""
        c, in_place = self.config, {"dy": grad}
        if (rope := self._rope_of(layer, name)) is not None:
            dims, rotated = self._rope_dims(layer, num_heads), RopeParams(rope=rope)
            self._append("rope_backward", f"{layer}.{name}_rope.backward", layer, dims, updates=in_place, params=rotated)
        if width := c.qk_norm_width(name):
            reads, norm = {"x": TensorId(f"{layer}.{name}.out")}, f"{layer}.{name}_norm"
            dims, params = self._norm_dims(width, c.linear_shape(name)[0] // width), self._norm_params
            self._append(
                "norm_backward",
                f"{norm}.backward",
                layer,
                dims,
                reads=reads,
                updates=in_place,
                params=params,
                vectors=(norm,),
            )

    def _norm_backward_fresh(self, layer: int, name: str, dy: TensorId, below: str) -> TensorId:
        """The gradient of what the norm reads, in a tensor of its own."""
        dx = self._gradient(layer, below, self.config.hidden)
        self._norm_backward(layer, name, {"dy": dy, "x": TensorId(f"{layer}.{below}.out")}, writes={"dx": dx})
        return dx

    def _norm_backward_into_stream(self, layer: int, name: str, dy: TensorId, x: TensorId) -> None:
        """Add the gradient of what a norm before a block reads; without one, it is there already."""
        if self.config.norms == "after":
            return
        self._norm_backward(layer, name, {"dy": dy, "x": x}, updates={"dx": STREAM_GRADIENT})

    def _norm_backward(
        self,
        layer: int,
        name: str,
        reads: Mapping[str, TensorId],
        writes: Mapping[str, TensorId] | None = None,
        updates: Mapping[str, TensorId] | None = None,
    ) -> None:
        self._append(
            "norm_backward",
            f"{layer}.{name}.backward",
            layer,
            self._norm_dims(),
            reads=reads,
            writes=writes,
            updates=updates,
            params=self._norm_params,
            vectors=(f"{layer}.{name}",),
        )

    def _linear_backward(
        self, layer: int, name: LinearName, dy: TensorId, x: TensorId, width: int, into: TensorId | None = None
    ) -> TensorId:
        """Gradients of a linear that reads `x` of `width`: dx added to `into` where that is given, or, where that is x, in its
        place.
        """
        rows, cols = self.config.linear_shape(name)
        rank, adapters = self.workload.lora.rank, self._adapters(layer, name)
        reads, gradients = {"dy": dy}, {}
        if adapters:
            reads["x"] = x
            for slot, shape in (("dA", (rank, cols)), ("dB", (rows, rank))):
                gradients[slot] = self._tensor(
                    f"{layer}.", f"{name}.{slot}", shape, Role.ADAPTER_GRADIENT, layer, itemsize=FLOAT_BYTES
                )
        writes, updates = ({}, gradients) if self._in_chunk else (gradients, {})
        dx = into or self._gradient(layer, self.tensors[x].name.removesuffix(".out"), width)
        if into == x:
            del reads["x"]
        updates |= {"x" if into == x else "dx": dx} if into else {}
        writes |= {} if into else {"dx": dx}
        self._append(
            "linear_backward",
            f"{layer}.{name}.backward",
            layer,
            self._linear_dims(layer, name),
            reads=reads,
            writes=writes,
            updates=updates,
            params=self._linear_params,
            weight=self._layer_weight(layer, name),
            adapters=adapters,
        )
        return dx
