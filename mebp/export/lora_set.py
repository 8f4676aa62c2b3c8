"""The adapters of a model: a LoRA pair for each linear that has one, under the names that a store has, in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mebp.errors import InputError
from mebp.models.config import ModelConfig
from mebp.store.location import Location

Pair = tuple[Tensor, Tensor]  # A (rank, in), B (out, rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSet:
    """Pairs by the name of their linear (`3.q`), all scaled by alpha / rank: y = x W^T + alpha / rank (x A^T) B^T. InputError
    naming a pair that does not fit the model, or is not finite.
    """

    config: ModelConfig
    rank: int
    alpha: float
    pairs: Mapping[str, Pair]

    def __post_init__(self) -> None:
        shapes = self.config.matrices()
        if not self.pairs:
            raise InputError("the adapters are empty: nothing to write")
        for name, (A, B) in self.pairs.items():
            if name not in shapes or "." not in name:
                raise InputError(
                    f"adapter {name} belongs to no linear of {self.config.name}: name the model that it was trained on"
                )
            rows, cols = shapes[name]
            if tuple(A.shape) != (self.rank, cols) or tuple(B.shape) != (rows, self.rank):
                found = f"A {list(A.shape)} and B {list(B.shape)}"
                raise InputError(
                    f"adapter {name} has {found}, where {self.config.name} has {rows} x {cols} and the rank is {self.rank}:"
                    " name the model that it was trained on"
                )
            if not bool(torch.isfinite(A).all() and torch.isfinite(B).all()):
                raise InputError(f"adapter {name} holds values that are not finite: it did not converge, or was damaged")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a pair, in order."""
        return tuple(sorted({int(name.partition(".")[0]) for name in self.pairs}))

    def delta(self, name: str, rows: slice) -> Tensor | None:
        """Rows of alpha / rank B A, (rows, in) fp32; None where the linear has no pair."""
        if name not in self.pairs:
            return None
        A, B = (part.float() for part in self.pairs[name])
        return (self.scale * B[rows]) @ A

    def by_tensor(self, locations: Mapping[str, Location]) -> Iterator[tuple[Location, Pair]]:
        """The pair of every tensor that a target keeps linears in. Where several linears share one, their pairs lie in blocks: A
        one below the other, B along a diagonal, so that the rank is the sum of theirs; scaled by alpha / rank of a single pair.
        """
        shared: dict[str, list[str]] = {}
        for name in self.pairs:
            shared.setdefault(locations[name].tensor, []).append(name)
        for names in shared.values():
            first = locations[names[0]]
            if first.total == self.pairs[names[0]][1].shape[0]:
                yield first, self.pairs[names[0]]
            else:
                yield first, self._blocks(names, locations)

    def _blocks(self, names: list[str], locations: Mapping[str, Location]) -> Pair:
        total = locations[names[0]].total
        A = torch.cat([self.pairs[name][0] for name in names])
        B = torch.zeros(total, len(A), dtype=A.dtype)
        for at, name in enumerate(names):
            location, part = locations[name], self.pairs[name][1]
            B[location.first : location.first + len(part), at * self.rank : (at + 1) * self.rank] = part
        return A, B
