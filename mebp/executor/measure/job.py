"""What is asked of a worker (Job, TrainJob) and what a measured run gives (Measurement): data that crosses between the two
processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mebp.data.sample import SampleRange
from mebp.errors import InputError
from mebp.executor.train.settings import TrainSettings
from mebp.models.op import Part
from mebp.text import shortened

Progress = Callable[[int, int], None]  # steps done, and of how many
GRADIENT_ERROR = 1e-4  # worst relative error of one gradient, in fp32; where it is larger, double precision decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run: a plan, the store to run it on, steps after one warm-up step, and where things go.

    With `enforce` the process may take no more memory of its own than the plan's budget; `limit_bytes` (0: none) is for all its
    memory, page cache included.
    """

    store: Path
    steps: int = 3
    device: str = "cpu"
    spill_dir: Path | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    learning_rate: float = 1e-4
    seed: int = 0
    check_gradients: bool = False
    enforce: bool = False
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A training run: the texts of its plans and of those for held-out data, the store, the data, and where it is saved (`folder`).
    `seq_lens` and `held_out_lens` are the buckets that the plans are for. `hashes` name what the run is made of; with `resume` it
    goes on where the folder's state is. With `enforce` it may take no more than `budget_bytes` of memory of its own.
    """

    store: Path
    folder: Path
    plans: tuple[str, ...]
    seq_lens: tuple[int, ...]
    data: SampleRange
    settings: TrainSettings
    held_out_plans: tuple[str, ...] = ()
    held_out_lens: tuple[int, ...] = ()
    held_out: SampleRange | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    device: str = "cpu"
    spill_dir: Path | None = None
    budget_bytes: int = 0
    enforce: bool = False
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheck:
    """The worst adapter gradient against autograd on the same decompressed weights, and the cosine of all of them together.

    `times_reference` is asked for where single precision cannot tell (gradients that almost cancel): how many times as far from
    autograd in double precision the worst of those is as autograd in the plan's precision; None where nothing was in doubt.
    """

    max_relative_error: float
    cosine: float
    times_reference: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What running a plan took. Bytes are resident in the worker; the peak is anonymous memory, its baseline included.

    `spans_ns` are (start, end) of every instruction in the last step, from its start, and `memory` (ns, anonymous bytes) over it;
    `chunked_ns` is what the ops within chunked ones took there, by part. `durations_ns` are each instruction's median over the last
    steps. `floor_s` is what the step's dense products take, forward and backward once (0: not measured); `unpacking` says in a few
    words how weights are unpacked and multiplied.
    """

    arena_bytes: int
    baseline_bytes: int
    peak_bytes: int
    file_bytes: int
    step_s: tuple[float, ...]
    loss: tuple[float, ...]
    spans_ns: tuple[tuple[int, int], ...]
    durations_ns: tuple[int, ...] = ()
    chunked_ns: Mapping[Part, int] = field(default_factory=dict)
    memory: tuple[tuple[int, int], ...] = ()
    floor_s: float = 0.0
    unpacking: str = ""
    gradients: GradientCheck | None = None

    @property
    def busy_ns(self) -> int:
        """What all instructions of the last step took together."""
        return sum(end - start for start, end in self.spans_ns)


def require_ids(ids: Sequence[Sequence[int]], shape: tuple[int, int], vocabulary: int) -> None:
    """Refuse token ids of another shape than (batch, seq), or outside the vocabulary."""
    given = (len(ids), len(ids[0]))
    if given != shape:
        raise InputError(
            f"token ids have shape {given}, the plan is for {shape}: plan with that `batch_size` and `seq_len`, or bring other ids"
        )
    outside = next((token for row in ids for token in row if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise InputError(f"token id {shortened(str(outside))} is outside the vocabulary: ids go from 0 to {vocabulary - 1}")
