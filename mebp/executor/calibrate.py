"""Measure this machine with the executor itself: a few layers of the chosen model, run as plans, and the flash beside it.

What the runtime attains is read off the instruction times of those plans, so a prediction and the run that it predicts share one
code path. Everything goes into a device profile named `host`.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from math import ceil
from pathlib import Path

import psutil

from mebp.errors import StoreError
from mebp.executor.worker import Job, Measurement, run_plan
from mebp.models.build import build_graph
from mebp.models.config import LINEARS, ModelConfig
from mebp.models.graph import Graph
from mebp.models.kind import KINDS, Part, dense_flops, num_kernels
from mebp.models.workload import Workload
from mebp.plan import Compute, Plan, Unpack
from mebp.sim.device import KEYS, Device, Hardware, Runtime, Source

COLD_BYTES = 48e6  # of compressed weights: layers are taken until no cache holds them all, as none holds a model's
VOCAB = 49_152
STEPS = 3
SPARE_BYTES = 1_500_000  # by which what the import takes differs from run to run
LEAST_SPREAD = 1.05
SPEEDS = ("hardware.product_flops", "hardware.memory_bandwidth", "runtime.unpack_rate")  # what a clock moves
FLASH_BYTES = 128 << 20
HOST_WRITE_CAP = 0.0  # here a store takes processor time from the products, which is not modelled: --max-flash-write allows it
OP_BYTES = (
    6500  # of a plan, its graph and what a run keeps of both: 4b with 1,261 ops takes 8 MB where much is recomputed (CPython 3.11)
)
Lower = Callable[[str, Graph], Plan]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What torch attains here on copies, and how much slower fp32 products are."""

    memory_bandwidth: float
    fp32_factor: float


def calibrate(config: ModelConfig, workload: Workload, lower: Lower, report: Report, folder: Path | None = None) -> Device:
    """Measure this machine at the shapes of `config` and `workload`; `lower(name, graph)` plans a strategy by name.

    Takes the planner as a function because the executor does not import it. `folder` is where flash is measured.
    """
    small = replace(config, windows=config.windows[-_num_layers(config, workload) :], vocab=min(config.vocab, VOCAB), tied=True)
    graph = build_graph(small, replace(workload, method="backprop"))
    with tempfile.TemporaryDirectory(prefix="mebp-calibrate-", dir=folder) as scratch:
        report("plain products and copies")
        rates = measure_rates(graph)
        report("a few layers of the model")
        store = _small_store(graph, Path(scratch) / "store")
        plans = {name: lower(name, graph) for name in ("mesp", "checkpoint-1")}
        runs = {name: run_plan(plan, Job(store=store, steps=STEPS, spill_dir=Path(scratch))) for name, plan in plans.items()}
        report("flash")  # last: what is written out afterwards slows the processor for seconds
        read, write = measure_flash(Path(scratch))
    factor = rates.fp32_factor if workload.precision == "fp32" else 1.0
    runs["mesp"] = _at_speed_of(runs["mesp"], runs["checkpoint-1"])
    mix = _dense_rate(build_graph(config, workload)) / _dense_rate(graph)  # of the whole model's shapes, against the few layers'
    dense = mix * dense_flops(graph.ops) / runs["checkpoint-1"].floor_s
    runtime = _runtime(graph, plans, runs, rates, dense)
    hardware = Hardware(
        ram_bytes=psutil.virtual_memory().total,
        memory_bandwidth=rates.memory_bandwidth,
        product_flops=dense * factor,
        flash_read=read,
        flash_write=write,
        app_limit_bytes=psutil.virtual_memory().total,
        page_cache_bytes=psutil.virtual_memory().available,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        sustained_factor=1.0,
        power_watts=15.0,
    )
    title = f"this machine ({platform.machine()}, {os.cpu_count()} cores), measured with {config.name} at {workload.seq_len} tokens"
    spread = max(LEAST_SPREAD, *(max(run.step_s) / min(run.step_s) for run in runs.values()))
    device = Device(name="host", title=title, hardware=hardware, runtime=runtime, sources=_sources())
    ranges = {key: (device.value(key) / spread, device.value(key) * spread) for key in SPEEDS}
    return replace(device, sources={**device.sources, **{k: replace(device.sources[k], range=r) for k, r in ranges.items()}})


