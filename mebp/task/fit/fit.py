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

import numpy as np

from mebp.task.fit.case import Case
from mebp.task.fit.least_squares import Floats, indistinct, non_negative, pulled
from mebp.task.fit.measured import Measured

UNPACK_SHARE = 0.37  # of a layer's forward: the middle of the 32-42% that readers of the paper report
ROUNDS = 20
PAPER_IN_MEMORY = (0.67, 1.73)  # logits and compressed heads, as fitting the paper's figures finds them
LEAST_FOOTPRINT = 1e6
PULL = 0.3  # what the base profile says against one measurement: errors of 7% against those of a quarter
GENTLE_PULL = 1e-3  # the same where measurements leave only some directions open
TIMES = ("forward", "backward", "head")
PEAKS = ("footprint", "logits", "heads", "scores")
ADAPTER_BYTES = (4.0, 2.0)  # of an adapter's value: fp32 or 16 bits
LENGTHS_APART = 2  # times: nearer ones do not tell what goes with the square of the length
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
        needed += [model] if rest.warnings and not whole.warnings else []
        apart = predict(rest.constants, [cases[number] for number in left_out])
        found |= dict(zip(left_out, zip(apart.peak_bytes, apart.step_s, strict=True), strict=True))
    peaks, seconds = zip(*(found[number] for number in range(len(cases))), strict=True)
    warnings = (f"without {', '.join(needed)} the others leave constants open",) if needed else ()
    return replace(whole, peak_bytes=peaks, step_s=seconds, warnings=(*whole.warnings, *warnings))


def _fit_times(cases: Sequence[Case]) -> tuple[Floats, tuple[str, ...]]:
    """Seconds per FLOP, and what the measurements leave open: those stay near the proportions of the base profile."""
    seconds = np.array([case.measured.step_s for case in cases])
    work = np.array([case.work for case in cases]) / seconds[:, None]
    small = np.array([case.small_s for case in cases]) / seconds
    found, left_open = non_negative(work, 1 - small), indistinct(work, TIMES)
    if not left_open and (found > UNPACK_SHARE * found[0]).all():
        return found, ()
    base = np.array(cases[0].base)  # in its proportions, scaled to the measurements
    base *= float(np.median((1 - small) / (work @ base)))
    return non_negative(*pulled(work, 1 - small, base, PULL)), left_open or TIMES


def _fit_peaks(cases: Sequence[Case], width: float) -> tuple[Floats, tuple[str, ...], bool, float]:
    """The constants of peaks with adapters of `width` bytes, what the measurements leave open, whether the moments settled, and the
    width. What is left open lies near the footprint that the profile had and what the paper's implementation has in memory: it is
    drawn there so gently that nothing moves that measurements determine.
    """
    found, rows, settled = _settled(cases, width, None)
    lengths = [case.measured.seq_len for case in cases]
    names = PEAKS if max(lengths) >= LENGTHS_APART * min(lengths) else PEAKS[:3]
    left_open = indistinct(rows[:, : len(names)], names)
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
        A, b = (rows, 1 - known / peaks) if prior is None else pulled(rows, 1 - known / peaks, prior, GENTLE_PULL)
        found = non_negative(A, b)
        found[3] *= varied
        now = np.array([_at_moments(found, case, width)[1] > _at_moments(found, case, width)[0] for case in cases])
        if (now == in_block).all():
            return found, rows, True
        in_block = now
    return found, rows, False


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


def _contradictions(measured: Sequence[Measured]) -> tuple[str, ...]:
    """A warning for each two measurements of the same step that differ by more than noise."""
    found = []
    for one, other in combinations(measured, 2):
        if replace(one, peak_bytes=other.peak_bytes, step_s=other.step_s) == other:
            for what, a, b in (("peaks", one.peak_bytes, other.peak_bytes), ("times", one.step_s, other.step_s)):
                if max(a, b) > (1 + CONTRADICTION) * min(a, b):
                    found.append(f"two {what} of {one.name} contradict each other ({a:g} and {b:g}): the fit lies between them")
    return tuple(found)
