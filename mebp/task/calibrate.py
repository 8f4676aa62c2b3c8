"""Measure this machine with the executor itself: a few layers of the chosen model, run as plans, and the flash.

What the runtime attains is read off the instruction times of those plans, so a prediction and the run that it predicts share one
code path. A step of more than SHORT_TOKENS is also measured at SHORT_TOKENS: that is how fast its chunks run. Everything goes into
a device profile named `host`.
"""

import os
import platform
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields, replace
from datetime import date
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mebp.executor.measure.job import Job
from mebp.executor.measure.worker import run_plan
from mebp.leftover import temporary_folder
from mebp.models.build import build_graph
from mebp.models.config import LINEARS, ModelConfig
from mebp.models.format import WeightFormat, formats_of
from mebp.models.graph import Graph
from mebp.models.kind.table import dense_flops, distinct_products, num_kernels
from mebp.models.op import Rate
from mebp.models.tensor import FLOAT_BYTES
from mebp.models.workload import Workload, whole_step
from mebp.plan import HOST, Compute, Unpack
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Unpacking
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.solver.problem import head_tiles
from mebp.sim.cost import NS
from mebp.sim.device import FRACTIONS, KEYS, SHAPES, WORKSPACE, Device, Hardware, Runtime, Source, range_of
from mebp.sim.profile import load_device
from mebp.sim.shape import shape_of
from mebp.task.timing import Plans, Runs, Timed, at_speed_of, attained, shape_factors

if TYPE_CHECKING:
    from mebp.executor.measure.rate import Rates

COLD_BYTES = 48e6  # of compressed weights: as many layers as fit in no cache, since no cache fits a model
VOCAB = 49_152
STEPS, ROUNDS = 3, 2
SHORT_TOKENS = 1024  # a step of more is long enough to be timed once, and may run in chunks of about so many
SPARE_BYTES = 1_500_000  # by which what the import takes differs from run to run
LARGEST_FRACTION = 2.0  # of what dense products attain alone: above it the difference is not noise
LEAST_SPREAD = 1.05
SPEEDS = ("hardware.product_flops", "hardware.memory_bandwidth", "runtime.unpack_rate")  # what a clock moves
ANY_DEVICE = "iphone15promax"
CPU_DEVICE = "laptop16"  # what its libraries keep is taken for a precision that was not measured here
HOST_WRITE_CAP = 0.0  # here a store takes processor time from the products, which is not modelled: a cap of one's own allows it
OP_BYTES = (
    6500  # of a plan, its graph and what a run keeps of both: 4b with 1,261 ops takes 8 MB where much is recomputed (CPython 3.11)
)


def calibrate(config: ModelConfig, workload: Workload, report: Callable[[str], None], folder: Path | None = None) -> Device:
    """Measure this machine at the shapes of `config` and `workload`; `report(what)` before each part. `folder` is where flash is
    measured.
    """
    from mebp.executor.measure.rate import measure_flash, measure_rates  # noqa: PLC0415  (imports torch)

    graph = build_graph(*_small(config, workload))
    with temporary_folder("mebp-calibrate", folder) as scratch:
        report("plain products and copies")
        rates = measure_rates(graph)
        report("a few layers of the model")
        store = _small_store(graph, scratch / "store")
        long = workload.tokens > SHORT_TOKENS
        steps, rounds = (1, 1) if long else (STEPS, ROUNDS)
        runs, spread = _run(calibration_plans(graph), Job(store=store, steps=steps, spill_dir=scratch), rounds)
        lengths = [runs]
        if long:
            report("the same layers in fewer tokens")
            lengths.insert(0, _shorter(runs, Job(store=store, steps=steps, spill_dir=scratch)))
        report("flash")  # last: what is written out afterwards slows the processor for seconds
        read, write = measure_flash(scratch)
    factor = rates.fp32_factor if workload.precision == "fp32" else 1.0
    mix = _dense_rate(build_graph(config, workload)) / _dense_rate(graph)  # of the whole model's shapes, against the few layers'
    dense = _peak(runs, mix * dense_flops(graph.ops) / runs.streamed.run.floor_s)
    device = Device(
        name=HOST,
        title=f"{machine_title()}, measured with {config.name} at {workload.seq_len} tokens",
        hardware=_hardware(rates, dense * factor, read, write),
        runtime=_runtime(runs, rates, dense),
        sources=_sources(()),
    )
    shapes = dict(item for one in lengths for item in shape_factors(device, one).items())
    spaces = dict(item for one in lengths for item in _workspace(one).items())
    sources = _sources((*(f"{SHAPES}.{name}" for name in shapes), *(f"{WORKSPACE}.{name}" for name in spaces)))
    for key in SPEEDS:
        sources[key] = replace(sources[key], range=(device.value(key) / spread, device.value(key) * spread))
    return replace(device, shapes=shapes, workspace=spaces, sources=sources)


def implausible(device: Device) -> list[str]:
    """Keys whose measured values are out of range: a disturbed measurement, or a model too small to time."""
    return [key for key in device.sources if not range_of(key)[0] <= device.value(key) <= range_of(key)[1]]


