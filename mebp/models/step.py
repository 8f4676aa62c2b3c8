"""What a step is collected in: tensors, weights and ops in program order, and the extents that ops have. Knows no model family."""

from collections.abc import Mapping
from dataclasses import replace

from mebp.models.config import LinearName, ModelConfig
from mebp.models.graph import Dims, Op, OpId, Role, Tensor, TensorId, Weight, WeightId
from mebp.models.kind import FLOAT_BYTES, attended_pairs
from mebp.models.workload import Workload


class Step:
    """Tensors, weights and ops of one training step, added one after another."""

    def __init__(self, config: ModelConfig, workload: Workload) -> None:
        self.config = config
        self.workload = workload
        self.tensors: dict[TensorId, Tensor] = {}
        self.weights: dict[WeightId, Weight] = {}
        self.ops: list[Op] = []
        for name, (rows, cols) in config.matrices().items():
            self._weight(WeightId(f"{name}.weight"), rows, cols)

    def _op(
        self,
        kind: str,
        name: str,
        layer: int | None,
        reads: Mapping[str, TensorId],
        outputs: Mapping[str, tuple[str, int]],
        dims: Dims,
        vectors: tuple[str, ...] = (),
        weights: tuple[WeightId, ...] = (),
        adapters: tuple[str, ...] = (),
    ) -> dict[str, TensorId]:
        """Append a forward op whose outputs are activations of shape (tokens, width); returns them by slot."""
        N = self.workload.tokens
        writes = {slot: self._tensor(tid, (N, width), Role.ACTIVATION, layer) for slot, (tid, width) in outputs.items()}
        self._append(kind, name, layer, reads, writes, {}, dims, vectors, weights, adapters)
        return writes

    def _append(
        self,
        kind: str,
        name: str,
        layer: int | None,
        reads: Mapping[str, TensorId],
        writes: Mapping[str, TensorId],
        updates: Mapping[str, TensorId],
        dims: Dims,
        vectors: tuple[str, ...] = (),
        weights: tuple[WeightId, ...] = (),
        adapters: tuple[str, ...] = (),
        sign: int = 0,
    ) -> None:
        self.ops.append(
            Op(
                id=OpId(name),
                kind=kind,
                layer=layer,
                backward=kind.endswith("backward") or kind in ("update", "accumulate", "apply"),
                dims=dims,
                reads=dict(reads),
                writes=dict(writes),
                updates=dict(updates),
                weights=weights,
                vectors=vectors,
                adapters=adapters,
                sign=sign,
            )
        )

    def _tensor(self, name: str, shape: tuple[int, ...], role: Role, layer: int | None, itemsize: int = 0) -> TensorId:
        tid = TensorId(name)
        self.tensors[tid] = Tensor(id=tid, shape=shape, itemsize=itemsize or self.workload.itemsize, role=role, layer=layer)
        return tid

    def _gradient(self, layer: int, of: str, width: int) -> TensorId:
        return self._tensor(f"{layer}.{of}.grad", (self.workload.tokens, width), Role.GRADIENT, layer)

    def _weight(self, wid: WeightId, rows: int, cols: int) -> None:
        self.weights[wid] = Weight(id=wid, rows=rows, cols=cols, format=self.workload.weights)
        head = wid.split(".")[0]
        self._tensor(wid, (rows, cols), Role.WEIGHT, int(head) if head.isdigit() else None)

    def _layer_weight(self, layer: int, name: str) -> WeightId:
        return WeightId(f"{layer}.{name}.weight")

    def _adapters(self, layer: int, name: LinearName) -> tuple[str, ...]:
        return (f"{layer}.{name}",) if name in self.workload.lora.targets else ()

    def _dims(self, *, rows: int = 0, cols: int = 0, outs: int = 0) -> Dims:
        return Dims(rows=rows or self.workload.tokens, cols=cols, outs=outs, itemsize=self.workload.itemsize)

    def _norm_dims(self, heads: int) -> tuple[Dims, int]:
        """Dims and output width of a norm over the hidden size, or over each of `heads` heads."""
        c = self.config
        if heads:
            return self._dims(rows=self.workload.tokens * heads, cols=c.head_dim), heads * c.head_dim
        return self._dims(cols=c.hidden), c.hidden

    def _linear_dims(self, name: LinearName) -> Dims:
        rows, cols = self.config.linear_shape(name)
        rank = self.workload.lora.rank if name in self.workload.lora.targets else 0
        return replace(self._dims(cols=cols, outs=rows), rank=rank)

    def _rope_dims(self, layer: int, heads: int) -> Dims:
        return replace(self._attention_dims(layer), cols=heads * self.config.head_dim, heads=heads, pairs=0)

    def _attention_dims(self, layer: int) -> Dims:
        c, w = self.config, self.workload
        window = c.windows[layer]
        return Dims(
            rows=w.tokens,
            batch=w.batch_size,
            seq=w.seq_len,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            window=window,
            pairs=attended_pairs(w.seq_len, window),
            itemsize=w.itemsize,
        )

    def _adapter_dims(self, adapters: tuple[str, ...], states: int) -> Dims:
        shapes = adapter_shapes(self.config, self.workload)
        sizes = [rows * cols for name in adapters for rows, cols in shapes[name]]
        return Dims(rows=sum(sizes), cols=max(sizes), itemsize=FLOAT_BYTES, state=states)


def adapter_shapes(config: ModelConfig, workload: Workload) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Shapes of the LoRA pair (A, B) of every targeted linear: A is (rank, in), B is (out, rank)."""
    rank = workload.lora.rank
    found = {}
    for layer in range(config.num_layers):
        for linear in workload.lora.targets:
            rows, cols = config.linear_shape(linear)
            found[f"{layer}.{linear}"] = ((rank, cols), (rows, rank))
    return found
