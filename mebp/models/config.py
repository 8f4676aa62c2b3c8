"""The typed description of a decoder that the rest of the project reads. Knows nothing of Hugging Face's spelling."""

import hashlib
import math
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, Literal

Activation = Literal["silu", "gelu_tanh"]
LinearName = Literal["q", "k", "v", "o", "gate", "up", "down"]
LINEARS: tuple[LinearName, ...] = ("q", "k", "v", "o", "gate", "up", "down")
BEFORE, AFTER = ("norm1", "norm2"), ("post_attention_norm", "post_ffn_norm")  # a layer's norms, by where they are


Norms = Literal["before", "after", "both"]
QkNorm = Literal["none", "head", "width"]
Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"]


class Family(StrEnum):
    """Families of dense decoders that can be built."""

    LLAMA = "llama"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    MISTRAL = "mistral"
    MINISTRAL3 = "ministral3"
    GEMMA = "gemma"
    GEMMA2 = "gemma2"
    GEMMA3 = "gemma3_text"
    PHI3 = "phi3"
    SMOLLM3 = "smollm3"
    GRANITE = "granite"
    MINICPM = "minicpm"
    OLMO2 = "olmo2"
    OLMO3 = "olmo3"
    EXAONE4 = "exaone4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding: base `theta`, the `fraction` of a head's columns that is rotated, and how frequencies are scaled for
    contexts beyond the original one (mebp/executor/rotary.py has the formulas).

    `low` and `high` bound, in turns within the original context, where `llama3` and `yarn` go from scaled frequencies to others;
    `truncate` is yarn's. `short` and `long` are longrope's divisors of frequencies, one each. `magnitude` multiplies the tables.
    `query_growth` is Ministral 3's: queries are multiplied by 1 + query_growth ln(1 + floor(position / original_context)).
    """

    theta: float
    fraction: float = 1.0
    scaling: Scaling = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    truncate: bool = True
    original_context: int = 8192
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    magnitude: float = 1.0
    query_growth: float = 0.0

    def width(self, head_dim: int) -> int:
        """Columns of a head that are rotated."""
        return int(head_dim * self.fraction)

    def llama3_factors(self, head_dim: int) -> list[float]:
        """What Llama 3.1's scaling divides each frequency by: `factor` where a wavelength is long, nothing where it is short."""
        width, found = self.width(head_dim), []
        for column in range(0, width, 2):
            turns = self.original_context / (2 * math.pi) / self.theta ** (column / width)
            kept = min(1.0, max(0.0, (turns - self.low) / (self.high - self.low)))
            found.append(1 / ((1 - kept) / self.factor + kept))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer; lengths in elements.

    `windows` has one entry per layer: 0 attends to the whole past, w to the last w positions; layers with a window are rotated by
    `local_rope`, others by `rope`, those in `unrotated` by none. `norms` are before attention and MLP, after them (on what they add
    to the residual stream), or both; `norm_offset` is added to every norm weight (Gemma stores w - 1). `qk_norm` is over each head
    or over the full width of q and k. `biases` names the linears that have one. `residual_scale` multiplies what attention and MLP
    add; scores and logits are multiplied by their scale, and where `cap` is not 0 become cap tanh(x / cap).
    """

    name: str
    family: Family
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    windows: tuple[int, ...]
    rope: Rope
    local_rope: Rope
    unrotated: tuple[int, ...] = ()
    norms: Norms = "before"
    norm_eps: float
    norm_offset: float = 0.0
    qk_norm: QkNorm = "none"
    biases: tuple[LinearName, ...] = ()
    activation: Activation
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float
    attention_cap: float = 0.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    tied: bool

    @property
    def mathematics(self) -> str:
        """Hash of all that changes what is computed: every field but the name."""
        return hashlib.sha256(repr(replace(self, name="")).encode()).hexdigest()[:16]

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def linear_shapes(self) -> dict[LinearName, tuple[int, int]]:
        """(rows, cols) = (out, in features) of each of a layer's linears."""
        d, f, q, kv = self.hidden, self.ffn, self.q_width, self.kv_width
        return {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q), "gate": (f, d), "up": (f, d), "down": (d, f)}

    def linear_shape(self, linear: LinearName) -> tuple[int, int]:
        """(rows, cols) of one of a layer's linears."""
        return self.linear_shapes()[linear]

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary embedding of a layer's queries and keys; None where they are not rotated."""
        if layer in self.unrotated:
            return None
        return self.local_rope if self.windows[layer] else self.rope

    def qk_norm_width(self, linear: LinearName) -> int:
        """Columns that one norm of queries or keys is over; 0 where there is none."""
        return {"none": 0, "head": self.head_dim, "width": self.linear_shape(linear)[0]}[self.qk_norm]

    def vectors(self) -> dict[str, int]:
        """Uncompressed vectors of the model (norm weights and biases), name to length."""
        names = (*(BEFORE if self.norms != "after" else ()), *(AFTER if self.norms != "before" else ()))
        one_layer = dict.fromkeys(names, self.hidden)
        if self.qk_norm != "none":
            one_layer |= {"q_norm": self.qk_norm_width("q"), "k_norm": self.qk_norm_width("k")}
        one_layer |= {f"{linear}_bias": self.linear_shape(linear)[0] for linear in self.biases}
        found = {f"{layer}.{name}": width for layer in range(self.num_layers) for name, width in one_layer.items()}
        return found | {"final_norm": self.hidden}

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Compressed matrices of the model, name to (rows, cols), in the order of use."""
        found = {"embedding": (self.vocab, self.hidden)}
        for layer in range(self.num_layers):
            found |= {f"{layer}.{linear}": self.linear_shape(linear) for linear in LINEARS}
        return found if self.tied else found | {"head": (self.vocab, self.hidden)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, name to shape: matrices, then vectors."""
        return {**self.matrices(), **{name: (length,) for name, length in self.vectors().items()}}

    @property
    def num_parameters(self) -> int:
        """Parameters of the base model, a tied head counted once."""
        return sum(n * k for n, k in self.matrices().values()) + sum(self.vectors().values())


def first_difference(one: ModelConfig, other: ModelConfig) -> str:
    """Where two configs differ first, their names apart: `rope.theta is 10000, not 5`; an empty text where nowhere."""
    for name, a, b in _fields(one, other):
        if a != b:
            deeper = next((f"{name}.{part} is {x}, not {y}" for part, x, y in _fields(a, b) if x != y), None)
            return deeper or (f"{name} differ" if isinstance(a, tuple) else f"{name} is {a}, not {b}")
    return ""


def _fields(one: object, other: object) -> list[tuple[str, Any, Any]]:
    if not is_dataclass(one):
        return []
    return [(f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.name != "name"]
