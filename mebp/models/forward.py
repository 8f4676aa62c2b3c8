"""The forward of a step: embedding, layers, final norm, head. Families differ in the norms, biases, windows, scales and rotary
embeddings here.
"""

from collections.abc import Sequence
from dataclasses import replace

from mebp.models.config import LinearName, ModelConfig, Rope
from mebp.models.kind.attention import AttentionParams
from mebp.models.kind.elementwise import GluParams, ResidualParams
from mebp.models.kind.embed import EmbedParams
from mebp.models.kind.head import HeadParams
from mebp.models.kind.linear import LinearParams
from mebp.models.kind.norm import NormParams
from mebp.models.kind.rope import RopeParams
from mebp.models.step import StepBuilder
from mebp.models.tensor import FLOAT_BYTES, Role, TensorId, WeightId
from mebp.models.workload import Workload

EMBEDDING = WeightId("embedding.weight")
HEAD = WeightId("head.weight")
QKV: tuple[LinearName, ...] = ("q", "k", "v")
KV: tuple[LinearName, ...] = ("k", "v")
STREAM_GRADIENT = TensorId("stream.grad")


class Forward(StepBuilder):
    """Arranges the forward ops; `stream` is the residual stream, filled as layers are added. `tag` goes before every id, where a
    step has several forwards.
    """

    def __init__(self, config: ModelConfig, workload: Workload) -> None:
        super().__init__(config, workload)
        self.stream: list[TensorId] = []
        self._norm_params = NormParams(eps=config.norm_eps, offset=config.norm_offset)
        dropout = 0.0 if workload.method == "evaluate" else workload.lora.dropout
        self._linear_params = LinearParams(lora_scale=workload.lora.scale, copied=workload.layer_copies, dropout=dropout)
        self._glu_params = GluParams(activation=config.activation)
        self._attention_params = AttentionParams(scale=config.attention_scale, cap=config.attention_cap)
        self._residual_params = ResidualParams(scale=config.residual_scale)
        self._head_params = HeadParams(scale=config.logit_scale, cap=config.logit_cap)

    def _forward(self, tag: str) -> None:
        c, hidden = self.config, self._dims(cols=self.config.hidden)
        writes = self._activation(tag, "embed", None, c.hidden)
        scale = EmbedParams(scale=c.embedding_scale)
        self._append("embed", f"{tag}embed", None, hidden, writes=writes, params=scale, weight=EMBEDDING)
        stream = [writes["y"]]
        for layer in range(c.num_layers):
            stream.append(self._layer_forward(tag, layer, stream[-1]))
        self.stream = self.stream or stream  # of several forwards the first
        if not self.workload.chunk:
            self._end(tag, stream[-1])
            return
        self._chunked("chunked_head", f"{tag}head", None, (STREAM_GRADIENT,), lambda: self._end(tag, stream[-1]))

    def _end(self, tag: str, x: TensorId) -> None:
        """The final norm and the head."""
        c, hidden = self.config, self._dims(cols=self.config.hidden)
        writes = self._activation(tag, "final_norm", None, c.hidden)
        self._append(
            "norm",
            f"{tag}final_norm",
            None,
            hidden,
            reads={"x": x},
            writes=writes,
            params=self._norm_params,
            vectors=("final_norm",),
        )
        self._head(tag, writes["y"])

    def _head(self, tag: str, x: TensorId) -> None:
        """The loss with the gradient of its input, and once more without, where it is evaluated twice."""
        c, w, tokens = self.config, self.workload, self._extent.tokens
        rows = -(-w.head_rows * tokens // w.tokens)  # of some chunk there may be more, if not all tokens are labelled
        dims, weight = self._dims(rows=rows, cols=c.hidden, outs=c.vocab), EMBEDDING if c.tied else HEAD
        params = replace(self._head_params, labelled=min(w.labelled or 0, tokens))
        dx = (
            {"dx": self._tensor("", "final_norm.out.grad", (tokens, c.hidden), Role.GRADIENT, None)}
            if w.method == "backprop"
            else {}
        )
        runs = [(tag, dx), ("metric.", {})] if dx and w.evaluations > 1 else [(tag, dx)]
        for prefix, made in runs:
            loss = {"loss": self._loss(prefix)}
            writes, updates = (made, loss) if self._in_chunk else (loss | made, {})
            name = f"{prefix}head"
            self._append("head", name, None, dims, reads={"x": x}, writes=writes, updates=updates, params=params, weight=weight)

    def _loss(self, tag: str) -> TensorId:
        return self._tensor(tag, "loss", (1,), Role.LOSS, None, itemsize=FLOAT_BYTES)

    def _layer_forward(self, tag: str, layer: int, x: TensorId) -> TensorId:
        """In chunks it is two ops: the keys and values of all tokens, and the rest, whose queries need those of all before them.
        Where attention runs whole, it stands between the queries, keys and values of all tokens and the rest.
        """
        if not self.workload.chunk:
            return self._layer_block(tag, layer, x, QKV)
        whole: Sequence[LinearName] = QKV if self.workload.whole_attention else KV
        spanning, name = [self._attention_input(layer, name, tag) for name in whole], f"{tag}{layer}.{''.join(whole)}"
        self._chunked("chunked", name, layer, spanning, lambda: self._projections(tag, layer, x, whole))
        end = TensorId(f"{tag}{layer}.residual2.out")
        if self.workload.whole_attention:
            y = self._attention(tag, layer)
            self._chunked("chunked", f"{tag}{layer}.block", layer, (end,), lambda: self._after_attention(tag, layer, x, y))
        else:
            self._chunked("chunked", f"{tag}{layer}.block", layer, (end,), lambda: self._layer_block(tag, layer, x, ("q",)))
        return end

    def _layer_block(self, tag: str, layer: int, x: TensorId, heads: Sequence[LinearName]) -> TensorId:
        """A layer from its input `x` on. `heads` names the projections to compute; the others exist."""
        self._projections(tag, layer, x, heads)
        return self._after_attention(tag, layer, x, self._attention(tag, layer))

    def _after_attention(self, tag: str, layer: int, x: TensorId, attended: TensorId) -> TensorId:
        """The rest of a layer after attention; `x` is the layer's input, `attended` attention's output."""
        before, after = self.config.norms != "after", self.config.norms != "before"
        y = self._linear(tag, layer, "o", attended)
        if after:
            y = self._norm(tag, layer, "post_attention_norm", y)
        middle = self._residual(tag, layer, "residual1", x, y)
        y = self._ffn_block(tag, layer, self._norm(tag, layer, "norm2", middle) if before else middle)
        if after:
            y = self._norm(tag, layer, "post_ffn_norm", y)
        return self._residual(tag, layer, "residual2", middle, y)

    def _projections(self, tag: str, layer: int, x: TensorId, names: Sequence[LinearName]) -> None:
        """Those of queries, keys and values that are named, as attention reads them."""
        c, normed = self.config, self._normed_input(tag, layer, x)
        for name in names:
            y = self._linear(tag, layer, name, normed)
            if name == "v":
                continue
            if width := c.qk_norm_width(name):
                y = self._norm(tag, layer, f"{name}_norm", y, width, c.linear_shape(name)[0] // width)
            self._rope(tag, layer, name, y, c.num_heads if name == "q" else c.num_kv_heads)

    def _normed_input(self, tag: str, layer: int, x: TensorId) -> TensorId:
        """What queries, keys and values are made of."""
        return x if self.config.norms == "after" else self._norm(tag, layer, "norm1", x)

    def _attention_input(self, layer: int, name: LinearName, tag: str = "") -> TensorId:
        """What attention reads as queries, keys or values: the last op's output of rotation, norm and linear, as far as there are
        any.
        """
        rotated = name != "v" and self._rope_of(layer, name) is not None
        normed = name != "v" and self.config.qk_norm != "none"
        return TensorId(f"{tag}{layer}.{name}{'_rope' if rotated else '_norm' if normed else ''}.out")

    def _ffn_block(self, tag: str, layer: int, x: TensorId) -> TensorId:
        y = self._glu(tag, layer, self._linear(tag, layer, "gate", x), self._linear(tag, layer, "up", x))
        return self._linear(tag, layer, "down", y)

    def _norm(self, tag: str, layer: int, name: str, x: TensorId, width: int = 0, count: int = 1) -> TensorId:
        """A norm over the hidden size, or over each of `count` parts of `width`."""
        prefix, vectors = f"{tag}{layer}.", (f"{layer}.{name}",)
        writes = self._activation(prefix, name, layer, count * (width or self.config.hidden))
        dims, params = self._norm_dims(width, count), self._norm_params
        self._append("norm", f"{prefix}{name}", layer, dims, reads={"x": x}, writes=writes, params=params, vectors=vectors)
        return writes["y"]

    def _linear(self, tag: str, layer: int, name: LinearName, x: TensorId) -> TensorId:
        c, prefix = self.config, f"{tag}{layer}."
        writes = self._activation(prefix, name, layer, c.linear_shape(name)[0])
        self._append(
            "linear",
            f"{prefix}{name}",
            layer,
            self._linear_dims(layer, name),
            reads={"x": x},
            writes=writes,
            params=self._linear_params,
            weight=self._layer_weight(layer, name),
            vectors=(f"{layer}.{name}_bias",) if name in c.biases else (),
            adapters=self._adapters(layer, name),
        )
        return writes["y"]

    def _rope(self, tag: str, layer: int, name: LinearName, x: TensorId, heads: int) -> TensorId:
        """Queries or keys, rotated; as they are where the layer rotates none."""
        rope = self._rope_of(layer, name)
        if rope is None:
            return x
        prefix, op = f"{tag}{layer}.", f"{name}_rope"
        writes = self._activation(prefix, op, layer, heads * self.config.head_dim)
        dims, params = self._rope_dims(layer, heads), RopeParams(rope=rope)
        self._append("rope", f"{prefix}{op}", layer, dims, reads={"x": x}, writes=writes, params=params)
        return writes["y"]

    def _rope_of(self, layer: int, name: LinearName) -> Rope | None:
        rope = self.config.rope_of(layer)
        return replace(rope, query_growth=0.0) if rope is not None and name == "k" else rope

    def _attention(self, tag: str, layer: int) -> TensorId:
        prefix, count = f"{tag}{layer}.", self.config.num_heads
        heads: dict[str, TensorId] = {name: self._attention_input(layer, name, tag) for name in QKV}
        writes = self._activation(prefix, "attention", layer, self.config.q_width)
        shape = (self._extent.tokens, count)
        writes["lse"] = self._tensor(prefix, "attention.lse", shape, Role.ACTIVATION, layer, itemsize=FLOAT_BYTES)
        dims, params = self._attention_dims(layer), self._attention_params
        self._append("attention", f"{prefix}attention", layer, dims, reads=heads, writes=writes, params=params)
        return writes["y"]

    def _residual(self, tag: str, layer: int, name: str, x: TensorId, y: TensorId) -> TensorId:
        prefix, d = f"{tag}{layer}.", self.config.hidden
        writes = self._activation(prefix, name, layer, d)
        dims, params, reads = self._dims(cols=d), self._residual_params, {"x": x, "branch": y}
        self._append("residual", f"{prefix}{name}", layer, dims, reads=reads, writes=writes, params=params)
        return writes["y"]

    def _glu(self, tag: str, layer: int, gate: TensorId, up: TensorId) -> TensorId:
        prefix, width = f"{tag}{layer}.", self.config.ffn
        writes = self._activation(prefix, "glu", layer, width)
        params, reads = self._glu_params, {"gate": gate, "up": up}
        self._append("glu", f"{prefix}glu", layer, self._dims(cols=width), reads=reads, writes=writes, params=params)
        return writes["y"]
