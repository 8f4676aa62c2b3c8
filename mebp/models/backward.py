"""The backward of a step, layer by layer from the top: gradients of activations and adapters, never of a frozen weight."""

from collections.abc import Mapping

from mebp.models.config import LinearName
from mebp.models.forward import Forward
from mebp.models.tensor import FLOAT_BYTES, Role, TensorId

STREAM_GRADIENT = TensorId("stream.grad")


class Backward(Forward):
    """Arranges the backward ops behind the forward ones. dL/d(stream) is one tensor, updated in place through the whole
    backward.
    """

    def _final_norm_backward(self) -> None:
        d = self.config.hidden
        reads = {"dy": TensorId("final_norm.out.grad"), "x": self.stream[-1]}
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
        c, stream = self.config, STREAM_GRADIENT
        dy = self._norm_backward_fresh(layer, "post_ffn_norm", stream, "down") if c.four_norms else stream
        dy = self._linear_backward(layer, "down", dy, "glu", c.ffn)
        grads = self._glu_backward(layer, dy)
        dx = self._linear_backward(layer, "up", grads["dup"], "norm2", c.hidden)
        self._linear_backward(layer, "gate", grads["dgate"], "norm2", c.hidden, into=dx)
        self._norm_backward_into_stream(layer, "norm2", dx, TensorId(f"{layer}.residual1.out"))
        dy = self._norm_backward_fresh(layer, "post_attention_norm", stream, "o") if c.four_norms else stream
        dy = self._linear_backward(layer, "o", dy, "attention", c.q_width)
        dx = self._attention_backward(layer, dy)
        self._norm_backward_into_stream(layer, "norm1", dx, self.stream[layer])

    def _glu_backward(self, layer: int, dy: TensorId) -> dict[str, TensorId]:
        width = self.config.ffn
        reads = {"dy": dy, "gate": TensorId(f"{layer}.gate.out"), "up": TensorId(f"{layer}.up.out")}
        grads = {f"d{name}": self._gradient(layer, name, width) for name in ("gate", "up")}
        dims, params = self._dims(cols=width), self._glu_params
        self._append("glu_backward", f"{layer}.glu.backward", layer, dims, reads=reads, writes=grads, params=params)
        return grads

    def _attention_backward(self, layer: int, dy: TensorId) -> TensorId:
        c = self.config
        q, k, v = (TensorId(f"{layer}.{name}.out") for name in ("q_rope", "k_rope", "v"))
        widths = {"q": c.q_width, "k": c.kv_width, "v": c.kv_width}
        grads = {f"d{name}": self._gradient(layer, name, width) for name, width in widths.items()}
        reads = {"dy": dy, "q": q, "k": k, "v": v}
        dims, params = self._attention_dims(layer), self._attention_params
        self._append("attention_backward", f"{layer}.attention.backward", layer, dims, reads=reads, writes=grads, params=params)
        dx = self._linear_backward(layer, "v", grads["dv"], "norm1", c.hidden)
        self._query_key_backward(layer, "k", grads["dk"], c.num_kv_heads, dx)
        self._query_key_backward(layer, "q", grads["dq"], c.num_heads, dx)
        return dx

    def _query_key_backward(self, layer: int, name: LinearName, grad: TensorId, num_heads: int, dx: TensorId) -> None:
        """Back through the rotation and the norm of queries or keys, in place, and through their linear."""
        c, in_place = self.config, {"dy": grad}
        rope = self._rope_params(layer)
        dims = self._rope_dims(layer, num_heads)
        self._append("rope_backward", f"{layer}.{name}_rope.backward", layer, dims, updates=in_place, params=rope)
        if c.qk_norm:
            reads, norm, dims = {"x": TensorId(f"{layer}.{name}.out")}, f"{layer}.{name}_norm", self._norm_dims(num_heads)
            params = self._norm_params
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
        self._linear_backward(layer, name, grad, "norm1", c.hidden, into=dx)

    def _norm_backward_fresh(self, layer: int, name: str, dy: TensorId, below: str) -> TensorId:
        """The gradient of what the norm reads, in a tensor of its own."""
        dx = self._gradient(layer, below, self.config.hidden)
        self._norm_backward(layer, name, {"dy": dy, "x": TensorId(f"{layer}.{below}.out")}, writes={"dx": dx})
        return dx

    def _norm_backward_into_stream(self, layer: int, name: str, dy: TensorId, x: TensorId) -> None:
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
            self._norm_dims(0),
            reads=reads,
            writes=writes,
            updates=updates,
            params=self._norm_params,
            vectors=(f"{layer}.{name}",),
        )

    def _linear_backward(
        self, layer: int, name: LinearName, dy: TensorId, x: str, width: int, into: TensorId | None = None
    ) -> TensorId:
        """Gradients of a linear that reads `{layer}.{x}.out` of `width`: dx added to `into` where that is given."""
        rows, cols = self.config.linear_shape(name)
        rank, adapters = self.workload.lora.rank, self._adapters(layer, name)
        reads, writes = {"dy": dy}, {}
        if adapters:
            reads["x"] = TensorId(f"{layer}.{x}.out")
            for slot, shape in (("dA", (rank, cols)), ("dB", (rows, rank))):
                writes[slot] = self._tensor(
                    f"{layer}.", f"{name}.{slot}", shape, Role.ADAPTER_GRADIENT, layer, itemsize=FLOAT_BYTES
                )
        dx = into or self._gradient(layer, x, width)
        updates = {"dx": dx} if into else {}
        writes |= {} if into else {"dx": dx}
        self._append(
            "linear_backward",
            f"{layer}.{name}.backward",
            layer,
            self._linear_dims(name),
            reads=reads,
            writes=writes,
            updates=updates,
            params=self._linear_params,
            weight=self._layer_weight(layer, name),
            adapters=adapters,
        )
        return dx
