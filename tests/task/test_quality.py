"""The loss on a text, before and after compressing, and graphs of a forward alone."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from mebp.check import check
from mebp.errors import InputError, ModelError
from mebp.models.build import build_graph
from mebp.models.format import weight_formats
from mebp.planner.recipe.strategies import EVALUATION, STRATEGIES
from mebp.sim.profile import load_device
from mebp.sim.simulate import simulate
from mebp.store.compress import compress
from mebp.store.tokenizer import token_ids
from mebp.task.quality import loss_change, sequences_of
from mebp.task.sample import read_sample, sample_ids
from tests.conftest import small_config, small_workload
from tests.store.test_checkpoint import checkpoint

TEXT = "abc cab bca " * 20
DEVICE = load_device("laptop16")


def with_tokenizer(folder: Path) -> None:
    """One token for each of a few letters."""
    vocab = {letter: at + 1 for at, letter in enumerate("abc\u0120")}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_forward_alone_is_a_valid_plan_and_needs_less_than_a_step() -> None:
    graph = build_graph(small_config(layers=4), small_workload(seq_len=64))
    forward = EVALUATION.graph(graph)
    plan = EVALUATION.plan(forward, DEVICE, 0)
    check(plan, forward)
    assert not any(op.backward for op in forward.ops)
    step = STRATEGIES["checkpoint-1"].plan(graph, DEVICE, 0)
    assert plan.arena_bytes < step.arena_bytes
    assert simulate(plan, forward, DEVICE).step_ns < simulate(step, graph, DEVICE).step_ns / 2
    assert forward.outside_bytes["optimizer state"] == 0


def test_the_loss_before_is_that_of_the_source_and_after_that_of_the_store(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    with_tokenizer(tmp_path / "hf")
    found = compress(tmp_path / "hf", tmp_path / "store", weight_formats("ternary"))
    change = loss_change(tmp_path / "hf", tmp_path / "store", found, sequences_of(tmp_path / "hf", TEXT), lambda what: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    assert change.tokens == ids.shape[1] == len(TEXT)
    assert change.before == pytest.approx(float(model(input_ids=ids, labels=ids).loss.detach()), rel=5e-3)
    assert change.after != pytest.approx(change.before, rel=5e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "store"]


def test_what_is_kept_as_it_is_has_one_loss(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    with_tokenizer(tmp_path / "hf")
    found = compress(tmp_path / "hf", tmp_path / "store", weight_formats("bf16"))
    change = loss_change(tmp_path / "hf", tmp_path / "store", found, sequences_of(tmp_path / "hf", TEXT), lambda what: None)
    assert change.before == change.after


def test_texts_that_say_nothing_are_refused_in_a_line(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    with pytest.raises(ModelError, match=r"there is no tokenizer\.json"):
        sequences_of(tmp_path / "hf", TEXT)
    with_tokenizer(tmp_path / "hf")
    with pytest.raises(InputError, match="has 3 tokens: must be 16 or more"):
        sequences_of(tmp_path / "hf", "abc")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, says in (("empty", "is empty"), ("bytes", "not UTF-8"), ("none", "No such file")):
        with pytest.raises(InputError, match=says):
            read_sample(tmp_path / name, "`text`")


def test_a_tokenizer_that_was_saved_in_training_gives_all_tokens_and_no_padding(tmp_path: Path) -> None:
    with_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_ids(tmp_path, "abc abc") == [1, 2, 3, 4, 1, 2, 3]


def test_sequences_of_a_text_follow_one_another(tmp_path: Path) -> None:
    with_tokenizer(tmp_path)
    (tmp_path / "text").write_text(TEXT)
    ids = sample_ids(tmp_path, tmp_path / "text", "`text`", count=2, length=5)
    assert ids == ((1, 2, 3, 4, 3), (1, 2, 4, 2, 3))
    with pytest.raises(InputError, match="has 240 tokens, the step takes 500: name a longer text"):
        sample_ids(tmp_path, tmp_path / "text", "`text`", count=2, length=250)
