"""Fit a runtime to what somebody measured on a phone: peaks and step times of published implementations, by model and method.

The times of a plan are sums of work over rates: FLOPs of forward products, of backward products and of the head. Each has one
constant, seconds per FLOP, found by non-negative least squares on relative errors; unpacking is proportional to forward products in
the methods measured, so a share of a layer's forward is taken for it. A peak is what the process has before any tensor, and what
such an implementation has in memory at the fuller of two moments (see sim/published.py): three constants, and a fourth where
lengths vary. No constant belongs to a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

import numpy as np
import numpy.typing as npt

from mebp.errors import InputError
from mebp.sim.device import RANGES, Device, Provenance, Source
from mebp.task.fit.case import ATTENTION_SHARE, Case
from mebp.task.fit.measured import Measured

Floats = npt.NDArray[np.float64]
UNPACK_SHARE = 0.37  # of a layer's forward: the middle of the 32-42% that readers of the paper report
ROUNDS = 20
PAPER_IN_MEMORY = (0.67, 1.73)  # logits and compressed heads, as fitting the paper's figures finds them
LEAST_FOOTPRINT = 1e6
PULL = 0.3  # what the base profile says against one measurement: errors of 7% against those of a quarter
GENTLE_PULL = 1e-3  # the same where measurements leave only some directions open
TAKES_PART = 0.1  # of a direction, in units of the constants' own effect
TIMES = ("forward", "backward", "head")
PEAKS = ("footprint", "logits", "heads", "scores")
ADAPTER_BYTES = (4.0, 2.0)  # of an adapter's value, as runtimes hold it
LENGTHS_APART = 2  # times: nearer ones do not tell what goes with the square of the length
SAME_DIRECTION = 1e-3  # singular values this far apart: what was measured cannot tell two constants apart
NAMES = {"product": "forward products", "backward": "backward products", "head": "the head"}
CONTAINED = ("kernel_bytes", "kernel_bytes_fp32", "op_bytes")
NOT_MEASURED = ("unpack_rate", "attention_fraction", "kept_scores", "kept_adapter_bytes")  # a share of what is
CONTRADICTION = 0.25  # relative difference of two measurements of the same thing that is no noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What is fitted: seconds per FLOP (each with the unpacking of its weights), and bytes before any tensor.

    `logits` is how many full fp32 logits are in memory at the head, `heads` how many compressed heads are there all the time (the
    head and the embedding that it is tied to are read apart), `scores` how many fp32 attention scores of a layer in a block's
    backward (0 where one length was measured: then nothing tells), `adapter_bytes` the bytes of an adapter's value.
    """

    forward_s: float
    backward_s: float
    head_s: float
    footprint_bytes: float
    logits: float
    heads: float
    scores: float = 0.0
    adapter_bytes: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Constants, and what they predict of every measurement, in order; `warnings` say what the data cannot tell."""

    measured: tuple[Measured, ...]
    constants: Constants
    peak_bytes: tuple[float, ...]
    step_s: tuple[float, ...]
    warnings: tuple[str, ...] = ()

    @property
    def peak_errors(self) -> list[float]:
        return [got / m.peak_bytes - 1 for got, m in zip(self.peak_bytes, self.measured, strict=True)]

    @property
    def step_errors(self) -> list[float]:
        return [got / m.step_s - 1 for got, m in zip(self.step_s, self.measured, strict=True)]


def fit(cases: Sequence[Case]) -> Fit:
    """Fit all constants to all measurements."""
    times, open_times = _fit_times(cases)
    widths = ADAPTER_BYTES if len({case.measured.lora_r for case in cases}) > 1 else ADAPTER_BYTES[:1]
    peaks, open_peaks, settled, width = min(
        (_fit_peaks(cases, width) for width in widths), key=lambda fitted: _misses(fitted, cases)
    )
    constants = Constants(
        forward_s=times[0],
        backward_s=times[1],
        head_s=times[2],
        footprint_bytes=peaks[0],
        logits=peaks[1],
        heads=peaks[2],
        scores=peaks[3],
        adapter_bytes=width,
    )
    return predict(constants, cases, _warnings(cases, (*open_times, *open_peaks), settled=settled))


def _warnings(cases: Sequence[Case], left_open: Sequence[str], *, settled: bool) -> tuple[str, ...]:
    found = _contradictions([case.measured for case in cases])
    if left_open:
        count = f"{len(cases)} measurements leave" if len(cases) > 1 else "1 measurement leaves"
        found += (f"{count} open: {', '.join(left_open)}: they stay near the base profile; measure other models or lengths",)
    if not settled:
        found += ("which moment has the highest peak did not settle: the constants of peaks are one of several fits",)
    return found


def predict(constants: Constants, cases: Sequence[Case], warnings: tuple[str, ...] = ()) -> Fit:
    """What constants say of every measurement."""
    c = constants
    seconds = [float(np.dot((c.forward_s, c.backward_s, c.head_s), case.work)) + case.small_s for case in cases]
    bytes_of = np.array((c.footprint_bytes, c.logits, c.heads, c.scores))
    return Fit(
        measured=tuple(case.measured for case in cases),
        constants=constants,
        peak_bytes=tuple(max(_at_moments(bytes_of, case, c.adapter_bytes)) for case in cases),
        step_s=tuple(seconds),
        warnings=warnings,
    )


def leave_one_out(cases: Sequence[Case]) -> Fit:
    """Every measurement predicted by constants fitted without its model; `constants` and warnings are those of the whole fit, and
    one more names the models without which something is left open.
    """
    whole = fit(cases)
    found: dict[int, tuple[float, float]] = {}
    needed = []
    for model in dict.fromkeys(case.measured.model for case in cases):
        left_out = [number for number, case in enumerate(cases) if case.measured.model == model]
        rest = fit([case for case in cases if case.measured.model != model])
        needed += [model] if set(rest.warnings) - set(whole.warnings) and not whole.warnings else []
        apart = predict(rest.constants, [cases[number] for number in left_out])
        found |= dict(zip(left_out, zip(apart.peak_bytes, apart.step_s, strict=True), strict=True))
    peaks, seconds = zip(*(found[number] for number in range(len(cases))), strict=True)
    warnings = (f"without {', '.join(needed)} the others leave constants open",) if needed else ()
    return replace(whole, peak_bytes=peaks, step_s=seconds, warnings=(*whole.warnings, *warnings))


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
            ends = _ends(max(RANGES[f"runtime.{name}"][0], value - spread), value, value + spread)
        sources[f"runtime.{name}"] = Source(kind=kind, source=source, range=ends)
    contained = Source(kind="assumed", source="contained in the fitted footprint_bytes")
    sources |= {f"runtime.{name}": contained for name in CONTAINED}
    peak = device.hardware.product_flops
    sources["hardware.product_flops"] = replace(device.sources["hardware.product_flops"], range=(peak, peak))
    runtime = replace(device.runtime, **values, **dict.fromkeys(CONTAINED, 0.0))
    return replace(device, runtime=runtime, sources={**device.sources, **sources})


def doubts(device: Device) -> list[str]:
    """What a fitted profile says that cannot be, one line for each."""
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


def _fit_times(cases: Sequence[Case]) -> tuple[Floats, tuple[str, ...]]:
    """Seconds per FLOP, and what the measurements leave open: those stay near the proportions of the base profile."""
    seconds = np.array([case.measured.step_s for case in cases])
    work = np.array([case.work for case in cases]) / seconds[:, None]
    small = np.array([case.small_s for case in cases]) / seconds
    found, left_open = non_negative(work, 1 - small), _indistinct(work, TIMES)
    if not left_open and (found > UNPACK_SHARE * found[0]).all():
        return found, ()
    base = np.array(cases[0].base)  # in its proportions, scaled to the measurements
    base *= float(np.median((1 - small) / (work @ base)))
    return non_negative(*_pulled(work, 1 - small, base, PULL)), left_open or TIMES


def _fit_peaks(cases: Sequence[Case], width: float) -> tuple[Floats, tuple[str, ...], bool, float]:
    """The constants of peaks with adapters of `width` bytes, what the measurements leave open, whether the moments settled, and the
    width. What is left open lies near the footprint that the profile had and what the paper's implementation has in memory: it is
    drawn there so gently that nothing moves that measurements determine.
    """
    found, rows, settled = _settled(cases, width, None)
    lengths = [case.measured.seq_len for case in cases]
    names = PEAKS if max(lengths) >= LENGTHS_APART * min(lengths) else PEAKS[:3]
    left_open = _indistinct(rows[:, : len(names)], names)
    if left_open or found[0] < LEAST_FOOTPRINT:
        found, _, settled = _settled(cases, width, np.array((cases[0].base_footprint_bytes, *PAPER_IN_MEMORY, 1.0)))
        found[0] = max(found[0], LEAST_FOOTPRINT)
    return found, left_open, settled, width


def _misses(fitted: tuple[Floats, tuple[str, ...], bool, float], cases: Sequence[Case]) -> float:
    """The sum of squares of what fitted constants miss, relative."""
    found, _, _, width = fitted
    return sum((max(_at_moments(found, case, width)) / case.measured.peak_bytes - 1) ** 2 for case in cases)


def _settled(cases: Sequence[Case], width: float, prior: Floats | None) -> tuple[Floats, Floats, bool]:
    """Constants, the rows that they were fitted to, and whether the moments settled. Which moment is the fuller one depends on
    the constants: fit, look again, until it stays.
    """
    peaks = np.array([case.measured.peak_bytes for case in cases])
    varied = max(case.measured.seq_len for case in cases) >= LENGTHS_APART * min(case.measured.seq_len for case in cases)
    in_block = np.zeros(len(cases), dtype=bool)
    for _ in range(ROUNDS):
        rows = np.array([_peak_row(case, block) for case, block in zip(cases, in_block, strict=True)]) / peaks[:, None]
        rows[:, 3] *= varied
        known = np.array([_known_bytes(case, block, width) for case, block in zip(cases, in_block, strict=True)])
        A, b = (rows, 1 - known / peaks) if prior is None else _pulled(rows, 1 - known / peaks, prior, GENTLE_PULL)
        found = non_negative(A, b)
        found[3] *= varied
        now = np.array([_at_moments(found, case, width)[1] > _at_moments(found, case, width)[0] for case in cases])
        if (now == in_block).all():
            return found, rows, True
        in_block = now
    return found, rows, False


def _pulled(A: Floats, b: Floats, prior: Floats, pull: float) -> tuple[Floats, Floats]:
    """The same system with each unknown drawn a little towards what is known of it beforehand."""
    return np.vstack([A, pull * np.diag(1 / prior)]), np.concatenate([b, np.full(len(prior), pull)])


def _peak_row(case: Case, in_block: bool) -> tuple[float, float, float, float]:
    m = case.moments
    return 1.0, 0.0 if in_block else m.logits_bytes, m.head_bytes, m.scores_bytes if in_block else 0.0


def _known_bytes(case: Case, in_block: bool, width: float) -> float:
    """What a moment contains that is not fitted, with adapters (in a block's backward also their gradients) of `width` bytes."""
    m = case.moments
    return m.in_block_bytes + 2 * width * m.adapter_count if in_block else m.at_head_bytes + width * m.adapter_count


def _at_moments(constants: Floats, case: Case, width: float) -> tuple[float, float]:
    """Bytes at the head and in a block's backward, where there is one."""
    at_head, in_block = (float(np.dot(constants, _peak_row(case, b))) + _known_bytes(case, b, width) for b in (False, True))
    return at_head, in_block if case.moments.in_block_bytes else 0.0


def non_negative(A: Floats, b: Floats) -> Floats:
    """Least squares with x >= 0: the best of the solutions on every subset of columns (of three there are seven)."""
    best, best_error = np.zeros(A.shape[1]), float("inf")
    for count in range(1, A.shape[1] + 1):
        for columns in combinations(range(A.shape[1]), count):
            x = np.zeros(A.shape[1])
            x[list(columns)] = np.linalg.lstsq(A[:, columns], b, rcond=None)[0]
            error = float(((A @ x - b) ** 2).sum())
            if (x >= 0).all() and error < best_error:
                best, best_error = x, error
    return best


def _indistinct(rows: Floats, names: tuple[str, ...]) -> tuple[str, ...]:
    """The constants that the rows leave open: those that take part in a direction along which nothing was measured."""
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    _, values, directions = np.linalg.svd(scaled)
    values = np.concatenate([values, np.zeros(len(names) - len(values))])
    flat = directions[values <= SAME_DIRECTION * values[0]]
    return tuple(name for name, part in zip(names, np.abs(flat).max(axis=0, initial=0.0), strict=True) if part > TAKES_PART)


def _contradictions(measured: Sequence[Measured]) -> tuple[str, ...]:
    """A warning for each two measurements of the same step that differ by more than noise."""
    found = []
    for one, other in combinations(measured, 2):
        if replace(one, peak_bytes=other.peak_bytes, step_s=other.step_s) == other:
            for what, a, b in (("peaks", one.peak_bytes, other.peak_bytes), ("times", one.step_s, other.step_s)):
                if max(a, b) > (1 + CONTRADICTION) * min(a, b):
                    found.append(f"two {what} of {one.name} contradict each other ({a:g} and {b:g}): the fit lies between them")
    return tuple(found)