def bounded(device: Device) -> Device:
    """The profile with numbers that no profile may have brought to the end of their range, which is said of each."""
    for key in implausible(device):
        low, high = range_of(key)
        value = min(high, max(low, device.value(key)))
        source = Source(kind="assumed", source=f"measured as {device.value(key):.3g}, which is out of range")
        device = replace(device.with_value(key, value), sources={**device.sources, key: source})
    return device


def machine_title() -> str:
    """This machine in a few words, to tell it from others."""
    memory_gb = psutil.virtual_memory().total / 1e9
    return f"this machine ({_processor()}, {os.cpu_count()} cores, {memory_gb:.0f} GB)"


def _processor() -> str:
    """The processor's own name, where the system says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def calibration_plans(graph: Graph) -> Plans:
    """What calibration runs: recipes that do not depend on the device, so any profile will do."""
    device = load_device(ANY_DEVICE)
    recipe, tiles = STRATEGIES["checkpoint-1"].recipe(graph, device, 0), head_tiles(graph)
    unpacking = {weight: Unpacking.RESIDENT for op in graph.ops if op.kind.is_linear for weight in op.weights}
    streamed = replace(recipe, head_tile=max(tiles))  # where tokens are many the recipe's own is the narrowest
    resident = replace(recipe, unpacking=unpacking, head_tile=min(tiles))
    return Plans(
        streamed=lower(graph, device, streamed, name="streamed", budget_bytes=0),
        resident=lower(graph, device, resident, name="resident", budget_bytes=0),
        whole=STRATEGIES["mesp"].plan(graph, device, 0),
        graph=graph,
    )


def _hardware(rates: "Rates", product_flops: float, flash_read: float, flash_write: float) -> Hardware:
    memory = psutil.virtual_memory()
    return Hardware(
        ram_bytes=memory.total,
        memory_bandwidth=rates.memory_bandwidth,
        product_flops=product_flops,
        flash_read=flash_read,
        flash_write=flash_write,
        flash_life_bytes=0.0,
        app_limit_bytes=memory.total,
        page_cache_bytes=memory.available,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        sustained_factor=1.0,
        power_watts=15.0,
    )


def _run(plans: Plans, job: Job, rounds: int) -> tuple[Runs, float]:
    """The plans run one after another, some rounds of them, and the fastest run of each, all brought to the speed that the machine
    had in the streamed one; and how many times the fastest step of a plan its slowest took. A neighbour that comes and goes slows
    what is measured, and never speeds it up.
    """
    order = (plans.streamed, plans.resident, plans.whole)
    by_plan = list(zip(*([run_plan(plan, job) for plan in order] for _ in range(rounds)), strict=True))
    streamed, resident, whole = (min(runs, key=lambda run: statistics.median(run.step_s)) for runs in by_plan)
    steps = [[second for run in runs for second in run.step_s] for runs in by_plan]
    spread = max(LEAST_SPREAD, *(max(seconds) / min(seconds) for seconds in steps))
    runs = Runs(
        streamed=Timed(graph=plans.graph, plan=plans.streamed, run=streamed),
        resident=Timed(graph=plans.graph, plan=plans.resident, run=at_speed_of(resident, streamed)),
        whole=Timed(graph=plans.graph, plan=plans.whole, run=at_speed_of(whole, streamed)),
    )
    return runs, spread


def _shorter(runs: Runs, job: Job) -> Runs:
    """The same plans in SHORT_TOKENS, at the speed that the machine had in `runs`."""
    graph = runs.streamed.graph
    labelled = graph.workload.labelled and min(graph.workload.labelled, SHORT_TOKENS)
    short = build_graph(graph.config, replace(graph.workload, seq_len=SHORT_TOKENS, batch_size=1, labelled=labelled))
    found, _ = _run(calibration_plans(short), job, 1)
    work = dense_flops(graph.ops) / dense_flops(short.ops)

    def at_speed(one: Timed) -> Timed:
        return replace(one, run=at_speed_of(one.run, runs.streamed.run, work))

    return Runs(streamed=at_speed(found.streamed), resident=at_speed(found.resident), whole=at_speed(found.whole))


def _dense_rate(graph: Graph) -> float:
    """FLOP/s of a step's dense products, measured here and now."""
    from mebp.executor.measure.floor import floor_seconds  # noqa: PLC0415  (imports torch)

    return dense_flops(graph.ops) / floor_seconds(graph)


def _small(config: ModelConfig, workload: Workload) -> tuple[ModelConfig, Workload]:
    """A few layers of a model, with a vocabulary that is soon walked, and the workload on them, which runs whole: formats follow
    their layers.
    """
    workload = whole_step(workload)
    layers, formats = _few_layers(config, workload), workload.weights
    found = {f"{at}.{name}": formats.of(f"{layer}.{name}") for at, layer in enumerate(layers) for name in LINEARS}
    found["embedding"] = formats.of("embedding" if config.tied else "head")
    windows = tuple(config.windows[layer] for layer in layers)
    small = replace(config, windows=windows, vocab=min(config.vocab, VOCAB), tied=True)
    return small, replace(workload, method="backprop", evaluations=1, layer_copies=False, weights=formats_of(found))


