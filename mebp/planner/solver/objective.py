"""What the placement model minimises: step time in nanoseconds, then bytes written."""

from ortools.sat.python import cp_model

from mebp.planner.solver.variables import Variables


def extra_time_ns(variables: Variables) -> cp_model.LinearExprT:
    """Recomputation, waits and head, less what resident weights save; the other time of the step is a constant."""
    saved = sum(
        candidate.streaming_ns * (candidate.uses * resident + again)
        for number, stretch in enumerate(variables.stretches)
        for candidate, resident, again in zip(
            stretch.menu.candidates, variables.resident[number], variables.resident_again[number], strict=True
        )
    )
    weight = variables.head_weight
    saved += weight.uses * weight.streaming_ns * variables.head_resident if weight else 0
    head = sum(head.duration_ns * chosen for head, chosen in zip(variables.heads, variables.head, strict=True))
    return variables.everywhere("recompute_ns") + variables.everywhere("wait_ns") + head - saved


def written_units(variables: Variables, unit: int) -> cp_model.LinearExprT:
    """Bytes written to flash per step, in `unit`s (the smallest tensor), rounded up layer by layer."""
    return sum(
        -(-option.stored_bytes // unit) * count
        for options, counts in zip(variables.options, variables.count, strict=True)
        for option, count in zip(options, counts, strict=True)
    )
