"""The workload: sequence, batch, labels, adapters, formats, optimizer. Checked against the model in one place."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from mebp.errors import InputError
from mebp.models.config import LINEARS, LinearName, ModelConfig
from mebp.models.format import WeightFormats
from mebp.unit import require_kind, require_whole

Precision = Literal["bf16", "fp32"]
OptimizerName = Literal["sgd", "adamw"]
Method = Literal["backprop", "mezo", "evaluate"]

OPTIMIZER_STATES: dict[OptimizerName, int] = {"sgd": 0, "adamw": 2}
ITEMSIZE: dict[Precision, int] = {"bf16": 2, "fp32": 4}
MAX_TOKENS = 1 << 20
MOST_DROPOUT = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters: rank, alpha (what they add is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank): Kalajdzievski, 2023) and
    the linears that carry one, in all layers or the last `layers` of them. `dropout` is the part of a linear's input that its
    adapter does not see while it trains.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[LinearName, ...] = LINEARS
    dropout: float = 0.0
    rslora: bool = False
    layers: int | None = None

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def trains(self, layer: int, num_layers: int) -> bool:
        """Whether a layer, of so many, has adapters."""
        return self.layers is None or layer >= num_layers - self.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training step: `batch_size` sequences of `seq_len` tokens; `precision` is that of activations and products. With the
    method `evaluate` it is a forward alone, for the loss.

    `labelled` is how many tokens of a step carry a label at most, None for all of them: the head computes no others. The update
    comes after `accumulate` steps, along the mean of their gradients. With `clip_norm` that mean is scaled down to this 2-norm,
    over all adapters together, where it is longer; 0 leaves it alone. With `states_in_file` the optimizer state lies in a
    mapped file. With `evaluations` = 2 the loss is computed twice, as published code does for a metric. With `layer_copies` a
    layer's compressed weights are read into memory of the process's own while it runs, as published code does too; else they stay
    in the mapped file. With `chunk` layers and head run on so many tokens at a time; 0: on all at once. With `whole_attention`
    attention alone runs on all at once all the same, so that what it reads and makes may be saved.
    """

    seq_len: int = 256
    batch_size: int = 1
    labelled: int | None = None
    lora: Lora
    weights: WeightFormats
    precision: Precision = "bf16"
    optimizer: OptimizerName = "sgd"
    method: Method = "backprop"
    states_in_file: bool = False
    accumulate: int = 1
    clip_norm: float = 0.0
    evaluations: int = 1
    layer_copies: bool = False
    chunk: int = 0
    whole_attention: bool = False

    @property
    def defers_gradients(self) -> bool:
        """Whether the gradients of all adapters wait for one update, rather than one layer's at a time."""
        return self.method == "backprop" and (self.accumulate > 1 or self.clip_norm > 0)

    @property
    def optimizer_states(self) -> int:
        """Values that the optimizer keeps for each trainable parameter."""
        return OPTIMIZER_STATES[self.optimizer] if self.method == "backprop" else 0

    @property
    def tokens(self) -> int:
        return self.seq_len * self.batch_size

    @property
    def chunk_tokens(self) -> int:
        """Tokens that the products of a layer run on at a time, at most; a chunk is part of a sequence, or some whole ones."""
        if not 0 < self.chunk < self.tokens:
            return self.tokens
        return self.chunk if self.chunk < self.seq_len else self.chunk // self.seq_len * self.seq_len

    @property
    def head_rows(self) -> int:
        """Tokens that the head computes at most."""
        return self.tokens if self.labelled is None else self.labelled

    @property
    def itemsize(self) -> int:
        """Bytes of one element of an activation."""
        return ITEMSIZE[self.precision]


def whole_step(workload: Workload) -> Workload:
    """The same step on all tokens at once."""
    return replace(workload, chunk=0, whole_attention=False)


def parse_targets(text: str) -> tuple[LinearName, ...]:
    """Read `all-linear` or a comma-separated subset such as `q,v` or `q_proj,v_proj`."""
    if text.strip() == "all-linear":
        return LINEARS
    asked = {part.strip().removesuffix("_proj") for part in text.split(",") if part.strip()}
    unknown = asked - set(LINEARS)
    if unknown or not asked:
        raise InputError(f"`targets` {text!r}: take all-linear or a subset of {','.join(LINEARS)}")
    return tuple(name for name in LINEARS if name in asked)


def require_workload(config: ModelConfig, workload: Workload) -> None:
    """Refuse what cannot be built on `config`: InputError naming value, bound and remedy."""
    require_whole("`seq_len`", workload.seq_len, 2, MAX_TOKENS)
    require_whole("`batch_size`", workload.batch_size, 1, 4096)
    require_whole("tokens (`seq_len` x `batch_size`)", workload.tokens, 2, MAX_TOKENS)
    require_kind("`targets`", workload.lora.targets, tuple, list, remedy="name linears, such as ('q', 'v')")
    if not workload.lora.targets:
        raise InputError("`targets` is empty: take all-linear or some of " + ",".join(LINEARS))
    widest = min(min(config.linear_shape(name)) for name in workload.lora.targets)
    require_whole("`rank`", workload.lora.rank, 1, widest, f", the smallest side of a targeted linear of {config.name}")
    if not isinstance(workload.lora.alpha, int | float) or not 0 < workload.lora.alpha < float("inf"):
        raise InputError(f"`alpha` = {workload.lora.alpha}: must be a positive number")
    if workload.labelled is not None:
        require_whole("`labelled`", workload.labelled, 1, workload.tokens, ", the tokens of a step")
    if workload.lora.layers is not None:
        require_whole("`layers`", workload.lora.layers, 1, config.num_layers, f", the layers of {config.name}")
    if not 0 <= workload.lora.dropout <= MOST_DROPOUT:
        raise InputError(f"`dropout` = {workload.lora.dropout:g}: must be between 0 and {MOST_DROPOUT}")
    require_whole("`accumulate`", workload.accumulate, 1, MAX_TOKENS)
    require_whole("`chunk`", workload.chunk, 0, MAX_TOKENS)
    if workload.whole_attention and not workload.chunk:
        raise InputError("`whole_attention` says how a step runs in chunks: name `chunk` too, or leave it out")
    require_whole("`evaluations`", workload.evaluations, 1, 2)
    if not 0 <= workload.clip_norm < float("inf"):
        raise InputError(f"`clip_norm` = {workload.clip_norm}: must be a positive number, or 0 for no clipping")
    if workload.states_in_file and not OPTIMIZER_STATES.get(workload.optimizer):
        raise InputError(f"`states_in_file`: {workload.optimizer} remembers nothing to keep in one: leave it out")
    _require_choice("`precision`", workload.precision, get_args(Precision))
    _require_choice("`optimizer`", workload.optimizer, get_args(OptimizerName))
    for name, (_, cols) in config.matrices().items():
        workload.weights.require_fits(name, cols)


def _require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{what} = {value!r}: must be one of {', '.join(choices)}")
