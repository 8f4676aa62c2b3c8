"""Batch order: each epoch visits every sample once, in an order fixed by seed and epoch, so that the batches of any update can be
worked out without those before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mebp.data.sample import Int64s, Samples, bucket_numbers
from mebp.errors import InputError

IGNORED = -100  # label of a token that does not count
BLANK = -1  # a row of a batch without a sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one bucket: `ids` and `labels` (batch, seq), not shifted; of their `tokens`, padding apart, `labelled` are
    predicted and counted.
    """

    bucket: int
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    tokens: int
    labelled: int


class Order:
    """Batches of a set of samples, in steps of `accumulate` batches for each update. `seq_lens` are the buckets' lengths."""

    def __init__(
        self, samples: Samples, seq_lens: Sequence[int], *, batch_size: int, accumulate: int = 1, seed: int | None = 0
    ) -> None:
        """With `seed` None the samples stay in their own order."""
        if not len(samples):
            raise InputError("there is no sample to train on: bring other data")
        self._samples = samples
        self.seq_lens = tuple(seq_lens)
        self._buckets = bucket_numbers(samples, seq_lens)
        self._batch_size = batch_size
        self._accumulate = accumulate
        self._seed = seed
        self._epoch = -1
        self._rows: Int64s = np.zeros((0, batch_size), np.int64)
        counts = np.bincount(self._buckets, minlength=len(self.seq_lens))
        self.num_batches = int((-(-counts // batch_size)).sum())

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.num_batches // self._accumulate)

    def update(self, number: int) -> list[Batch]:
        """The batches of update `number`, counted from 0 over all epochs."""
        epoch, within = divmod(number, self.updates_per_epoch)
        rows = self._rows_of(epoch)[within * self._accumulate : (within + 1) * self._accumulate]
        return [self._batch(row) for row in rows]

    def batch(self, number: int) -> Batch:
        """Batch `number` of the first epoch."""
        return self._batch(self._rows_of(0)[number])

    def _rows_of(self, epoch: int) -> Int64s:
        """The samples of every batch of an epoch (batches, batch size)."""
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._arranged(epoch)
        return self._rows

    def _arranged(self, epoch: int) -> Int64s:
        """Sample numbers by batch (batches, batch size): shuffled, grouped by bucket, each batch placed where its first sample
        falls. The first batch of all is of the longest bucket, so that what does not fit fails at once.
        """
        count, size = len(self._samples), self._batch_size
        shuffled = np.arange(count) if self._seed is None else np.random.default_rng([self._seed, epoch]).permutation(count)
        found: list[Int64s] = []
        firsts: list[Int64s] = []
        for bucket in range(len(self.seq_lens)):
            positions = np.flatnonzero(self._buckets[shuffled] == bucket)
            members = np.full(-(-len(positions) // size) * size, BLANK, np.int64)
            members[: len(positions)] = shuffled[positions]
            found.append(members.reshape(-1, size))
            firsts.append(positions[::size])
        rows = np.concatenate(found)[np.argsort(np.concatenate(firsts), kind="stable")]
        if epoch == 0 and self._seed is not None:
            longest = int(np.argmax(self._buckets[rows[:, 0]]))
            rows[[0, longest]] = rows[[longest, 0]]
        return rows

    def _batch(self, row: Int64s) -> Batch:
        samples, bucket = self._samples, int(self._buckets[row[0]])
        ids = np.zeros((len(row), self.seq_lens[bucket]), np.int64)
        labels = np.full_like(ids, IGNORED)
        for at, sample in enumerate(row[row != BLANK]):
            start, end = int(samples.starts[sample]), int(samples.ends[sample])
            own = samples.tokens.ids[start:end]
            ids[at, : end - start] = own
            labels[at, : end - start] = np.where(samples.tokens.labelled[start:end] > 0, own, IGNORED)
        present = row[row != BLANK]
        tokens, labelled = int(samples.lengths[present].sum()), int(samples.labelled[present].sum())
        return Batch(bucket=bucket, ids=ids, labels=labels, tokens=tokens, labelled=labelled)
