"""What a step is collected in: tensors, weights and ops in program order, and the extents that ops have. Knows no model family."""

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import replace

from mebp.models.chunk import chunk_extents, chunked_op, whole_extent
from mebp.models.config import LinearName, ModelConfig
from mebp.models.graph import AdapterShape
from mebp.models.kind.table import KINDS
from mebp.models.op import Chunks, Dims, Op, OpId
from mebp.models.tensor import FLOAT_BYTES, Role, Tensor, TensorId, Weight, WeightId
from mebp.models.workload import Workload


class StepBuilder:
    """Tensors, weights and ops of one training step, added one after another. While a chunked op is arranged, what is added is
    part of it, but for tensors that span the sequence.
    """

    def __init__(self, config: ModelConfig, workload: Workload) -> None:
        self.config = config
        self.workload = workload
        self.adapters = adapter_shapes(config, workload)
        self.tensors: MutableMapping[TensorId, Tensor] = {}
        self.weights: dict[WeightId, Weight] = {}
        self.ops: list[Op] = []
        self._extent = whole_extent(workload)
        self._spanning: Collection[TensorId] | None = None  # of a chunked op's tensors, None while there is none
        self._made: dict[TensorId, Tensor] = {}
        for role in ("embedding",) if config.tied else ("embedding", "head"):
            self._weight(role, None, config.vocab, config.hidden)
        for layer in range(config.num_layers):
            for linear, (rows, cols) in config.linear_shapes().items():
                self._weight(linear, layer, rows, cols)

    def _append(
        self,
        kind: str,
        name: str,
        layer: int | None,
        dims: Dims,
        *,
        reads: Mapping[str, TensorId] | None = None,
        writes: Mapping[str, TensorId] | None = None,
        updates: Mapping[str, TensorId] | None = None,
        params: object = None,
        weight: WeightId | None = None,
        vectors: tuple[str, ...] = (),
        adapters: tuple[str, ...] = (),
    ) -> Op:
        """Append an op; returns it."""
        op = Op(
            id=OpId(name),
            kind=KINDS[kind],
            layer=layer,
            dims=dims,
            params=params,
            reads=dict(reads or {}),
            writes=dict(writes or {}),
            updates=dict(updates or {}),
            weights=(weight,) if weight else (),
            vectors=vectors,
            adapters=adapters,
        )
        self.ops.append(op)
        return op

    def _chunked(
        self, kind: str, name: str, layer: int | None, spanning: Collection[TensorId], arrange: Callable[[], object]
    ) -> None:
        """Append a chunked op of what `arrange` adds; of the tensors that it makes, those in `spanning` span the sequence."""
        tensors, ops, parts = self.tensors, self.ops, []
        self._spanning, self._made = spanning, {}
        for extent in chunk_extents(self.workload):
            own: dict[TensorId, Tensor] = {}
            self._extent, self.tensors, self.ops = extent, ChainMap(own, self._made, tensors), []
            arrange()
            parts.append(Chunks(count=extent.count, tokens=extent.tokens, ops=tuple(self.ops), tensors=own))
        self.tensors, self.ops, self._extent, self._spanning = tensors, ops, whole_extent(self.workload), None
        self.tensors.update(self._made)
        self.ops.append(chunked_op(KINDS[kind], name, layer, tuple(parts), self._made))

    @property
    def _in_chunk(self) -> bool:
        """Whether a chunked op is being arranged."""
        return self._spanning is not None

    def _tokens_of(self, tensor: str) -> int:
        """Rows of a tensor with one for each token."""
        return self.workload.tokens if self._spanning is None or tensor in self._spanning else self._extent.tokens

    def _tensor(
        self, prefix: str, name: str, shape: tuple[int, ...], role: Role, layer: int | None, *, itemsize: int = 0
    ) -> TensorId:
        """Add a tensor whose id is `prefix` and, behind it, the name within its layer."""
        tid = TensorId(f"{prefix}{name}")
        size = itemsize or self.workload.itemsize
        summed = role in (Role.ADAPTER_GRADIENT, Role.LOSS)
        spans = self._spanning is not None and (summed or tid in self._spanning)
        target = self._made if spans else self.tensors
        target[tid] = Tensor(id=tid, name=name, shape=shape, itemsize=size, role=role, layer=layer)
        return tid

    def _activation(self, prefix: str, name: str, layer: int | None, width: int) -> dict[str, TensorId]:
        """The output of a forward op, (tokens, width), in slot y."""
        shape = (self._tokens_of(f"{prefix}{name}.out"), width)
        return {"y": self._tensor(prefix, f"{name}.out", shape, Role.ACTIVATION, layer)}

    def _gradient(self, layer: int, of: str, width: int, *, itemsize: int = 0) -> TensorId:
        prefix, name = f"{layer}.", f"{of}.out.grad"
        return self._tensor(prefix, name, (self._tokens_of(f"{prefix}{name}"), width), Role.GRADIENT, layer, itemsize=itemsize)

    def _weight(self, role: str, layer: int | None, rows: int, cols: int) -> None:
        prefix = "" if layer is None else f"{layer}."
        wid = WeightId(f"{prefix}{role}.weight")
        fmt = self.workload.weights.of(f"{prefix}{role}")
        self.weights[wid] = Weight(id=wid, name=f"{prefix}{role}", role=role, layer=layer, rows=rows, cols=cols, format=fmt)
        self._tensor(prefix, f"{role}.weight", (rows, cols), Role.WEIGHT, layer)

    def _layer_weight(self, layer: int, name: LinearName) -> WeightId:
        return WeightId(f"{layer}.{name}.weight")

    def _adapters(self, layer: int, name: LinearName) -> tuple[str, ...]:
        return (found,) if (found := f"{layer}.{name}") in self.adapters else ()

    def _dims(self, *, rows: int = 0, cols: int = 0, outs: int = 0) -> Dims:
        return Dims(rows=rows or self._extent.tokens, cols=cols, outs=outs, itemsize=self.workload.itemsize)

    def _norm_dims(self, width: int = 0, count: int = 1) -> Dims:
        """Dims of a norm over the hidden size, or over each of `count` parts of `width`."""
        return self._dims(rows=self._extent.tokens * count, cols=width or self.config.hidden)

    def _linear_dims(self, layer: int, name: LinearName) -> Dims:
        rows, cols = self.config.linear_shape(name)
        rank = self.workload.lora.rank if self._adapters(layer, name) else 0
        return replace(self._dims(cols=cols, outs=rows), rank=rank)

    def _rope_dims(self, layer: int, heads: int) -> Dims:
        return replace(self._attention_dims(layer), cols=heads * self.config.head_dim, heads=heads, pairs=0)

    def _attention_dims(self, layer: int) -> Dims:
        c, w, extent = self.config, self.workload, self._extent
        window = c.windows[layer]
        return Dims(
            rows=extent.tokens,
            batch=extent.batch,
            seq=extent.seq,
            first=extent.first,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            window=window,
            pairs=extent.pairs(window),
            itemsize=w.itemsize,
        )

    def _adapter_dims(self, adapters: tuple[str, ...], states: int) -> Dims:
        sizes = [rows * cols for name in adapters for rows, cols in self.adapters[name]]
        return Dims(rows=sum(sizes), cols=max(sizes), itemsize=FLOAT_BYTES, state=states)


def adapter_shapes(config: ModelConfig, workload: Workload) -> dict[str, AdapterShape]:
    """Shapes of the LoRA pair (A, B) of every targeted linear: A is (rank, in), B is (out, rank)."""
    rank = workload.lora.rank
    found: dict[str, AdapterShape] = {}
    for layer in (layer for layer in range(config.num_layers) if workload.lora.trains(layer, config.num_layers)):
        for linear in workload.lora.targets:
            rows, cols = config.linear_shape(linear)
            found[f"{layer}.{linear}"] = ((rank, cols), (rows, rank))
    return found
