"""Steps in chunks of the sequence against transformers + PEFT with autograd."""

from pathlib import Path

import pytest
import torch

from mebp.models.workload import Lora
from tests.executor.exact import UNLIKE, plan_named, require_exact, run_once, worst_error
from tests.executor.families import FAMILIES, trial


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("whole_attention", "plans"), [(False, ["checkpoint-1", "least-dry"]), (True, ["keep-all", "least-dry"])])
def test_chunks_have_the_gradients_of_autograd(family: str, whole_attention: bool, plans: list[str], tmp_path: Path) -> None:
    """Chunks that do not divide the sequence, in two sequences."""
    require_exact(trial(family, tmp_path, seq_len=23, batch_size=2, chunk=8, whole_attention=whole_attention), plans)


@pytest.mark.parametrize("family", UNLIKE)
@pytest.mark.parametrize(("whole_attention", "plan"), [(False, "least"), (True, "mebp")])
def test_a_chunk_may_be_some_sequences(family: str, whole_attention: bool, plan: str, tmp_path: Path) -> None:
    require_exact(trial(family, tmp_path, seq_len=7, batch_size=5, chunk=15, whole_attention=whole_attention), [plan])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "whole_attention"), [("qwen2", True), ("gemma3", False)])
def test_four_chunks_of_a_long_sequence_are_exact(family: str, whole_attention: bool, tmp_path: Path) -> None:
    require_exact(trial(family, tmp_path, seq_len=2048, batch_size=2, chunk=512, whole_attention=whole_attention), ["least-dry"])


@pytest.mark.parametrize("whole_attention", [False, True])
@pytest.mark.parametrize("targets", [("v",), ("q", "down"), ("o", "gate")])
def test_chunks_with_adapters_on_some_linears_are_exact(whole_attention: bool, targets: tuple[str, ...], tmp_path: Path) -> None:
    lora = Lora(rank=3, alpha=5.0, targets=targets)  # type: ignore[arg-type]
    require_exact(trial("gemma3", tmp_path, seq_len=23, lora=lora, chunk=8, whole_attention=whole_attention), ["least", "keep-all"])


def test_chunks_without_any_label_add_nothing(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, seq_len=24, batch_size=2, chunk=6, labelled=7)
    labels = torch.full_like(given.ids, -100)
    labels[0, 8:11] = given.ids[0, 8:11]
    labels[1, 20:24] = given.ids[1, 20:24]
    require_exact(given, ["checkpoint-1", "least"], labels)


@pytest.mark.parametrize("rank", [3, 4])
def test_chunks_in_bf16_are_no_further_from_exact_than_the_whole(rank: int, tmp_path: Path) -> None:
    """The compiled kernel takes adapters of even rank; of an odd one it makes the gradients, and torch the rest."""
    errors, lora = [], Lora(rank=rank, alpha=6.0)
    for chunk in (0, 16):
        given = trial("llama", tmp_path / str(chunk), seq_len=64, batch_size=2, precision="bf16", lora=lora, chunk=chunk)
        _, expected = given.expected()
        _, gradients = run_once(plan_named("checkpoint-1", given.graph), given)
        errors.append(worst_error(gradients, expected))
    assert errors[1] < 1.5 * errors[0]
