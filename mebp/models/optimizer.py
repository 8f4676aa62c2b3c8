"""How adapters move: the optimizer's numbers and its learning rate over a run. Planning needs no more than its name."""

from dataclasses import dataclass, field
from math import cos, isfinite, pi
from typing import Literal, get_args

from mebp.errors import InputError
from mebp.unit import require_whole

Decay = Literal["constant", "linear", "cosine"]
MOST_UPDATES = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate over `updates` updates, as a part of its highest: it climbs in a straight line over the first `warm_up`,
    is full at the last of them, and decays to `lowest` at the end.
    """

    decay: Decay = "constant"
    warm_up: int = 0
    updates: int = 1
    lowest: float = 0.0

    def factor(self, update: int) -> float:
        """What the rate of an update (counted from 0) is multiplied by."""
        if update < self.warm_up:
            return (update + 1) / self.warm_up
        passed = min(1.0, (update - self.warm_up) / max(1, self.updates - self.warm_up))
        match self.decay:
            case "constant":
                return 1.0
            case "linear":
                left = 1 - passed
            case "cosine":
                left = (1 + cos(pi * passed)) / 2
        return self.lowest + (1 - self.lowest) * left


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """The numbers of SGD or AdamW (Kingma & Ba, 2015; Loshchilov & Hutter, 2019); `betas` and `epsilon` are AdamW's. Weight decay
    is decoupled: each update first shrinks an adapter by the rate times `weight_decay`. `perturbation` is MeZO's step to either
    side.
    """

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    perturbation: float = 1e-3
    schedule: Schedule = field(default_factory=Schedule)

    def rate_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        return self.rate * self.schedule.factor(update)


def require_optimizer(optimizer: Optimizer) -> None:
    """Refuse numbers that no run can take: InputError naming value, bound and remedy."""
    schedule = optimizer.schedule
    if not (isfinite(optimizer.rate) and 0 < optimizer.rate <= 1000):
        raise InputError(f"`learning_rate` = {optimizer.rate:g}: must be above 0, and 1000 at most")
    if not (isfinite(optimizer.weight_decay) and 0 <= optimizer.weight_decay * optimizer.rate < 1):
        raise InputError(f"`weight_decay` = {optimizer.weight_decay:g}: must be 0 or more, and below 1 / `learning_rate`")
    for number, beta in enumerate(optimizer.betas, 1):
        if not 0 <= beta < 1:
            raise InputError(f"`beta{number}` = {beta:g}: must be 0 or more, and below 1")
    if not (isfinite(optimizer.epsilon) and optimizer.epsilon > 0):
        raise InputError(f"`epsilon` = {optimizer.epsilon:g}: must be above 0")
    if not (isfinite(optimizer.perturbation) and optimizer.perturbation > 0):
        raise InputError(f"`perturbation` = {optimizer.perturbation:g}: must be above 0")
    if schedule.decay not in get_args(Decay):
        raise InputError(f"`schedule` = {schedule.decay!r}: must be one of {', '.join(get_args(Decay))}")
    require_whole("`warm_up`", schedule.warm_up, 0, MOST_UPDATES)
    if not 0 <= schedule.lowest <= 1:
        raise InputError(f"`lowest_rate` = {schedule.lowest:g}: must be between 0 and 1, a part of `learning_rate`")
