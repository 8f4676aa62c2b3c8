"""The spill file: where stored tensors wait between forward and backward."""

import ctypes
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mebp.errors import StoreError
from mebp.executor.mapped import map_unlinked
from mebp.models.tensor import TensorId

MS_SYNC = 4 if sys.platform.startswith("linux") else 0x10
_libc = ctypes.CDLL(None, use_errno=True)


class Spill:
    """A mapped file with a page-aligned slot for every tensor that a plan stores."""

    def __init__(self, sizes: Mapping[TensorId, int], folder: Path | None) -> None:
        self.slots: dict[TensorId, tuple[int, int]] = {}
        end = 0
        for tensor, nbytes in sizes.items():
            self.slots[tensor] = (end, nbytes)
            end += -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.nbytes = end
        self._map = map_unlinked(end, folder) if end else None
        self._bytes = torch.frombuffer(self._map, dtype=torch.int8) if self._map else torch.empty(0, dtype=torch.int8)

    def store(self, tensor: TensorId, source: Tensor) -> None:
        """Copy bytes out, write them back to flash, and drop their pages."""
        offset, nbytes = self.slots[tensor]
        _copy(self._bytes[offset : offset + nbytes], source)
        self._msync(offset, nbytes)
        self._drop(offset, nbytes)

    def load(self, tensor: TensorId, target: Tensor) -> None:
        """Copy bytes back in, and drop their pages."""
        offset, nbytes = self.slots[tensor]
        _copy(target, self._bytes[offset : offset + nbytes])
        self._drop(offset, nbytes)

    def _msync(self, offset: int, nbytes: int) -> None:
        """Through ctypes, which lets other threads run meanwhile; mmap.flush does not."""
        address = ctypes.c_void_p(self._bytes.data_ptr() + offset)
        if _libc.msync(address, ctypes.c_size_t(nbytes), MS_SYNC):
            number = ctypes.get_errno()
            raise StoreError(f"cannot write the spill file back: {os.strerror(number)}: name another folder as `spill_dir`")

    def _drop(self, offset: int, nbytes: int) -> None:
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, offset, nbytes)


def _copy(target: Tensor, source: Tensor) -> None:
    """Copy bytes on this thread alone: a copy of torch's would start threads of its own here, and with more threads than processors
    OpenMP puts all of them to sleep at each barrier, the products' too (a norm took 3.5 x as long).
    """
    assert target.nbytes == source.nbytes
    if target.device.type == source.device.type == "cpu":
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)
    else:
        target.copy_(source)
