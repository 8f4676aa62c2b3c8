"""Does a run agree with its prediction? Arena to the byte, peak and step within tolerance, gradients with autograd's."""

from statistics import median

from mebp.errors import Disagreement
from mebp.executor.measure.job import GradientCheck, Measurement
from mebp.models.workload import Precision
from mebp.plan import Plan
from mebp.sim.simulate import Prediction
from mebp.unit import show_nbytes

MEMORY_TOLERANCE = 0.10
TIME_TOLERANCE = 2.0  # a shared machine's clock alone moves by a factor of two between calibration and run
GRADIENT_ERROR = 1e-4  # worst relative error of one gradient, in fp32
GRADIENT_COSINE = 0.999  # of all gradients together, in bf16


def require_agreement(plan: Plan, prediction: Prediction, measured: Measurement) -> None:
    """Raise Disagreement where the run differs from its prediction beyond tolerance."""
    if measured.arena_bytes != plan.arena_bytes:
        raise Disagreement(f"the arena was used up to byte {measured.arena_bytes}, the plan says {plan.arena_bytes}")
    memory = measured.peak_bytes / prediction.peak_bytes - 1
    if abs(memory) > MEMORY_TOLERANCE:
        raise Disagreement(
            f"the measured peak, {show_nbytes(measured.peak_bytes)}, is {memory:+.0%} off the predicted one"
            f" (tolerance {MEMORY_TOLERANCE:.0%}): run `mebp-plan calibrate` for this model and try again"
        )
    check = measured.gradients
    if check is not None and not gradients_agree(plan.workload.precision, check):
        raise Disagreement(
            f"gradients do not agree with autograd's: {gradient_facts(plan.workload.precision, check)}: a bug to report"
        )
    ratio = median(measured.step_s) * 1e9 / prediction.step_ns
    if not 1 / (1 + TIME_TOLERANCE) <= ratio <= 1 + TIME_TOLERANCE:
        raise Disagreement(
            f"the measured step takes {ratio:.2f} x the predicted time: run `mebp-plan calibrate` on a quiet machine and try again"
        )


def gradients_agree(precision: Precision, check: GradientCheck) -> bool:
    """fp32: every gradient within its relative error; bf16: all of them together by their cosine."""
    return check.max_relative_error <= GRADIENT_ERROR if precision == "fp32" else check.cosine >= GRADIENT_COSINE


def gradient_facts(precision: Precision, check: GradientCheck) -> str:
    """The figure that decides, with its bound, and the other."""
    error, cosine = f"worst relative error {check.max_relative_error:.1e}", f"cosine {check.cosine:.6f}"
    if precision == "fp32":
        return f"{error} (bound {GRADIENT_ERROR:.0e}), {cosine}"
    return f"{cosine} (bound {GRADIENT_COSINE}), {error}"
