"""The executor's table of ops against the kind table, and rope against transformers."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mebp.executor.ops.mixed import add_across
from mebp.executor.ops.table import OPS
from mebp.executor.rotary import inverse_frequencies
from mebp.models.kind.table import KINDS
from tests.executor.families import hf_config, tiny_config


def test_both_tables_have_the_same_kinds() -> None:
    assert set(OPS) == set(KINDS)


@pytest.mark.parametrize("room", [2, 7, 64, 4096])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_addition_across_types_is_addition_whatever_the_room(sign: int, dtype: torch.dtype, room: int) -> None:
    total, addend = torch.randn(9, 13), torch.randn(9, 13).to(dtype)
    expected = total + sign * addend.float()
    add_across(total, addend, torch.empty(room, dtype=dtype), sign=sign)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm2"])
def test_rope_frequencies_are_those_of_transformers(family: str, tmp_path: object) -> None:
    config = tiny_config(family, tmp_path)  # type: ignore[arg-type]
    theirs = LlamaRotaryEmbedding(hf_config(family)).inv_freq
    assert torch.allclose(inverse_frequencies(config.rope, config.head_dim), theirs, rtol=1e-6)