def _few_layers(config: ModelConfig, workload: Workload) -> tuple[int, ...]:
    """As many layers as it takes, two at least, until their weights stay in no cache; one of every kind among them."""

    def kind(layer: int) -> tuple[int, tuple[WeightFormat, ...]]:
        return config.windows[layer], tuple(workload.weights.of(f"{layer}.{name}") for name in LINEARS)

    every = range(config.num_layers)
    first = {kind(layer): layer for layer in reversed(every)}.values()
    nbytes = sum(fmt.nbytes(*config.linear_shape(name)) for name, fmt in zip(LINEARS, kind(0)[1], strict=True))
    count = max(min(config.num_layers, max(2, ceil(COLD_BYTES / nbytes))), len(first))
    others = [layer for layer in reversed(every) if layer not in first]
    return tuple(sorted([*first, *others[: count - len(first)]]))


def _small_store(graph: Graph, folder: Path) -> Path:
    from mebp.store.synthetic import synthesize  # noqa: PLC0415  (imports torch)

    return synthesize(folder, graph.config, graph.workload.weights)


def _peak(runs: Runs, dense: float) -> float:
    """FLOP/s of dense products, `dense` as timed alone. Tiny products are mostly overhead when timed alone: where a step
    attains more than LARGEST_FRACTION times that, its rate counts.
    """
    fastest = max(attained(runs).rates[rate] for rate in FRACTIONS)
    return fastest if fastest > LARGEST_FRACTION * dense else dense


def _runtime(runs: Runs, rates: "Rates", peak: float) -> Runtime:
    """What the runtime gets out of the hardware; `peak` are the FLOP/s of dense products. Memory is the streamed run's."""
    graph, plan, run = runs.streamed.graph, runs.streamed.plan, runs.streamed.run
    found = attained(runs)
    other = load_device(CPU_DEVICE).runtime
    per_kernel = {2: other.kernel_bytes, FLOAT_BYTES: other.kernel_bytes_fp32}
    per_kernel[graph.workload.itemsize] = _kernel_bytes(runs)
    launches = sum(isinstance(i, Compute | Unpack) for i in plan.instructions)
    between_s = run.step_s[-1] - run.busy_ns / NS
    return Runtime(
        **{name: found.rates[rate] / peak for rate, name in FRACTIONS.items()},
        bandwidth_fraction=found.rates[Rate.MEMORY] / rates.memory_bandwidth,
        unpack_rate=found.unpack,
        fp32_factor=rates.fp32_factor,
        launch_seconds=max(1e-6, between_s) / launches,
        flash_latency_seconds=1e-4,
        unpack_beside=0.0,
        footprint_bytes=run.baseline_bytes + SPARE_BYTES,
        kernel_bytes=per_kernel[2],
        kernel_bytes_fp32=per_kernel[FLOAT_BYTES],
        op_bytes=OP_BYTES,
        kept_logits=0.0,
        kept_heads=0.0,
        kept_scores=0.0,
        kept_adapter_bytes=0.0,
        recommended_budget_bytes=min(2e9, psutil.virtual_memory().total / 4),
        flash_write_cap_bytes=HOST_WRITE_CAP,
    )


def _kernel_bytes(runs: Runs) -> float:
    """What the libraries kept for each kernel of the streamed run: its peak beyond plan, graph and what is known outside."""
    graph, plan, run = runs.streamed.graph, runs.streamed.plan, runs.streamed.run
    known = plan.arena_bytes + sum(graph.outside_bytes.values()) + OP_BYTES * len(graph.ops)
    return max(0.0, (run.peak_bytes - run.baseline_bytes - known) / num_kernels(graph.ops))


def _workspace(runs: Runs) -> dict[str, float]:
    """The same by the shape of each product, for which it stays when another model is measured."""
    per_kernel = _kernel_bytes(runs)
    return {shape_of(op): float(round(op.kind.kernels(op) * per_kernel)) for op in distinct_products(runs.streamed.graph.ops)}


def _sources(by_shape: Iterable[str]) -> dict[str, Source]:
    """Where each number comes from, those measured by shape (`shapes.x`, `workspace.x`) among them."""
    assumed = {
        "hardware.sustained_factor",
        "hardware.power_watts",
        "hardware.flash_life_bytes",
        "runtime.flash_latency_seconds",
        "runtime.unpack_beside",
    }
    assumed |= {f"runtime.{field.name}" for field in fields(Runtime) if field.name.startswith("kept_")}
    assumed |= {"runtime.recommended_budget_bytes", "runtime.flash_write_cap_bytes", "hardware.app_limit_bytes"}
    measured = Source(kind="measured", source=f"mebp-plan calibrate, {date.today().isoformat()}")
    not_measured = Source(kind="assumed", source="mebp-plan calibrate does not measure it")
    found = {key: not_measured if key in assumed else measured for key in KEYS}
    return found | dict.fromkeys(by_shape, measured)
