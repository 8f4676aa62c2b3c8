"""Kind name -> the function that runs it: in every module the functions that are called as a kind is."""

import time
from collections.abc import Callable

from mebp.executor.env import Io
from mebp.executor.ops import attention, elementwise, embed, head, linear, norm, rope, update
from mebp.models.kind.table import KINDS

AREAS = (embed, norm, linear, rope, attention, elementwise, head, update)
OPS: dict[str, Callable[[Io], None]] = {name: getattr(area, name) for area in AREAS for name in KINDS if hasattr(area, name)}


def run_op(io: Io) -> None:
    """Run an op, or the ops of a chunked one, whose time is noted by part."""
    if not io.op.chunks:
        OPS[io.op.kind.name](io)
    else:
        spent = io.env.chunked_ns
        for inner in io.chunks():
            begin = time.perf_counter_ns()
            run_op(inner)
            spent[inner.op.kind.part] = spent.get(inner.op.kind.part, 0) + time.perf_counter_ns() - begin
    io.finish()
