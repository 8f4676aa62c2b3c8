"""A training run's settings and its reports: data that crosses between processes, so no torch here."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from mebp.errors import InputError
from mebp.models.optimizer import MOST_UPDATES, Optimizer, require_optimizer
from mebp.unit import require_kind, require_whole

STATE, BEST, LOCK = "state.safetensors", "best.safetensors", ".lock"  # files in a run's folder
Ending = Literal["all updates", "early stop", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """`updates` of the adapters, each along the gradient of `accumulate` batches. Held-out data are evaluated before the first
    update, after every `evaluate_every` (0: never) and after the last; after `patience` evaluations without a better loss (0:
    never) the run ends. The state is saved after every `save_every` updates (0: at the end alone). `seed` decides adapters, order
    and masks.
    """

    updates: int
    accumulate: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluate_every: int = 0
    evaluate_batches: int = 0
    patience: int = 0
    save_every: int = 50
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """One update: `number` from 1, the part of the data passed so far in `epochs`, the loss on average over `labelled` tokens, the
    rate, the gradient's 2-norm before clipping (None unless gradients are deferred), tokens without padding, and seconds.
    `memory_bytes` are those of the process at its end, `peak_bytes` the most so far. `skipped` says why it was left out, else None.
    """

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")

    number: int
    epochs: float
    loss: float
    rate: float
    gradient_norm: float | None
    tokens: int
    labelled: int
    seconds: float
    seq_lens: tuple[int, ...]
    memory_bytes: int = 0
    peak_bytes: int = 0
    skipped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The loss on held-out data, on average over labelled tokens, after `number` updates; `best` so far."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")

    number: int
    loss: float
    labelled: int
    seconds: float
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The state after `number` updates is on disk; or why it is not (`problem`), and the one before it still is."""

    number: int
    problem: str | None = None


Report = Updated | Evaluated | Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How a run ended after `number` updates, `skipped` of them without effect; the best evaluation, where there was one; and what
    it took: seconds without its start-up, bytes of the process before anything of the model was there, at its peak, and
    file-backed. `saved` is the number of updates that the state on disk is after, None where there is none.
    """

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")

    number: int
    ending: Ending
    skipped: int
    saved: int | None
    best_number: int | None
    best_loss: float | None
    seconds: float = 0.0
    baseline_bytes: int = 0
    peak_bytes: int = 0
    file_bytes: int = 0
    arena_bytes: int = 0


def require_settings(settings: TrainSettings) -> None:
    """Refuse what no run can take: InputError naming value, bound and remedy."""
    require_kind("`optimizer`", settings.optimizer, Optimizer, remedy="Optimizer(rate=...) makes one")
    require_whole("`steps`", settings.updates, 1, MOST_UPDATES)
    require_whole("`accumulate`", settings.accumulate, 1, 1 << 20)
    require_whole("`evaluate_every`", settings.evaluate_every, 0, MOST_UPDATES)
    require_whole("`evaluate_batches`", settings.evaluate_batches, 0, MOST_UPDATES)
    require_whole("`patience`", settings.patience, 0, MOST_UPDATES)
    require_whole("`save_every`", settings.save_every, 0, MOST_UPDATES)
    require_whole("`seed`", settings.seed, 0, (1 << 31) - 1)
    require_optimizer(settings.optimizer)
    if settings.patience and not settings.evaluate_every:
        raise InputError(f"`patience` = {settings.patience} counts evaluations, and there are none: set `evaluate_every`")
