"""Execute a plan: real tensors in one arena, engines as threads, the order of mebp/order.py kept by waiting.

What an instruction does; engine.py says when.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from mebp.data.order import IGNORED
from mebp.errors import InputError, NotFinite
from mebp.executor.adapter import Adapter
from mebp.executor.arena import Arena
from mebp.executor.engine import Engines, cross_engine_waits
from mebp.executor.env import Clock, Env, Io, UpdateShare, dtype_of
from mebp.executor.ops.table import run_op
from mebp.executor.ops.update import take_back
from mebp.executor.readahead import ReadAhead, Use
from mebp.executor.rotary import rope_tables
from mebp.executor.spill import Spill
from mebp.models.format import WEIGHTS_FILE
from mebp.models.graph import Graph
from mebp.models.op import Part
from mebp.models.optimizer import Optimizer
from mebp.models.tensor import TensorId, WeightId
from mebp.models.tile import stream_rows
from mebp.plan import (
    Compute,
    Free,
    Instruction,
    Load,
    Place,
    Plan,
    Unpack,
    require_signature,
)
from mebp.plan import (
    Store as StoreInstruction,
)
from mebp.store.codec import read_rows
from mebp.store.reader import Store

GradientHook = Callable[[str, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One executed step: seconds, loss (mean over labelled tokens), and (start, end) ns of every instruction, 0 for frees.
    `gradient_norm` is the 2-norm of a deferred gradient before it was clipped, None where no such update was made. `chunked_ns` is
    what the ops within chunked ones took, by part.
    """

    seconds: float
    loss: float
    gradient_norm: float | None = None
    spans_ns: list[tuple[int, int]] = field(default_factory=list)
    chunked_ns: dict[Part, int] = field(default_factory=dict)


class Executor:
    """A plan bound to a store and adapters, ready to run steps. `arena.used_bytes` is the highest byte touched."""

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        store: Store,
        adapters: dict[str, Adapter],
        *,
        device: str = "cpu",
        spill_dir: Path | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        window_bytes: int = 0,
        clock: Clock | None = None,
        arena: Arena | None = None,
    ) -> None:
        """With `window_bytes`, compressed weights are read so far ahead of their use and dropped behind it (see readahead.py).
        Executors of other plans that train the same adapters are given one `clock`, and may be given one `arena`.
        """
        require_signature(plan, graph.signature, f"the graph of {graph.config.name}")
        store.header.require_model(graph.config, graph.workload.weights)
        self.plan = plan
        self.graph = graph
        self.arena = arena or Arena(plan.arena_bytes, torch.device(device))
        sizes = {i.tensor: graph.tensors[i.tensor].nbytes for i in plan.instructions if isinstance(i, StoreInstruction)}
        self.spill = Spill(sizes, spill_dir)
        self.env = _env(graph, store, adapters, torch.device(device), optimizer or Optimizer(), clock or Clock(), seed)
        self._waits = cross_engine_waits(plan)
        uses = _weight_uses(plan, graph, store) if window_bytes else []
        self._read_ahead = ReadAhead(store.folder / WEIGHTS_FILE, uses, window_bytes) if uses else None
        self._use_at = {use.index: number for number, use in reversed(list(enumerate(uses)))}
        self._places: dict[TensorId, Place] = {place.tensor: place for place in plan.resident}

    def step(
        self, ids: Tensor, labels: Tensor | None = None, on_gradient: GradientHook | None = None, share: UpdateShare | None = None
    ) -> StepResult:
        """Run one step on `ids` (batch, seq); `labels` (batch, seq) default to `ids` and are shifted here; -100 is not counted.
        `share` is the step's part in an update; by default each of `accumulate` steps counts alike, and the last is followed by it.

        `on_gradient(name, gradient)` sees every adapter gradient (`3.q.dA`) right before its update. InputError for ids or labels
        of another shape or type, or outside the vocabulary. NotFinite where the loss or a gradient is not finite: a loss that is
        not changes no adapter, a layer's gradient none of that layer and those below.
        """
        env = self.env
        require_tokens(self.graph, ids, "ids")
        if labels is not None:
            require_tokens(self.graph, labels, "labels", IGNORED)
        env.ids.copy_(ids.reshape(-1))
        env.labels.copy_(next_tokens(ids if labels is None else labels).reshape(-1))
        require_labelled(self.graph, env.labels)
        env.share = share or self._share()
        env.on_gradient = on_gradient
        env.losses.clear()
        env.chunked_ns.clear()
        env.gradient_norm = None
        self._take_arena()
        begin = time.perf_counter_ns()
        if self._read_ahead:
            self._read_ahead.begin()
        try:
            spans = Engines(self.plan, self._waits, self._run_at).run(begin)
        except NotFinite:
            take_back(env)
            raise
        finally:
            if self._read_ahead:
                self._read_ahead.end()
        seconds = (time.perf_counter_ns() - begin) / 1e9
        env.clock.step += 1
        env.clock.updates += env.share.last
        return StepResult(
            seconds=seconds,
            loss=mean(env.losses.values()),
            gradient_norm=env.gradient_norm,
            spans_ns=spans,
            chunked_ns=dict(env.chunked_ns),
        )

    def _share(self) -> UpdateShare:
        """A step's part in an update, where each counts alike."""
        accumulate = self.graph.workload.accumulate
        return UpdateShare(part=1 / accumulate, last=(self.env.clock.step + 1) % accumulate == 0)

    def _take_arena(self) -> None:
        """Unpack the plan's resident weights where another executor had the arena, or none yet."""
        if self.arena.owner is not self:
            self.arena.owner = self
            for place in self.plan.resident:
                self._unpack(WeightId(place.tensor), place)

    def _run_at(self, index: int, instruction: Instruction) -> None:
        if self._read_ahead and index in self._use_at:
            self._read_ahead.reached(self._use_at[index])
        self._run(instruction)

    def _run(self, instruction: Instruction) -> None:
        match instruction:
            case Compute():
                self._places |= {place.tensor: place for place in instruction.writes}
                op, streamed, tile = self.graph.op[instruction.op], instruction.streamed, instruction.tile
                io = Io(self.env, self.arena, op, self._places, instruction.scratch, streamed=streamed, tile=tile)
                run_op(io)
            case Unpack():
                self._places[instruction.place.tensor] = instruction.place
                self._unpack(instruction.weight, instruction.place)
            case StoreInstruction():
                self.spill.store(instruction.tensor, self._raw(self._places[instruction.tensor]))
            case Load():
                self._places[instruction.place.tensor] = instruction.place
                self.spill.load(instruction.place.tensor, self._raw(instruction.place))
            case Free():
                pass

    def _raw(self, place: Place) -> Tensor:
        """The bytes of a tensor (without its padding)."""
        return self.arena.view(place.offset, (self.graph.tensors[place.tensor].nbytes,), torch.int8)

    def _unpack(self, wid: WeightId, place: Place) -> None:
        """Decompress a whole weight, a cache-sized block of rows at a time."""
        weight, frozen = self.graph.weights[wid], self.env.frozen(wid)
        out = self.arena.view(place.offset, (weight.rows, weight.cols), dtype_of(self.graph))
        rows = stream_rows(weight.cols)
        for start in range(0, weight.rows, rows):
            read_rows(frozen[start : start + rows], out[start : start + rows])


