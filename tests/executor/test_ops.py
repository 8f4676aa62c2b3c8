"""The executor's table of ops against the kind table, and rope against transformers."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mebp.executor.ops.mixed import add_across
from mebp.executor.ops.table import OPS
from mebp.executor.rotary import inverse_frequencies
from mebp.models.build import build_graph
from mebp.models.kind.table import KINDS
from mebp.models.tensor import ALIGNMENT
from tests.executor.families import hf_config, tiny_config, tiny_workload


def test_both_tables_have_the_same_kinds() -> None:
    assert set(OPS) == {name for name, kind in KINDS.items() if not kind.runs_chunks}


@pytest.mark.parametrize("fmt", ["int4-g32", "int8", "bf16"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_the_scratch_of_every_op_is_disjoint_where_it_is_used_together(family: str, fmt: str, tmp_path: Path) -> None:
    """Buffers of `always` overlap nothing, those of one group of `either` not each other; all lie inside, aligned."""
    graph = build_graph(tiny_config(family, tmp_path), tiny_workload(fmt=fmt))
    seen = 0
    for op in graph.ops:
        for streamed in {(), op.weights}:
            scratch = graph.scratch(op, streamed=streamed, tile=64 if op.kind.makes_loss else 0)
            for group in scratch.either or ((),):
                together = [scratch.places[b.name] for b in (*scratch.always, *group) if b.nbytes]
                ends = sorted((offset, offset + buffer.nbytes) for offset, buffer in together)
                assert all(before[1] <= after[0] for before, after in pairwise(ends)), (op.id, ends)
                assert all(offset % ALIGNMENT == 0 and end <= scratch.nbytes for offset, end in ends)
                seen += len(ends)
    assert seen > 100


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
    assert torch.allclose(inverse_frequencies(config.rope, config.head_dim, 13), theirs, rtol=1e-6)
