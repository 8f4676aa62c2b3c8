"""Write timelines as a Chrome trace (opens in Perfetto and chrome://tracing): a process per timeline, a track per engine, a memory
counter.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mebp.plan import Compute, Free, Instruction, Load, Plan, Store, Unpack
from mebp.sim.simulate import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One process of a trace: (start, end) in ns of every instruction of a plan, frees left at (0, 0); (ns, bytes) of the
    process's own memory, predicted or measured.
    """

    name: str
    spans_ns: Sequence[tuple[int, int]]
    memory: Sequence[tuple[int, int]] = ()


def predicted_track(plan: Plan, prediction: Prediction) -> Track:
    """The simulated timeline as a track."""
    spans = [(0, 0)] * len(plan.instructions)
    for piece in prediction.timeline:
        spans[piece.index] = (piece.start_ns, piece.end_ns)
    footprint = [(0, prediction.peak_bytes), (prediction.step_ns, prediction.peak_bytes)]  # the arena is one allocation
    return Track(name="predicted", spans_ns=spans, memory=footprint)


def chrome_trace(plan: Plan, prediction: Prediction, tracks: Sequence[Track]) -> str:
    """Render tracks of one plan side by side, each with the plan's live bytes as a counter."""
    events: list[dict[str, Any]] = []
    live = {moment.index: moment.live_bytes for moment in prediction.memory}
    for pid, track in enumerate(tracks, start=1):
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": track.name}})
        for index, (instruction, (start, end)) in enumerate(zip(plan.instructions, track.spans_ns, strict=True)):
            if isinstance(instruction, Free):
                continue
            at, length = start / 1000, (end - start) / 1000
            events.append({"ph": "X", "pid": pid, "tid": instruction.engine, "ts": at, "dur": length, "name": _name(instruction)})
            events.append({"ph": "C", "pid": pid, "ts": at, "name": "arena bytes", "args": {"live": live[index]}})
        for ns, nbytes in track.memory:
            args = {"bytes": nbytes}
            events.append({"ph": "C", "pid": pid, "ts": ns / 1000, "name": "anonymous memory", "args": args})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _name(instruction: Instruction) -> str:
    match instruction:
        case Compute():
            return f"{instruction.op}{' (recompute)' if instruction.recompute else ''}"
        case Unpack():
            return f"unpack {instruction.weight}"
        case Store():
            return f"store {instruction.tensor}"
        case Load():
            return f"load {instruction.place.tensor}"
        case Free():
            return f"free {instruction.tensor}"
