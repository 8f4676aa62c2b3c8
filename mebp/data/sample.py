"""Samples, the sequences that a model is trained on: records cut to a length, or one stream of them cut into blocks; and buckets,
the few lengths that samples are padded to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mebp.data.token_set import TokenSet, open_tokens
from mebp.errors import InputError

UNIT = 32  # tokens that a bucket's length is a multiple of
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Sequences of a set of tokens: number i is [starts[i], ends[i]), and `labelled[i]` of its tokens are predicted and counted.
    Of the whole set `truncated` records were longer than a sequence, and `unlabelled` had no token that counts, and are left out.
    """

    tokens: TokenSet
    starts: Int64s
    ends: Int64s
    labelled: Int64s
    truncated: int = 0
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Int64s:
        return self.ends - self.starts

    def part(self, which: slice) -> "Samples":
        """Some of the samples."""
        return replace(self, starts=self.starts[which], ends=self.ends[which], labelled=self.labelled[which])


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRange:
    """Samples by what they are made of, for another process: tokens that are kept in `file` under `digest`, cut as `cut` does, and
    of these [first, last).
    """

    file: Path
    digest: str
    seq_len: int
    packed: bool
    first: int
    last: int

    def samples(self) -> Samples:
        """The samples; StoreError where the tokens are gone."""
        tokens = open_tokens(self.file, self.digest)
        return cut(tokens, self.seq_len, packed=self.packed, what=str(self.file)).part(slice(self.first, self.last))


def cut(tokens: TokenSet, seq_len: int, *, packed: bool, what: str) -> Samples:
    """Cut records into samples of at most `seq_len` tokens. `packed`: all records as one stream, in blocks of that length.
    InputError where nothing is left.
    """
    if packed:
        starts = np.arange(0, len(tokens.ids), seq_len, dtype=np.int64)
        ends, truncated = np.minimum(starts + seq_len, len(tokens.ids)), 0
    else:
        starts = np.concatenate((np.zeros(1, np.int64), tokens.ends[:-1]))
        ends = np.minimum(starts + seq_len, tokens.ends)
        truncated = int((tokens.ends > ends).sum())
    labelled = _labelled(tokens, starts, ends)
    counts = labelled > 0
    if not counts.any():
        raise InputError(f"{what}: no token within {seq_len} carries a label: raise `seq_len`, or check what is to be learnt")
    return Samples(
        tokens=tokens,
        starts=starts[counts],
        ends=ends[counts],
        labelled=labelled[counts],
        truncated=truncated,
        unlabelled=int((~counts).sum()),
    )


def _labelled(tokens: TokenSet, starts: Int64s, ends: Int64s) -> Int64s:
    """Labelled tokens of each sample, its first one left out: nothing predicts it."""
    last = len(tokens.labelled) - 1
    if last < 0:
        return np.zeros(len(starts), np.int64)
    bounds = np.minimum(np.stack((starts + 1, ends), axis=1).ravel(), last)
    sums: Int64s = np.add.reduceat(tokens.labelled, bounds, dtype=np.int64)[::2]
    sums[ends - starts <= 1] = 0
    for at in np.flatnonzero(ends > last):  # an end that no index may name
        sums[at] = tokens.labelled[starts[at] + 1 : ends[at]].sum(dtype=np.int64)
    return sums


def bucket_lengths(lengths: Int64s, most: int, longest: int) -> tuple[int, ...]:
    """At most `most` lengths, the last one enough for every sample, that make the fewest padded tokens; none above `longest`."""
    rounded = np.minimum(-(-lengths // UNIT) * UNIT, longest)
    values, counts = np.unique(np.maximum(rounded, 2), return_counts=True)
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    best: list[tuple[float, tuple[int, ...]]] = [
        (float(values[at] * total[at + 1]), (int(values[at]),)) for at in range(len(values))
    ]
    for _ in range(most - 1):
        best = [min([best[at], *_with_one_more(best, values, total, at)]) for at in range(len(values))]
    return best[-1][1]


def _with_one_more(
    best: list[tuple[float, tuple[int, ...]]], values: Int64s, total: Int64s, at: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Padded tokens and lengths for the samples up to value number `at`: its own length behind the best for those up to another."""
    length = int(values[at])
    return [(best[low][0] + float(length * (total[at + 1] - total[low + 1])), (*best[low][1], length)) for low in range(at)]


def bucket_numbers(samples: Samples, seq_lens: Sequence[int]) -> Int64s:
    """The first bucket that is long enough for each sample."""
    found: Int64s = np.searchsorted(np.array(seq_lens), samples.lengths).astype(np.int64)
    return found
