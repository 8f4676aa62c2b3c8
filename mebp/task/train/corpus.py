"""The data of a run: files as they are named, read into samples to train on and samples that are held out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mebp.data.record import is_json_lines
from mebp.data.record_tokenizer import RecordTokenizer
from mebp.data.sample import SampleRange, Samples, bucket_lengths, bucket_numbers, cut
from mebp.data.token_set import TokenSet, read_tokens, require_vocabulary
from mebp.errors import InputError
from mebp.models.workload import MAX_TOKENS
from mebp.unit import require_kind, require_whole

TRAIN, VALID = "train.jsonl", "valid.jsonl"
MOST_HELD_OUT = 0.5  # of the data


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Samples, how another process finds them, and the lengths that they are padded to."""

    samples: Samples
    range: SampleRange
    seq_lens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What is trained on and what is held out (None: nothing), of which files; `packed` where records are cut as one stream."""

    train: Split
    held_out: Split | None
    files: tuple[Path, ...]
    packed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which data: a file, or a folder with `train.jsonl` and perhaps `valid.jsonl`; `valid` names held-out data, `hold_out` the
    part at the end of the data that is held out instead. Samples have at most `seq_len` tokens, padded to at most `buckets`
    lengths, or packed (None: packed where the data are plain text).
    """

    data: Path | str
    valid: Path | str | None = None
    hold_out: float = 0.0
    seq_len: int = 256
    buckets: int = 2
    packed: bool | None = None

    def files(self) -> tuple[Path, Path | None]:
        """The files to train on and to hold out; InputError where the folder has none, or both ways of holding out are named."""
        for what, named in (("`data`", self.data), ("`valid`", self.valid or "")):
            require_kind(what, named, str, Path, remedy="name a file")
        train, valid = Path(self.data), None if self.valid is None else Path(self.valid)
        if train.is_dir():
            folder, train = train, train / TRAIN
            if not train.is_file():
                raise InputError(f"`data` {folder} is a folder without {TRAIN}: name a file, or put one there")
            if valid is None and (folder / VALID).is_file():
                valid = folder / VALID
        elif not train.exists():
            raise InputError(f"`data` {train}: no such file: name a file of text or JSON lines, or a folder with {TRAIN}")
        if not 0 <= self.hold_out <= MOST_HELD_OUT:
            raise InputError(f"`hold_out` = {self.hold_out:g}: must be between 0 and {MOST_HELD_OUT}, a part of the data")
        if valid is not None and self.hold_out:
            raise InputError(f"`hold_out` = {self.hold_out:g}, and {valid} is held out already: leave one of the two out")
        return train, valid


def read_corpus(
    source: Source, tokenizer: RecordTokenizer, vocabulary: int, progress: Callable[[Path, int], None] = lambda *_: None
) -> Corpus:
    """Read, or find again, the tokens of a run's data; InputError in one line for data that no run can take."""
    train_file, valid_file = source.files()
    if not 1 <= source.buckets <= 8:
        raise InputError(f"`buckets` = {source.buckets}: must be between 1 and 8")
    require_whole("`seq_len`", source.seq_len, 2, MAX_TOKENS)
    packed = not is_json_lines(train_file) if source.packed is None else source.packed

    def samples_of(file: Path, what: str) -> tuple[TokenSet, Samples]:
        tokens = read_tokens(file, tokenizer, lambda count: progress(file, count), what)
        require_vocabulary(tokens, vocabulary, f"{what} {file}")
        return tokens, cut(tokens, source.seq_len, packed=packed, what=f"{what} {file}")

    tokens, samples = samples_of(train_file, "`data`")
    count = len(samples)
    held = round(count * source.hold_out) or int(source.hold_out > 0)
    if held >= count:
        raise InputError(f"`data` {train_file} has {count} samples: too few to hold {held} out: name `valid`, or bring more")
    train = _split(samples, tokens, source, packed, 0, count - held)
    held_out = _split(samples, tokens, source, packed, count - held, count) if held else None
    if valid_file is not None:
        valid_tokens, valid_samples = samples_of(valid_file, "`valid`")
        held_out = _split(valid_samples, valid_tokens, source, packed, 0, len(valid_samples))
    files = (train_file, *((valid_file,) if valid_file else ()))
    return Corpus(train=train, held_out=held_out, files=files, packed=packed)


def _split(samples: Samples, tokens: TokenSet, source: Source, packed: bool, first: int, last: int) -> Split:
    part = samples.part(slice(first, last))
    lens = (source.seq_len,) if packed and len(part) > 1 else bucket_lengths(part.lengths, source.buckets, source.seq_len)
    where = SampleRange(file=tokens.file, digest=tokens.digest, seq_len=source.seq_len, packed=packed, first=first, last=last)
    return Split(samples=part, range=where, seq_lens=lens)


def most_labelled(split: Split, bucket: int, batch_size: int) -> int:
    """The most labelled tokens that a batch of a bucket can have."""
    which = bucket_numbers(split.samples, split.seq_lens) == bucket
    found = np.sort(split.samples.labelled[which])[-batch_size:]
    return int(found.sum())
