"""How far a prediction can be off: each uncertain number of a profile is moved to the ends of its range, the plan timed again.

A number's range is its profile's own, or by its kind: measured 5% either way, vendor 10%, assumed 30%. The range of a prediction is
the root-sum-square of the individual effects, upwards and downwards apart, assuming independent errors. It says nothing of errors
that the model has with every number right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot

from mebp.models.graph import Graph
from mebp.order import predecessors
from mebp.plan import Plan
from mebp.sim.cost import CostModel
from mebp.sim.device import RANGES, Device, Provenance, Source
from mebp.sim.footprint import footprint_bytes
from mebp.sim.simulate import step_ends

SHARE: dict[Provenance, float] = {"measured": 0.05, "vendor": 0.10, "assumed": 0.30}
UNCERTAIN = (
    "hardware.memory_bandwidth",
    "hardware.product_flops",
    "hardware.flash_read",
    "hardware.flash_write",
    "hardware.page_cache_bytes",
    "runtime.product_fraction",
    "runtime.backward_fraction",
    "runtime.attention_fraction",
    "runtime.head_fraction",
    "runtime.bandwidth_fraction",
    "runtime.unpack_rate",
    "runtime.fp32_factor",
    "runtime.launch_seconds",
    "runtime.flash_latency_seconds",
    "runtime.footprint_bytes",
    "runtime.kernel_bytes",
    "runtime.kernel_bytes_fp32",
    "runtime.op_bytes",
    "runtime.kept_logits",
    "runtime.kept_heads",
    "runtime.kept_scores",
    "runtime.kept_adapter_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One number at the ends of its range, and what that makes of peak (bytes) and step (ns): (at the low end, at the high end)."""

    key: str
    source: Source
    values: tuple[float, float]
    peak_bytes: tuple[int, int]
    step_ns: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """The range of a prediction: (low, high) of peak and step, and the numbers behind it, those first that change most."""

    peak_bytes: tuple[int, int]
    step_ns: tuple[int, int]
    effects: tuple[Effect, ...]

    def to_measure(self, of: Callable[[Effect], tuple[int, int]]) -> str | None:
        """The number whose range moves `of` most."""
        widest = max(self.effects, key=lambda effect: _width(of(effect)), default=None)
        return widest.key if widest and of(widest)[0] != of(widest)[1] else None


def number_range(device: Device, key: str) -> tuple[float, float]:
    """The lowest and the highest that a number of the profile may be."""
    value, source = device.value(key), device.sources[key]
    share = SHARE[source.kind]
    low, high = source.range or (value * (1 - share), value * (1 + share))
    return max(low, RANGES[key][0]), min(high, RANGES[key][1])


def peak_margin(graph: Graph, device: Device) -> int:
    """Bytes by which the footprint of any plan of `graph` may be above its prediction: what lies outside the arena is uncertain."""
    now = footprint_bytes(0, graph, device)
    ends = []
    for key in UNCERTAIN:
        low, high = number_range(device, key)
        ends.append(tuple(footprint_bytes(0, graph, device.with_value(key, value)) for value in (low, high)))
    return _spread(now, ends)[1] - now


def uncertainty(plan: Plan, graph: Graph, device: Device) -> Uncertainty:
    """Move every uncertain number of the profile, one at a time, and time the plan again."""
    before = predecessors(plan)

    def outcome(changed: Device) -> tuple[int, int]:
        peak = footprint_bytes(plan.arena_bytes, graph, changed)
        return peak, max(step_ends(plan, CostModel(graph, changed), before), default=0)

    peak, step = outcome(device)
    effects = []
    for key in UNCERTAIN:
        low, high = number_range(device, key)
        ends = [outcome(device.with_value(key, value)) if low < high else (peak, step) for value in (low, high)]
        peaks, steps = zip(*ends, strict=True)
        effects.append(Effect(key=key, source=device.sources[key], values=(low, high), peak_bytes=peaks, step_ns=steps))
    effects.sort(key=lambda effect: -max(_width(effect.step_ns) / max(1, step), _width(effect.peak_bytes) / max(1, peak)))
    return Uncertainty(
        peak_bytes=_spread(peak, [effect.peak_bytes for effect in effects]),
        step_ns=_spread(step, [effect.step_ns for effect in effects]),
        effects=tuple(effects),
    )


def _width(ends: tuple[int, int]) -> int:
    return abs(ends[1] - ends[0])


def _spread(value: int, ends: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Root-sum-square of what lies below `value`, and of what lies above."""
    below = hypot(*(max(0, value - min(pair)) for pair in ends))
    above = hypot(*(max(0, max(pair) - value) for pair in ends))
    return max(0, value - round(below)), value + round(above)
