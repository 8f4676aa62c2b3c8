"""The executor's table of ops against the kind table, and rope against transformers."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mebp.executor.ops.table import OPS
from mebp.executor.rope import inverse_frequencies
from mebp.models.kind import KINDS
from tests.executor.families import hf_config, tiny_config


def test_both_tables_have_the_same_kinds() -> None:
    assert set(OPS) == set(KINDS)


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm2"])
def test_rope_frequencies_are_those_of_transformers(family: str, tmp_path: object) -> None:
    config = tiny_config(family, tmp_path)  # type: ignore[arg-type]
    theirs = LlamaRotaryEmbedding(hf_config(family)).inv_freq
    assert torch.allclose(inverse_frequencies(config.rope, config.head_dim), theirs, rtol=1e-6)
