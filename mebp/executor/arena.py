"""The arena: one allocation whose bytes the plan gives to tensors and to scratch."""

from collections.abc import Collection

import torch
from torch import Tensor

from mebp.models.op import DType, Scratch
from mebp.models.tensor import align
from mebp.plan import Place

TYPES: dict[DType, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


class Arena:
    """One allocation; tensors are typed views of it. `used_bytes` is the highest byte that any view reached, `owner` whose weights
    are resident in it.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.int8, device=device)
        self._typed = {dtype: self.bytes[: nbytes // dtype.itemsize * dtype.itemsize].view(dtype) for dtype in TYPES.values()}
        self.used_bytes = 0
        self.owner: object = None

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of `shape` at `offset` bytes (a multiple of 64)."""
        strides, count = [], 1
        for extent in reversed(shape):
            strides.append(count)
            count *= extent
        self.used_bytes = max(self.used_bytes, offset + align(count * dtype.itemsize))
        return self._typed[dtype].as_strided(shape, strides[::-1], offset // dtype.itemsize)


class Workspace:
    """An op's scratch while it runs: buffers by name, where the op's kind declared them (mebp/models/kind)."""

    def __init__(self, arena: Arena, place: Place | None, scratch: Scratch) -> None:
        self._arena = arena
        self._offset = place.offset if place else 0
        self._scratch = scratch
        self._taken: set[str] = set()

    def take(self, name: str) -> Tensor:
        """A declared buffer; KeyError for a name that the kind does not declare."""
        offset, buffer = self._scratch.places[name]
        self._taken.add(name)
        return self._arena.view(self._offset + offset, buffer.shape, TYPES[buffer.dtype])

    def take_if_any(self, name: str) -> Tensor | None:
        """A declared buffer, None where this op has none of that name."""
        return self.take(name) if name in self._scratch.places else None

    def whole(self, behind: Collection[str] = ()) -> Tensor:
        """All of it as one buffer of bytes, in the place of every declared one but those named and what lies before their end."""
        self._taken.update(self._scratch.places)
        ends = [offset + buffer.nbytes for offset, buffer in (self._scratch.places[name] for name in behind)]
        start = align(max(ends, default=0))
        return self._arena.view(self._offset + start, (max(0, self._scratch.nbytes - start),), torch.int8)

    @property
    def untouched(self) -> list[str]:
        """Declared buffers that the op never took: the plan gave it bytes for nothing."""
        return sorted(self._scratch.places.keys() - self._taken)
