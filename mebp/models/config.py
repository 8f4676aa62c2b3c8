"""The typed description of a decoder that the rest of the project reads. Knows nothing of Hugging Face's spelling."""

import hashlib
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, Literal

Activation = Literal["silu", "gelu_tanh"]
LinearName = Literal["q", "k", "v", "o", "gate", "up", "down"]
LINEARS: tuple[LinearName, ...] = ("q", "k", "v", "o", "gate", "up", "down")


class Family(StrEnum):
    """Families of dense decoders that can be built."""

    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    GEMMA3 = "gemma3_text"
    LLAMA = "llama"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding: base `theta` and how frequencies are scaled for longer contexts."""

    theta: float
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer; lengths in elements.

    `windows` has one entry per layer: 0 attends to the whole past, w to the last w positions. `norm_offset` is added to every
    norm weight (Gemma stores w - 1). `four_norms` adds a norm after attention and after the MLP.
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
    norm_eps: float
    norm_offset: float
    attention_scale: float
    embedding_scale: float
    activation: Activation
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    four_norms: bool

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

    def vectors(self) -> dict[str, int]:
        """Uncompressed vectors of the model (norm weights and biases), name to length."""
        found: dict[str, int] = {}
        d = self.hidden
        for layer in range(self.num_layers):
            names = ["norm1", "norm2"] + (["post_attention_norm", "post_ffn_norm"] if self.four_norms else [])
            found |= {f"{layer}.{name}": d for name in names}
            if self.qk_norm:
                found |= {f"{layer}.q_norm": self.head_dim, f"{layer}.k_norm": self.head_dim}
            if self.qkv_bias:
                found |= {f"{layer}.q_bias": self.q_width, f"{layer}.k_bias": self.kv_width, f"{layer}.v_bias": self.kv_width}
        return found | {"final_norm": d}

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Compressed matrices of the model, name to (rows, cols), in the order of use."""
        found = {"embedding": (self.vocab, self.hidden)}
        for layer in range(self.num_layers):
            found |= {f"{layer}.{linear}": self.linear_shape(linear) for linear in LINEARS}
        return found if self.tied else found | {"head": (self.vocab, self.hidden)}

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