def require_tokens(graph: Graph, tokens: Tensor, what: str, other: int | None = None) -> None:
    """Refuse tokens that are not whole numbers (batch, seq), each in the vocabulary or `other`."""
    shape = (graph.workload.batch_size, graph.workload.seq_len)
    if tuple(tokens.shape) != shape or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool:
        given = f"{what} are {tokens.dtype} {list(tokens.shape)}"
        raise InputError(f"{given}: must be whole numbers {list(shape)}, `batch_size` x `seq_len`")
    known = (tokens >= 0) & (tokens < graph.head.dims.outs)
    outside = tokens[~(known if other is None else known | (tokens == other))]
    if len(outside):
        also = "" if other is None else f", or {other}"
        raise InputError(f"{what} hold {int(outside[0])}: must be between 0 and {graph.head.dims.outs - 1}{also}")


def require_labelled(graph: Graph, labels: Tensor) -> None:
    """Refuse more labelled tokens than the head's op has rows for; `labels` (tokens,) are shifted already."""
    most = graph.workload.labelled
    if most is not None and (count := int((labels >= 0).sum())) > most:
        raise InputError(f"{count} tokens carry a label: the plan has room for {most}: plan with a larger `labelled`")


def next_tokens(tokens: Tensor) -> Tensor:
    """Labels: each position's next token, and -100 at the end of every sequence. (batch, seq) in and out."""
    labels = torch.full_like(tokens, IGNORED)
    labels[:, :-1] = tokens[:, 1:]
    return labels


def _env(
    graph: Graph,
    store: Store,
    adapters: dict[str, Adapter],
    device: torch.device,
    optimizer: Optimizer,
    clock: Clock,
    seed: int,
) -> Env:
    workload = graph.workload
    return Env(
        graph=graph,
        store=store,
        adapters=adapters,
        ids=torch.zeros(workload.tokens, dtype=torch.int64, device=device),
        labels=torch.zeros(workload.tokens, dtype=torch.int64, device=device),
        positions=torch.arange(workload.seq_len, device=device),
        tables=rope_tables(graph, device),
        device=device,
        optimizer=optimizer,
        clock=clock,
        seed=seed,
    )


def _weight_uses(plan: Plan, graph: Graph, store: Store) -> list[Use]:
    """What every instruction reads of the store's file, in the order of the plan;
    rows that are gathered here and there are left out.
    """
    found: list[Use] = []
    for index, instruction in enumerate(plan.instructions):
        match instruction:
            case Compute() if not graph.op[instruction.op].kind.gathers:
                weights = instruction.streamed
            case Unpack():
                weights = (instruction.weight,)
            case _:
                continue
        for weight in weights:
            for offset, nbytes, address in store.extents(graph.weights[weight].name):
                found.append(Use(index=index, offset=offset, nbytes=nbytes, address=address))
    return found
