"""Tokens with their labels, the file that keeps them, samples, buckets and order."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mebp.data.order import IGNORED, Order
from mebp.data.record_tokenizer import open_record_tokenizer
from mebp.data.sample import SampleRange, bucket_lengths, cut
from mebp.data.token_set import SUFFIX, TokenSet, open_tokens, read_tokens, require_vocabulary
from mebp.errors import InputError, ModelError, StoreError
from tests.data.spelling import VOCABULARY, chat, write_lines, write_tokenizer
from tests.train.loop import samples_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "model")


def tokens_of(model: Path, file: Path) -> TokenSet:
    return read_tokens(file, open_record_tokenizer(model))


def labelled_text(model: Path, tokens: TokenSet, number: int = 0) -> str:
    start, end = (int(tokens.ends[number - 1]) if number else 0), int(tokens.ends[number])
    ids = tokens.ids[start:end][tokens.labelled[start:end] > 0]
    return open_record_tokenizer(model).tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_labels_are_on_the_tokens_of_labelled_text_and_on_its_end(model: Path, tmp_path: Path) -> None:
    records = [chat("Hi", "Hellö"), {"prompt": "two: ", "completion": "2"}, {"text": "abc"}]
    tokens = tokens_of(model, write_lines(tmp_path / "a.jsonl", *records))
    assert labelled_text(model, tokens, 0) == "Hellö<|end|>\n"
    assert labelled_text(model, tokens, 1) == "2<|end|>"
    assert labelled_text(model, tokens, 2) == "abc<|end|>"
    assert len(tokens.ends) == 3


def test_an_end_that_is_there_is_not_written_twice(model: Path, tmp_path: Path) -> None:
    tokens = tokens_of(model, write_lines(tmp_path / "a.jsonl", {"text": "abc<|end|>"}))
    assert labelled_text(model, tokens) == "abc<|end|>"


def test_tokens_are_kept_beside_the_data_and_found_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"text": "abc"})
    first = tokens_of(model, file)
    assert first.file == tmp_path / f".a.jsonl.{open_record_tokenizer(model).digest[:8]}{SUFFIX}"
    monkeypatch.setattr("mebp.data.token_set._tokenised", None)
    again = tokens_of(model, file)
    assert again.digest == first.digest
    assert np.array_equal(again.ids, first.ids)
    assert np.array_equal(open_tokens(first.file, first.digest).labelled, first.labelled)


def test_they_are_made_again_where_data_template_or_tokenizer_changed(model: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", chat("a", "b"))
    digests = [tokens_of(model, file).digest]
    write_lines(file, chat("a", "c"))
    digests.append(tokens_of(model, file).digest)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    digests.append(tokens_of(model, file).digest)
    assert len(set(digests)) == 3
    assert len(tokens_of(model, file).ids) == 2


def test_a_damaged_file_of_tokens_is_made_again(model: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"text": "abc"})
    first = tokens_of(model, file)
    expected = first.ids.tolist()
    raw = first.file.read_bytes()
    for damaged in (b"", raw[:40], b"\xff" * 100, raw[:-3]):
        first.file.unlink()
        first.file.write_bytes(damaged)
        assert tokens_of(model, file).ids.tolist() == expected


def test_where_the_folder_cannot_be_written_they_are_kept_in_the_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    file = write_lines(folder / "a.jsonl", {"text": "abc"})
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).parent == folder:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert tokens_of(model, file).file.is_relative_to(tmp_path / "cache")
    assert os.listdir(folder) == ["a.jsonl"]
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    write_lines(file, {"text": "other"})
    with pytest.raises(StoreError, match="cannot be kept in"):
        tokens_of(model, file)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(content: str, model: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"`data` .*{name} is empty"):
            tokens_of(model, tmp_path / name)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no tokenizer\.json"):
        open_record_tokenizer(tmp_path)


def test_tokens_that_the_model_does_not_have_are_refused(model: Path, tmp_path: Path) -> None:
    tokens = tokens_of(model, write_lines(tmp_path / "a.jsonl", {"text": "abc"}))
    require_vocabulary(tokens, VOCABULARY, "`data`")
    with pytest.raises(InputError, match=r"has token 256, the model knows 200: put its own tokenizer"):
        require_vocabulary(tokens, 200, "`data`")


def test_records_are_cut_to_a_length_and_what_was_cut_is_counted(model: Path, tmp_path: Path) -> None:
    records = [{"text": "a" * 50}, {"text": "b" * 5}, {"prompt": "c" * 40, "completion": "d"}]
    tokens = tokens_of(model, write_lines(tmp_path / "a.jsonl", *records))
    samples = cut(tokens, 20, packed=False, what="`data`")
    assert samples.lengths.tolist() == [20, 6]
    assert (samples.truncated, samples.unlabelled) == (2, 1)
    assert samples.labelled.tolist() == [19, 5]
    with pytest.raises(InputError, match="no token within 20 carries a label"):
        cut(tokens_of(model, write_lines(tmp_path / "b.jsonl", records[2])), 20, packed=False, what="`data`")


@given(data=st.data())
def test_labels_are_counted_for_samples_of_any_length(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    ends = np.cumsum(np.array(lengths, np.int64))
    total = int(ends[-1])
    flags = np.array(data.draw(st.lists(st.integers(0, 1), min_size=total, max_size=total)), np.uint8)
    tokens = TokenSet(file=Path("none"), ids=np.zeros(total, np.int32), labelled=flags, ends=ends, digest="")
    seq_len, packed = data.draw(st.integers(2, 6)), data.draw(st.booleans())
    starts = list(range(0, total, seq_len)) if packed else [0, *ends[:-1].tolist()]
    stops = [min(start + seq_len, total if packed else end) for start, end in zip(starts, starts if packed else ends, strict=True)]
    expected = [int(flags[start + 1 : stop].sum()) for start, stop in zip(starts, stops, strict=True)]
    if any(expected):
        samples = cut(tokens, seq_len, packed=packed, what="`data`")
        assert samples.labelled.tolist() == [count for count in expected if count]
    else:
        with pytest.raises(InputError, match="carries a label"):
            cut(tokens, seq_len, packed=packed, what="`data`")


def test_packed_records_are_one_stream_in_blocks(model: Path, tmp_path: Path) -> None:
    tokens = tokens_of(model, write_lines(tmp_path / "a.jsonl", {"text": "a" * 30}, {"text": "b" * 12}))
    samples = cut(tokens, 16, packed=True, what="`data`")
    assert samples.lengths.tolist() == [16, 16, 12]
    assert samples.truncated == 0
    where = SampleRange(file=tokens.file, digest=tokens.digest, seq_len=16, packed=True, first=1, last=3)
    assert where.samples().starts.tolist() == [16, 32]


@given(lengths=st.lists(st.integers(2, 300), min_size=1, max_size=40), most=st.integers(1, 4))
def test_buckets_hold_every_sample_and_more_of_them_pad_less(lengths: list[int], most: int) -> None:
    arrays = np.array(lengths, np.int64)
    found = bucket_lengths(arrays, most, 300)
    fewer = bucket_lengths(arrays, max(1, most - 1), 300)

    def padded(seq_lens: tuple[int, ...]) -> int:
        return sum(min(length for length in seq_lens if length >= own) for own in lengths)

    assert len(found) <= most
    assert list(found) == sorted(set(found))
    assert found[-1] >= max(lengths)
    assert padded(found) <= padded(fewer)


def test_two_buckets_are_the_best_two() -> None:
    assert bucket_lengths(np.array([30] * 9 + [250]), 2, 256) == (32, 256)
    assert bucket_lengths(np.array([30] * 9 + [250]), 1, 256) == (256,)


def test_an_epoch_has_every_sample_once_in_batches_of_one_bucket() -> None:
    samples = samples_of([9, 21, 12, 7, 18, 3, 15, 20, 11, 13, 8], 300)
    order = Order(samples, (12, 21), batch_size=2, accumulate=2, seed=3)
    assert order.num_batches == 6
    assert order.updates_per_epoch == 3
    for epoch in range(2):
        batches = [batch for number in range(3) for batch in order.update(epoch * 3 + number)]
        assert sum(batch.tokens for batch in batches) == samples.lengths.sum()
        assert sum(batch.labelled for batch in batches) == samples.labelled.sum()
        for batch in batches:
            assert batch.ids.shape == (2, (12, 21)[batch.bucket])
            assert (batch.labels[:, 1:] != IGNORED).sum() == batch.labelled
            assert np.array_equal(batch.labels[batch.labels != IGNORED], batch.ids[batch.labels != IGNORED])


def test_the_first_batch_of_all_is_of_the_longest_bucket() -> None:
    samples = samples_of([9] * 30 + [21], 300)
    for seed in range(5):
        assert Order(samples, (12, 21), batch_size=1, seed=seed).update(0)[0].bucket == 1


def test_the_order_of_an_update_does_not_hang_on_those_before_it() -> None:
    samples = samples_of([9, 21, 12, 7, 18], 300)
    walked, straight = (Order(samples, (12, 21), batch_size=1, seed=1) for _ in range(2))
    for number in range(12):
        last = walked.update(number)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(last, straight.update(11), strict=True))
    other = Order(samples, (12, 21), batch_size=1, seed=2)
    assert any(not np.array_equal(walked.update(n)[0].ids, other.update(n)[0].ids) for n in range(5))


def test_fewer_samples_than_a_batch_make_one_with_blank_rows() -> None:
    samples = samples_of([9, 5], 300, labelled=1.0)
    (batch,) = Order(samples, (12,), batch_size=4, seed=0).update(0)
    assert batch.ids.shape == (4, 12)
    assert batch.tokens == 14
    assert (batch.ids[2:] == 0).all()
    assert (batch.labels[2:] == IGNORED).all()


def test_samples_stay_in_their_order_without_a_seed() -> None:
    samples = samples_of([5, 6, 7], 300)
    order = Order(samples, (8,), batch_size=1, seed=None)
    assert [order.batch(number).tokens for number in range(3)] == [5, 6, 7]
