"""The problem that the solver is given: a graph on a device, split into stretches with their menus, ready for any budget."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mebp.errors import InputError
from mebp.models.graph import Graph, Layer
from mebp.models.tensor import WeightId, align
from mebp.models.tile import stream_rows
from mebp.planner.effort import Effort, no_limit
from mebp.planner.layer.chain import Candidate, Stretch, head_candidate, stretches
from mebp.planner.recipe.lower import live_profile
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking, head_tile, whole_blocks
from mebp.planner.recipe.schedule import schedule
from mebp.planner.solver.bound import Limited, Relaxation
from mebp.planner.solver.rules import FlashKeepsUp
from mebp.planner.solver.variables import HeadOption
from mebp.sim.cost import CostModel
from mebp.sim.device import Device

LONGEST_STEP_NS = 10**15
HEAD_TILES = 4
SMALLEST_TILE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`base_ns` is the time of a step that recomputes nothing, its head apart; `forward_ns` that of its forward.

    `written_cap_bytes` lowers the device's cap on writes. `flash_share` is the part of forward and backward that plans may spend on
    storing and loading; more than all of it means waiting. Where unpacking has an engine of its own, `ahead` are the same problem
    with more and more weights unpacked by it before each use, in the last one all that an op reads whole.
    """

    graph: Graph
    device: Device
    cost: CostModel
    stretches: tuple[Stretch, ...]
    heads: tuple[HeadOption, ...]
    head_weight: Candidate | None
    base_ns: int
    forward_ns: int
    flash_share: float = 1.0
    written_cap_bytes: int | None = None
    ahead: tuple["Problem", ...] = ()

    @property
    def flash_keeps_up(self) -> FlashKeepsUp:
        """What flash can take: bytes by the cap, time by what runs concurrently."""
        backward_ns = self.base_ns - self.forward_ns
        store_ns, load_ns = (min(LONGEST_STEP_NS, int(self.flash_share * ns)) for ns in (self.forward_ns, backward_ns))
        return FlashKeepsUp(cap_bytes=self.cap_bytes, store_ns=store_ns, load_ns=load_ns)

    @property
    def cap_bytes(self) -> int:
        """Bytes that a step may write to flash: the device's cap, or less where that was asked for."""
        cap_bytes = int(self.device.runtime.flash_write_cap_bytes)
        return cap_bytes if self.written_cap_bytes is None else min(cap_bytes, self.written_cap_bytes)

    def limited(self, room: int) -> Limited:
        """The limits that a bound relaxes: what is written also has to be written while the forward runs."""
        cap = min(self.cap_bytes, int(self.flash_keeps_up.store_ns / 1e9 * self.device.hardware.flash_write))
        return Limited(room=room, cap=cap, base_ns=self.base_ns)

    def relaxations(self, room: int) -> tuple[Relaxation, Relaxation]:
        """The relaxations over the plans that placement can choose: memory priced at the head, and at the last layer."""
        first, second = (
            Relaxation(self.stretches, self.heads, self.head_weight, self.limited(room), at_last_layer=last)
            for last in (False, True)
        )
        return first, second

    def whole_relaxations(self, room: int) -> tuple[Relaxation, Relaxation]:
        """The relaxations over all plans of the language: any layer's input may also be recomputed from the layer below, and any
        weight unpacked once for all chunks of an op. Memory is priced at the head, which needs what it works on, and at the op of
        the last layer's backward that needs most.
        """
        input_ns = {layer.number: self._input_ns(layer) for layer in self.graph.layers}
        backward = max(map(self.graph.op_bytes, self.stretches[-1].layers[0].backward), default=0)
        repeats_ns = sum(self.cost.repeats_ns(op, op.weights) for op in self.graph.ops if op is not self.graph.head)
        first, second = (
            Relaxation(
                self.stretches,
                (self._fastest_head(0 if last else self.graph.op_bytes(self.graph.head)),),
                self.head_weight,
                Limited(room=room - last * backward, cap=self.cap_bytes, base_ns=self.base_ns - repeats_ns),
                input_ns=input_ns,
                at_last_layer=last,
            )
            for last in (False, True)
        )
        return first, second

    def _fastest_head(self, peak: int) -> HeadOption:
        """No head is faster, whatever its tile: streamed, or reading its weight unpacked, what that saves apart."""
        head = self.graph.head
        tiles = (*(option.tile for option in self.heads), head.dims.outs)
        saved_ns = self.head_weight.streaming_ns // self.head_weight.chunks if self.head_weight else 0
        streamed_ns = min(self.cost.op_ns(head, streamed=head.weights, tile=tile) for tile in tiles)
        unpacked_ns = min(self.cost.op_ns(head, streamed=(), tile=tile) for tile in tiles)
        return HeadOption(tile=head.dims.outs, peak=peak, duration_ns=min(streamed_ns, unpacked_ns + saved_ns))

    def class_bound_ns(self, room: int) -> int:
        """No plan that the solver looks for takes less time in `room` bytes of arena; no plan at all, where only those fit that
        wait for flash.
        """
        relaxations = self.relaxations(room)
        if self.ahead or not all(found.feasible for found in relaxations):
            return self.whole_bound_ns(room)
        return max(found.best().bound_ns for found in relaxations)

    def whole_bound_ns(self, room: int) -> int:
        """No plan of the language takes less time in `room` bytes of arena.

        With an engine of its own for unpacking a step takes at least what the processor has to do if unpacking costs
        it nothing, and at least half of all that the two have to do.
        """
        bound_ns = max(relaxation.best().bound_ns for relaxation in self.whole_relaxations(room))
        return max(self.ahead[-1].whole_bound_ns(room), bound_ns // 2) if self.ahead else bound_ns

    def _input_ns(self, layer: Layer) -> int:
        """The least that recomputing a layer's input costs: the ops below it that no menu of the layer below counts."""
        last = self.graph.producer[layer.input]
        if last.kind.gathers:
            return 0  # its own menu recomputes it
        return self.cost.op_ns(last, streamed=last.weights) - self.cost.repeats_ns(last, last.weights)


def pose(graph: Graph, device: Device, effort: Effort | None = None) -> Problem:
    """Work out the menus: one exact model per distinct layer. NoPlanInTime where the time of `effort` is over before."""
    require_time = effort.require_time if effort else no_limit
    problem = _pose(graph, CostModel(graph, device), require_time)
    if not device.unpacks_concurrently:
        return problem
    ahead = (_pose(graph, CostModel(graph, device, weights), require_time) for weights in _ahead_sets(graph, problem.cost))
    return replace(problem, ahead=tuple(ahead))


def _ahead_sets(graph: Graph, cost: CostModel) -> Iterator[frozenset[WeightId]]:
    """Weights to unpack ahead: those of the smallest size, of the two smallest sizes and so on, the head's in its turn."""
    read_whole = (op for op in graph.ops if op.kind.unpacks_whole and not op.backward)
    weights = [graph.weights[weight] for op in read_whole for weight in op.weights]
    weights = [weight for weight in weights if cost.unpack_ns(weight)]
    for most in sorted({weight.count for weight in weights}):
        yield frozenset(weight.id for weight in weights if weight.count <= most)


def _pose(graph: Graph, cost: CostModel, require_time: Callable[[], None]) -> Problem:
    device, head = cost.device, graph.head
    times = {op.id: cost.op_ns(op, streamed=op.weights) for op in graph.ops if op is not head}
    heads = head_options(graph, cost)
    forward_ns = sum(times[op.id] for op in graph.ops if not op.backward and op is not head)
    total = sum(times.values()) + max(option.duration_ns for option in heads)
    if total > LONGEST_STEP_NS:
        raise InputError(
            f"a step would take {total / 86_400e9:.3g} days on {device.name}: too long to plan; check the device's numbers"
        )
    return Problem(
        graph=graph,
        device=device,
        cost=cost,
        stretches=stretches(graph, cost, require_time, segmented=not _flash_takes_every_input(graph, device, cost, forward_ns)),
        heads=heads,
        head_weight=head_candidate(graph, cost),
        base_ns=sum(times.values()),
        forward_ns=forward_ns,
    )


def _flash_takes_every_input(graph: Graph, device: Device, cost: CostModel, forward_ns: int) -> bool:
    """Whether every layer's input can be written within the cap while the forward runs."""
    sizes = [graph.tensors[tensor].nbytes for tensor in graph.stream]
    return sum(sizes) <= device.runtime.flash_write_cap_bytes and sum(map(cost.store_ns, sizes)) <= forward_ns


def head_options(graph: Graph, cost: CostModel) -> tuple[HeadOption, ...]:
    """The head with every tile that it may have."""
    head = graph.head
    return tuple(
        HeadOption(tile=tile, peak=_head_peak(graph, cost, tile), duration_ns=cost.op_ns(head, streamed=head.weights, tile=tile))
        for tile in head_tiles(graph)
    )


def head_tiles(graph: Graph) -> tuple[int, ...]:
    """Tiles of logits: from as many rows as one streamed tile of weights has, halved a few times; and the recipes' own."""
    head = graph.head
    widest = min(stream_rows(head.dims.cols), head.dims.outs)
    tiles = (whole_blocks(max(min(SMALLEST_TILE, widest), widest >> halved)) for halved in range(HEAD_TILES))
    return tuple(dict.fromkeys((*tiles, head_tile(graph))))


def _head_peak(graph: Graph, cost: CostModel, tile: int) -> int:
    """Live bytes at the head above what layers keep: the stream's end, its norm, the head, and the norm's backward."""
    last = graph.stream[-1]
    recipe = Recipe(saving={last: Saving.KEEP}, unpacking=dict.fromkeys(cost.ahead, Unpacking.AHEAD), head_tile=tile)
    steps = schedule(graph, recipe, graph.around_head, frozenset({last}))
    return align(graph.tensors[last].nbytes) + max(live_profile(steps, graph))
