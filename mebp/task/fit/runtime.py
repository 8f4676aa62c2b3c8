"""A device's runtime from fitted constants, each number with its range."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from mebp.errors import InputError
from mebp.sim.device import RANGES, Device, Provenance, Source
from mebp.task.fit.case import ATTENTION_SHARE, Case
from mebp.task.fit.fit import UNPACK_SHARE, Fit, fit

NAMES = {"product": "forward products", "backward": "backward products", "head": "the head"}
CONTAINED = ("kernel_bytes", "kernel_bytes_fp32", "op_bytes")
NOT_MEASURED = (
    "unpack_rate",
    "attention_fraction",
    "kept_scores",
    "kept_adapter_bytes",
)  # derived from fitted constants, or chosen


def fitted_device(cases: Sequence[Case], device: Device, source: str) -> Device:
    """`device` with the runtime fitted to `cases`: each pass over a weight takes its unpacking time and, in what is left, its
    product. A number's range is two standard errors either way, by the jackknife over models (Efron & Stein, 1981); with one
    model it is that of an assumed one. What the footprint contains (libraries, the plan) is not counted again, and the hardware's
    rate of products, to which the fractions are fitted, is not uncertain on top of them.
    """
    values = _runtime(fit(cases), device)
    without = [_runtime(fit(rest), device) for rest in _without_each_model(cases)]
    sources = {}
    for name, value in values.items():
        kind: Provenance = "assumed" if name in NOT_MEASURED or not without else "measured"
        ends = None
        if kind == "measured":
            spread = _two_errors([other[name] for other in without])
            low, high = RANGES[f"runtime.{name}"]
            ends = _ends(max(low, value - spread), value, min(high, value + spread))
        sources[f"runtime.{name}"] = Source(kind=kind, source=source, range=ends)
    contained = Source(kind="assumed", source="contained in the fitted footprint_bytes")
    sources |= {f"runtime.{name}": contained for name in CONTAINED}
    peak = device.hardware.product_flops
    sources["hardware.product_flops"] = replace(device.sources["hardware.product_flops"], range=(peak, peak))
    runtime = replace(device.runtime, **values, **dict.fromkeys(CONTAINED, 0.0))
    return replace(device, runtime=runtime, sources={**device.sources, **sources})


def doubts(device: Device) -> list[str]:
    """Fitted numbers that are impossible, one line each."""
    rates = {name: getattr(device.runtime, f"{name}_fraction") for name in NAMES}
    above = {name: value for name, value in rates.items() if value > 1}
    if not above:
        return []
    most = max(above.values())
    listed = ", ".join(f"{name}_fraction {value:.3g}" for name, value in above.items())
    return [f"{listed}: more than all of hardware.product_flops, which is too low by {most:.2f} x at least: set it"]


def _runtime(found: Fit, device: Device) -> dict[str, float]:
    """The numbers of a runtime that constants make on a device's hardware, four digits of each."""
    constants, peak = found.constants, device.hardware.product_flops
    unpack_s = UNPACK_SHARE * constants.forward_s
    passes = {"product": constants.forward_s, "backward": constants.backward_s, "head": constants.head_s}
    slow = [name for name, seconds in passes.items() if seconds <= unpack_s]
    if slow:
        raise InputError(
            f"the measurements leave {NAMES[slow[0]]} no time for products after unpacking: measure more models or methods"
        )
    fractions = {f"{name}_fraction": 1 / ((seconds - unpack_s) * peak) for name, seconds in passes.items()}
    fractions["attention_fraction"] = ATTENTION_SHARE * fractions["product_fraction"]
    flops_per_weight = 2 * median(measured.seq_len for measured in found.measured)
    values = fractions | {"footprint_bytes": constants.footprint_bytes, "unpack_rate": 1 / (unpack_s * flops_per_weight)}
    values |= {"kept_logits": constants.logits, "kept_heads": constants.heads, "kept_scores": constants.scores}
    values |= {"kept_adapter_bytes": constants.adapter_bytes}
    for name, value in values.items():
        low, high = RANGES[f"runtime.{name}"]
        if not low <= value <= high:
            raise InputError(f"the measurements make {name} {value:.3g}: must be between {low:g} and {high:g}: check their units")
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def _without_each_model(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases without those of each model in turn; none where there is one model."""
    models = dict.fromkeys(case.measured.model for case in cases)
    return [[case for case in cases if case.measured.model != model] for model in models] if len(models) > 1 else []


def _two_errors(values: Sequence[float]) -> float:
    """Two standard errors of an estimate from its values with each model left out."""
    count = len(values)
    return 2 * float(np.std(values)) * float(np.sqrt(count - 1))


def _ends(low: float, value: float, high: float) -> tuple[float, float]:
    """Three digits of a range's ends, with its value between them."""
    return min(value, float(f"{low:.3g}")), max(value, float(f"{high:.3g}"))