def _at_speed_of(run: Measurement, other: Measurement) -> Measurement:
    """A run as it would have been in `other`'s time: the floor of each says how fast the machine was."""
    factor = other.floor_s / run.floor_s
    return replace(run, spans_ns=tuple((round(start * factor), round(end * factor)) for start, end in run.spans_ns))


def _dense_rate(graph: Graph) -> float:
    """FLOP/s of a step's dense products, measured here and now."""
    from mebp.executor.floor import floor_seconds  # noqa: PLC0415  (imports torch)

    return dense_flops(graph.ops) / floor_seconds(graph)


def _num_layers(config: ModelConfig, workload: Workload) -> int:
    """How many layers it takes, two at least, until their weights stay in no cache."""
    nbytes = sum(workload.weights.nbytes(*config.linear_shape(name)) for name in LINEARS)
    return min(config.num_layers, max(2, ceil(COLD_BYTES / nbytes)))


def _small_store(graph: Graph, folder: Path) -> Path:
    from mebp.executor.synthetic import synthesize  # noqa: PLC0415  (imports torch)

    return synthesize(folder, graph.config, graph.workload.weights)


def measure_rates(graph: Graph) -> Rates:
    """Dense products at the shapes of the graph's linears, and a large copy."""
    import torch  # noqa: PLC0415

    shapes = {(op.dims.rows, op.dims.cols, op.dims.outs) for op in graph.ops if op.kind == "linear"}
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        total = 0.0
        for rows, cols, outs in shapes:
            x, w, y = (
                torch.randn(rows, cols).to(dtype),
                torch.randn(outs, cols).to(dtype),
                torch.empty(rows, outs, dtype=dtype),
            )
            total += _median(lambda x=x, w=w, y=y: torch.mm(x, w.T, out=y))  # type: ignore[misc]
        seconds[dtype] = total
    source = torch.ones(64 << 20, dtype=torch.int8)
    target = torch.empty_like(source)
    copy = _median(lambda: target.copy_(source))
    return Rates(
        memory_bandwidth=2 * source.numel() / copy,
        fp32_factor=max(1.0, seconds[torch.float32] / seconds[torch.bfloat16]),
    )


