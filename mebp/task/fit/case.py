"""The regressors of a fit: one row per measured step, read off the plan of its method and off the model's shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mebp.errors import InputError
from mebp.models.build import build_graph
from mebp.models.catalogue import load_model
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.op import Part, Rate
from mebp.models.workload import Lora, Workload
from mebp.plan import Compute, Plan
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.device import Device
from mebp.sim.published import Moments, moments
from mebp.sim.simulate import simulate
from mebp.task.fit.measured import Measured

ATTENTION_SHARE = 0.5  # attained by attention, as a part of what products attain
LONGEST_STEP_S = 600.0  # of the models and lengths that anybody measured on a phone


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The regressors of one measurement.

    `work` are FLOPs of forward, backward and head, `base` seconds per FLOP of each on the profile before the fit,
    `small_s` the seconds of everything else; a peak is the fuller of two `moments` (see sim/published.py).
    """

    measured: Measured
    work: tuple[float, float, float]
    base: tuple[float, float, float]
    base_footprint_bytes: float
    small_s: float
    moments: Moments


def pose_cases(measured: Sequence[Measured], device: Device) -> tuple[Case, ...]:
    """Plan every measured step on the hardware of `device`, and read off the regressors."""
    for m in measured:
        if m.peak_bytes > device.hardware.ram_bytes:
            ram = device.hardware.ram_bytes / 1e6
            raise InputError(
                f"{m.name}: peak_mb = {m.peak_bytes / 1e6:g} is more than the {ram:g} MB of {device.name}: is it bytes?"
            )
        if m.step_s > LONGEST_STEP_S:
            raise InputError(f"{m.name}: step_s = {m.step_s:g} is above {LONGEST_STEP_S:g}: is it milliseconds?")
    return tuple(_case(m, device) for m in measured)


def simulated(cases: Sequence[Case], device: Device) -> tuple[tuple[int, int], ...]:
    """(peak bytes, step ns) of each measured method's plan on `device`: the rows of the table."""
    found = []
    for case in cases:
        graph, plan = _planned(case.measured, device)
        prediction = simulate(plan, graph, device)
        found.append((prediction.peak_bytes, prediction.step_ns))
    return tuple(found)


def _planned(measured: Measured, device: Device) -> tuple[Graph, Plan]:
    """The graph and plan of what was measured."""
    lora = Lora(rank=measured.lora_r)
    workload = Workload(seq_len=measured.seq_len, lora=lora, weights=weight_formats("int4-g64"))
    strategy = STRATEGIES[measured.method]
    graph = strategy.graph(build_graph(load_model(measured.model), workload))
    return graph, strategy.plan(graph, device, device.default_budget_bytes)


def _case(measured: Measured, device: Device) -> Case:
    graph, plan = _planned(measured, device)
    parts = simulate(plan, graph, device).time_breakdown
    small_s = sum(parts.get(part, 0) for part in (Part.ELEMENTWISE, Part.LAUNCH, Part.UPDATE)) / 1e9
    return Case(
        measured=measured,
        work=_work(graph, plan),
        base=_base(measured, device),
        base_footprint_bytes=device.runtime.footprint_bytes,
        small_s=small_s,
        moments=moments(graph),
    )


def _base(measured: Measured, device: Device) -> tuple[float, float, float]:
    """Seconds per FLOP of forward, backward and head on a profile, each with the unpacking of its weights."""
    unpack_s = 1 / (device.runtime.unpack_rate * 2 * measured.seq_len)
    forward, backward, head = (1 / device.rate(rate) for rate in (Rate.FORWARD_PRODUCT, Rate.BACKWARD_PRODUCT, Rate.HEAD))
    return forward + unpack_s, backward + unpack_s, head + unpack_s


def _work(graph: Graph, plan: Plan) -> tuple[float, float, float]:
    """FLOPs of forward and of backward products (attention's counted by its share, as forward), and of the head."""
    flops = dict.fromkeys(Rate, 0)
    for instruction in plan.instructions:
        if isinstance(instruction, Compute):
            op = graph.op[instruction.op]
            flops[op.kind.rate] += op.kind.flops(op)
    forward = flops[Rate.FORWARD_PRODUCT] + flops[Rate.ATTENTION] / ATTENTION_SHARE
    return forward, float(flops[Rate.BACKWARD_PRODUCT]), float(flops[Rate.HEAD])
