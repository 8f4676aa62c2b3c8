"""What the placement model minimises: step time in nanoseconds, then bytes written."""

from ortools.sat.python import cp_model

from mebp.planner.variables import Variables


def extra_time_ns(variables: Variables) -> cp_model.LinearExprT:
    """Recomputation chosen, less what resident weights save; the base time of the step is a constant."""
    numbers = range(len(variables.classes))
    recomputed = sum(variables.total(number, "recompute_ns") for number in numbers)
    saved = sum(
        item.unpack_ns * (item.uses * resident + again)
        for number in numbers
        for item, resident, again in zip(
            variables.holdable[number], variables.resident[number], variables.resident_again[number], strict=True
        )
    )
    head = variables.head
    return recomputed - saved - (head.uses * head.unpack_ns * variables.head_resident if head else 0)


def written_units(variables: Variables, unit: int) -> cp_model.LinearExprT:
    """Bytes written to flash in a step, in `unit`s (the smallest tensor), rounded up layer by layer."""
    return sum(
        -(-option.stored_bytes // unit) * count
        for layer_class, counts in zip(variables.classes, variables.count, strict=True)
        for option, count in zip(layer_class.options, counts, strict=True)
    )
