"""Does a run agree with its prediction? Arena to the byte, peak and step within tolerance, gradients with autograd's."""

from mebp.errors import Disagreement
from mebp.executor.measure.job import GRADIENT_ERROR, GradientCheck
from mebp.models.workload import Precision
from mebp.task.run import RunResult
from mebp.unit import show_nbytes

MEMORY_TOLERANCE = 0.10
LARGEST_RATIO = 3.0  # of measured and predicted step, either way
TIMES_REFERENCE = 2.0  # as far from double precision as autograd in single is, where a gradient's error is larger than that
GRADIENT_COSINE = 0.999  # of all gradients together, in bf16


def require_agreement(result: RunResult) -> None:
    """Raise Disagreement where the run differs from its prediction beyond tolerance: the step both as it was and at the machine's
    speed in the run.
    """
    plan, measured = result.plan, result.measured
    if not result.arena_exact:
        raise Disagreement(f"the arena was used up to byte {measured.arena_bytes}, the plan says {plan.arena_bytes}")
    if abs(result.memory_error) > MEMORY_TOLERANCE:
        raise Disagreement(
            f"the measured peak, {show_nbytes(measured.peak_bytes)}, differs from the predicted one by {result.memory_error:+.0%}"
            f" (tolerance {MEMORY_TOLERANCE:.0%}): run `mebp-plan calibrate` for this model and try again"
        )
    check = measured.gradients
    if check is not None and not gradients_agree(plan.workload.precision, check):
        raise Disagreement(
            f"gradients do not agree with autograd's: {gradient_facts(plan.workload.precision, check)}: a bug to report"
        )
    ratio = 1 + result.time_error_at_its_speed
    if not (_is_near(ratio) or _is_near(1 + result.time_error)):  # the speed is a sample of its own, and may be what is off
        raise Disagreement(
            f"the measured step takes {ratio:.2f} x the predicted time, corrected for the machine's speed ({result.speed:.2f} x"
            " that of calibration): run `mebp-plan calibrate` on a quiet machine and try again"
        )


def _is_near(ratio: float) -> bool:
    return 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO


def gradients_agree(precision: Precision, check: GradientCheck) -> bool:
    """fp32: every gradient within its relative error, or as near to double precision as autograd is; bf16: all of them together
    by their cosine.
    """
    if precision != "fp32":
        return check.cosine >= GRADIENT_COSINE
    if check.times_reference is not None:
        return check.times_reference <= TIMES_REFERENCE
    return check.max_relative_error <= GRADIENT_ERROR


def gradient_facts(precision: Precision, check: GradientCheck) -> str:
    """The figure that decides, with its bound: in bf16 single gradients near zero are rounding errors on either side."""
    if precision != "fp32":
        return f"cosine of all gradients {check.cosine:.6f} (bound {GRADIENT_COSINE}, in bf16)"
    if check.times_reference is not None:
        return (
            f"{check.times_reference:.2f} x as far from double precision as autograd in fp32 is (bound {TIMES_REFERENCE:g}),"
            " where gradients almost cancel"
        )
    return f"worst relative error {check.max_relative_error:.1e} (bound {GRADIENT_ERROR:.0e})"