def measure_flash(folder: Path) -> tuple[float, float]:
    """(read, write) bytes/s of a file in `folder`, written through to the device and read with its cached pages dropped."""
    path = folder / "flash"
    block = os.urandom(4 << 20)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        begin = time.perf_counter()
        for _ in range(FLASH_BYTES // len(block)):
            os.write(file, block)
        os.fsync(file)
        write = FLASH_BYTES / (time.perf_counter() - begin)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        for offset in range(0, FLASH_BYTES, len(block)):
            os.pread(file, len(block), offset)
        read = FLASH_BYTES / (time.perf_counter() - begin)
        os.close(file)
    except OSError as error:
        raise StoreError(
            f"cannot measure flash in {folder.parent}: {error.strerror}: name another folder with --spill-dir"
        ) from None
    return read, write


def _median(run: Callable[[], object], repeats: int = 7) -> float:
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _runtime(graph: Graph, plans: dict[str, Plan], runs: dict[str, Measurement], rates: Rates, peak: float) -> Runtime:
    """Rates of every part, as fractions of `peak`, the FLOP/s of dense products: products and attention from the plan with unpacked
    weights, the head from the streamed one.
    """
    whole, streamed = (
        _part_seconds(graph, plans["mesp"], runs["mesp"]),
        _part_seconds(graph, plans["checkpoint-1"], runs["checkpoint-1"]),
    )
    work = _part_work(graph, plans["mesp"])
    rates_of = {kind: _attained(graph, plans["mesp"], runs["mesp"], kind) for kind in ("linear", "linear_backward")}
    extra, streamed_weights = _streaming(graph, plans["checkpoint-1"], runs["checkpoint-1"], rates_of)
    unpack_rate = (work[Part.UNPACK] + streamed_weights) / (whole[Part.UNPACK] + extra)
    head = next(op for op in graph.ops if op.kind == "head")
    head_seconds = streamed[Part.HEAD] - graph.weights[head.weights[0]].count / unpack_rate
    plan, run = plans["checkpoint-1"], runs["checkpoint-1"]
    busy = sum(end - start for start, end in run.spans_ns) / 1e9
    known = plan.arena_bytes + sum(graph.outside_bytes.values()) + OP_BYTES * len(graph.ops)
    workspace = run.peak_bytes - run.baseline_bytes - known
    launches = sum(isinstance(i, Compute | Unpack) for i in plan.instructions)
    return Runtime(
        product_fraction=rates_of["linear"] / peak,
        backward_fraction=rates_of["linear_backward"] / peak,
        attention_fraction=work[Part.ATTENTION] / whole[Part.ATTENTION] / peak,
        head_fraction=KINDS["head"].flops(head) / max(head_seconds, streamed[Part.HEAD] / 4) / peak,
        bandwidth_fraction=work[Part.ELEMENTWISE] / whole[Part.ELEMENTWISE] / rates.memory_bandwidth,
        unpack_rate=unpack_rate,
        fp32_factor=rates.fp32_factor,
        launch_seconds=max(1e-6, run.step_s[-1] - busy) / launches,
        flash_latency_seconds=1e-4,
        unpack_beside=0.0,
        footprint_bytes=run.baseline_bytes + SPARE_BYTES,
        kernel_bytes=max(0, workspace) / num_kernels(graph.ops),
        op_bytes=OP_BYTES,
        recommended_budget_bytes=min(2e9, psutil.virtual_memory().total / 4),
        flash_write_cap_bytes=HOST_WRITE_CAP,
    )


def _part_seconds(graph: Graph, plan: Plan, run: Measurement) -> dict[Part, float]:
    """Seconds of the last step by part, as the executor measured them."""
    found = dict.fromkeys(Part, 0.0)
    for instruction, (start, end) in zip(plan.instructions, run.spans_ns, strict=True):
        match instruction:
            case Compute():
                found[KINDS[graph.op[instruction.op].kind].part] += (end - start) / 1e9
            case Unpack():
                found[Part.UNPACK] += (end - start) / 1e9
            case _:
                pass
    return found


def _attained(graph: Graph, plan: Plan, run: Measurement, kind: str) -> float:
    """FLOP/s of all instructions of one op kind."""
    flops = nanoseconds = 0
    for instruction, (start, end) in zip(plan.instructions, run.spans_ns, strict=True):
        if isinstance(instruction, Compute) and graph.op[instruction.op].kind == kind:
            flops += KINDS[kind].flops(graph.op[instruction.op])
            nanoseconds += end - start
    return flops / nanoseconds * 1e9


def _streaming(graph: Graph, plan: Plan, run: Measurement, rates: dict[str, float]) -> tuple[float, int]:
    """Seconds that streamed products take above unpacked ones at `rates` (FLOP/s), and the weights that they unpack: none of
    either where noise has eaten the difference.
    """
    seconds, weights = 0.0, 0
    for instruction, (start, end) in zip(plan.instructions, run.spans_ns, strict=True):
        if isinstance(instruction, Compute) and instruction.streamed and graph.op[instruction.op].kind in rates:
            op = graph.op[instruction.op]
            seconds += (end - start) / 1e9 - KINDS[op.kind].flops(op) / rates[op.kind]
            weights += graph.weights[op.weights[0]].count
    return (seconds, weights) if seconds > 0 else (0.0, 0)


def _part_work(graph: Graph, plan: Plan) -> dict[Part, float]:
    """What a step does by part: FLOPs of products and attention, bytes of element-wise ops, weights unpacked."""
    found = dict.fromkeys(Part, 0.0)
    for instruction in plan.instructions:
        match instruction:
            case Compute():
                op = graph.op[instruction.op]
                kind = KINDS[op.kind]
                found[kind.part] += kind.moved(op) if kind.part is Part.ELEMENTWISE else kind.flops(op)
            case Unpack():
                found[Part.UNPACK] += graph.weights[instruction.weight].count
            case _:
                pass
    return found


def _sources() -> dict[str, Source]:
    assumed = {
        "hardware.sustained_factor",
        "hardware.power_watts",
        "runtime.flash_latency_seconds",
        "runtime.unpack_beside",
    }
    assumed |= {"runtime.recommended_budget_bytes", "runtime.flash_write_cap_bytes", "hardware.app_limit_bytes"}
    today = date.today().isoformat()
    return {
        key: Source(kind="assumed", source="mebp-plan calibrate does not measure it")
        if key in assumed
        else Source(kind="measured", source=f"mebp-plan calibrate, {today}")
        for key in KEYS
    }
