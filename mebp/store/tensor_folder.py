"""A folder of safetensors, sharded or not: which tensors there are, and rows of one. Nothing is unpickled or executed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mebp.errors import ModelError
from mebp.text import read_text

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOAT_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class TensorFolder:
    """The tensors of a checkpoint's folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _weight_map(folder)
        self._see: Callable[[memoryview], object] = len

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def watch(self, see: Callable[[memoryview], object]) -> None:
        """Show `see` every byte that is read."""
        self._see = see

    def require(self, name: str, why: str) -> None:
        """Refuse a folder without a tensor."""
        if name not in self._files:
            raise ModelError(f"{self.folder}: tensor {name} is missing: {why}")

    def type_and_shape(self, name: str) -> tuple[str, tuple[int, ...]]:
        """How safetensors calls a tensor's type (`U32`), and its shape."""
        with self._reading(name) as file, safe_open(file, framework="pt") as opened:
            view = opened.get_slice(name)
            return str(view.get_dtype()), tuple(view.get_shape())

    def float_type(self, name: str) -> torch.dtype:
        """The type of a tensor that must be of floating-point numbers."""
        dtype, _ = self.type_and_shape(name)
        if dtype not in FLOAT_TYPES:
            raise ModelError(f"{self.folder / self._files[name]}: tensor {name} is {dtype}: expected BF16, F16 or F32")
        return FLOAT_TYPES[dtype]

    def read(self, name: str, rows: slice = slice(None), cols: slice | None = None) -> Tensor:
        """Rows, and of a matrix columns, of a tensor."""
        with self._reading(name) as file, safe_open(file, framework="pt") as opened:
            view = opened.get_slice(name)
            piece: Tensor = view[rows] if cols is None else view[rows, cols]
        self._see(piece.contiguous().view(torch.uint8).numpy().data)
        return piece

    def read_floats(self, name: str, rows: slice, cols: slice | None = None) -> Tensor:
        """Rows, and of a matrix columns, of a tensor that must be of finite floating-point numbers."""
        piece, file = self.read(name, rows, cols), self.folder / self._files[name]
        if piece.dtype not in FLOAT_TYPES.values():
            raise ModelError(f"{file}: tensor {name} is {piece.dtype}: expected bfloat16, float16 or float32")
        if not bool(torch.isfinite(piece).all()):
            raise ModelError(f"{file}: tensor {name} holds values that are not finite: copy the checkpoint again")
        return piece

    def require_shape(self, name: str, shape: tuple[int, ...], types: tuple[str, ...] = ()) -> None:
        """Refuse a tensor of another shape than the config asks for, or of none of some types."""
        dtype, found = self.type_and_shape(name)
        where = self.folder / self._files[name]
        if found != shape:
            raise ModelError(f"{where}: tensor {name} has shape {list(found)}, its config.json asks for {list(shape)}")
        if types and dtype not in types:
            raise ModelError(f"{where}: tensor {name} is {dtype}: expected {' or '.join(types)}")

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        file = self.folder / self._files[name]
        try:
            yield file
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot read tensor {name} of {file}: {error}: copy the checkpoint again") from None


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to the file that holds it, every file there."""
    index = folder / INDEX_FILE
    if not index.is_file():
        files = dict.fromkeys(_keys(folder / SINGLE_FILE), SINGLE_FILE)
        if not files:
            raise ModelError(f"{folder / SINGLE_FILE} holds no tensors: copy the checkpoint again")
        return files
    try:
        found = json.loads(read_text(index))["weight_map"]
        pairs = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{index} is not a checkpoint's index: expected an object with a weight_map") from None
    for file in sorted(set(pairs.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{index} points to {file!r}: expected the name of a .safetensors file in the same folder")
        present = set(_keys(folder / file))
        for name in (name for name, other in pairs.items() if other == file and name not in present):
            raise ModelError(f"{folder / file}: tensor {name} is missing, which {INDEX_FILE} says is there")
    return pairs


def _keys(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    if not file.is_file():
        raise ModelError(f"no {file.name} in {file.parent}: expected safetensors, whole ({SINGLE_FILE}) or with {INDEX_FILE}")
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {file}: {error}: copy the checkpoint again") from None
