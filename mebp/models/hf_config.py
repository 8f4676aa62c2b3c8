"""The fields of a Hugging Face config.json that are read, with their bounds."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Field(default=None, gt=0, le=1e6)


class HFConfig(BaseModel):
    """A decoder's config.json; None where a field is not given."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_type: str
    hidden_size: int = Field(ge=8, le=65536)
    intermediate_size: int = Field(ge=8, le=1 << 20)
    num_hidden_layers: int = Field(ge=1, le=512)
    num_attention_heads: int = Field(ge=1, le=1024)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=1024)
    head_dim: int | None = Field(default=None, ge=2, le=4096, multiple_of=2)
    vocab_size: int = Field(ge=2, le=1 << 22)
    max_position_embeddings: int | None = Field(default=None, ge=1, le=1 << 30)
    original_max_position_embeddings: int | None = Field(default=None, ge=1, le=1 << 30)
    rms_norm_eps: float = Field(default=1e-6, gt=0, lt=0.1)
    tie_word_embeddings: bool = False
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = Field(default=None, ge=1)
    use_sliding_window: bool | None = False
    max_window_layers: int | None = Field(default=None, ge=0)
    sliding_window_pattern: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern="^[LG]+$")] | None = None
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    no_rope_layers: list[Literal[0, 1]] | None = None
    no_rope_layer_interval: int = Field(default=4, ge=1)
    query_pre_attn_scalar: float | None = Field(default=None, ge=1e-3, le=1e6)
    attn_logit_softcapping: float | None = Positive
    final_logit_softcapping: float | None = Positive
    embedding_multiplier: float | None = Positive
    residual_multiplier: float | None = Positive
    attention_multiplier: float | None = Positive
    logits_scaling: float | None = Positive
    scale_emb: float | None = Positive
    scale_depth: float | None = Positive
    dim_model_base: float | None = Positive
    use_bidirectional_attention: bool | None = False
    is_causal: bool | None = None
    architectures: list[str] | None = None
    partial_rotary_factor: float | None = Field(default=None, gt=0, le=1)
    num_experts: int | None = None
    num_local_experts: int | None = None
    rope_theta: float | None = Field(default=None, gt=1)
    rope_local_base_freq: float = Field(default=10_000.0, gt=1)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
