"""Matrices that other tools have quantised, in a folder of safetensors: MLX, GPTQ and AWQ. Codes, scales and offsets are taken as
they are, only laid out anew: unpacked, a weight is what the tool's own formula makes of it in single precision.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mebp.errors import ModelError
from mebp.kernel.weight import Frozen
from mebp.models.format import CODES, FORMATS, OFFSETS, SCALES, WeightFormat
from mebp.store.codec import code_parts
from mebp.store.tensor_folder import TensorFolder
from mebp.text import shortened

SUFFIXES = {"BF16": "", "F16": "-fp16"}  # of the names of formats, by the type of scales
KNOWN = "4 and 8 bits of MLX, and 4 bits of GPTQ and AWQ, in groups of 32, 64 or 128"
NIBBLES = tuple(range(0, 32, 4))  # where a word's eight codes begin
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each of a word's codes is of
CENTRE = 8  # the zero point of codes that are symmetric


class Packing(Protocol):
    """How one tool packs a matrix (rows, cols). `module` is the name of the tensors without the part behind the last dot; several
    matrices may share one module, whose rows are counted here.
    """

    name: str
    rows_at_a_time: int  # that pieces must be a multiple of

    def parts(self, module: str) -> tuple[str, ...]:
        """The names of a matrix's tensors, all of which must be there; none where it is not quantised."""

    def format(self, module: str, rows: int, cols: int) -> WeightFormat:
        """Which format of ours a module of (rows, cols) is in; ModelError where its tensors are of other shapes or types, or in
        none that is known.
        """

    def frozen(self, module: str, rows: slice, cols: int, fmt: WeightFormat) -> Frozen:
        """Some rows of a module; ModelError where a scale is not finite."""


def packing_of(raw: Mapping[str, Any], folder: Path) -> Callable[[TensorFolder], Packing] | None:
    """How the matrices of a checkpoint in `folder` with this config.json are packed; None where they are not. ModelError in one
    line for what is not known.
    """
    found = raw.get("quantization_config") or raw.get("quantization")
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method", "mlx")).lower()
    bits = found.get("bits")
    said = f"{folder} is quantised already ({shortened(method)}{f', {bits} bits' if isinstance(bits, int) else ''})"
    if method == "mlx" and found.get("mode", "affine") == "affine":
        return _Mlx
    if method == "gptq" and bits == 4 and found.get("checkpoint_format", "gptq") in ("gptq", "gptq_v2"):
        return partial(_Gptq, first=0 if found.get("checkpoint_format") == "gptq_v2" else 1)
    if method == "awq" and bits == 4 and str(found.get("version", "gemm")).lower() == "gemm":
        return _Awq
    raise ModelError(f"{said}, which is not read: {KNOWN} are; or take the checkpoint that it was made from")


@dataclass(slots=True)
class _Mlx:
    """`weight` (rows, words) has 32-bit words, the first code in the lowest bits; weight = code x scale + bias, a group of columns
    each, scales and biases (rows, groups).
    """

    tensors: TensorFolder
    name: str = "MLX"
    rows_at_a_time: int = 1

    def parts(self, module: str) -> tuple[str, ...]:
        names = tuple(f"{module}.{part}" for part in ("weight", "scales", "biases"))
        packed = names[0] in self.tensors and self.tensors.type_and_shape(names[0])[0] == "U32"
        return names if packed or names[1] in self.tensors else ()

    def format(self, module: str, rows: int, cols: int) -> WeightFormat:
        (_, words), (dtype, groups) = (self.tensors.type_and_shape(f"{module}.{part}") for part in ("weight", "scales"))
        self.tensors.require_shape(f"{module}.weight", (rows, words[-1] if words else 0), ("U32",))
        if words[-1] * 32 % cols:
            raise ModelError(
                f"{self.tensors.folder}: tensor {module}.weight has {words[-1]} words a row, which hold no whole number of bits of"
                f" {cols} columns, as its config.json says"
            )
        for part in ("scales", "biases"):
            self.tensors.require_shape(f"{module}.{part}", (rows, groups[-1] if groups else 0), (dtype,))
        return _known(self.tensors, module, f"int{words[-1] * 32 / cols:g}-affine-g{_group(cols, groups[-1])}", dtype)

    def frozen(self, module: str, rows: slice, cols: int, fmt: WeightFormat) -> Frozen:
        words = self.tensors.read(f"{module}.weight", rows).contiguous().view(torch.uint8)  # (rows, bytes), low codes first
        codes = words if fmt.bits == 8 else torch.stack((words & 15, words >> 4), dim=2).view(len(words), -1)
        scales, offsets = (self.tensors.read_floats(f"{module}.{part}", rows) for part in ("scales", "biases"))
        return _frozen(fmt, cols, codes, scales, offsets)


@dataclass(slots=True)
class _Gptq:
    """`qweight` (cols / 8, rows) has eight columns of a row in a word, `qzeros` (groups, rows / 8) the zero points of eight rows,
    less `first`; `scales` are (groups, rows).
    """

    tensors: TensorFolder
    first: int
    name: str = "GPTQ"
    rows_at_a_time: int = 8

    def parts(self, module: str) -> tuple[str, ...]:
        return _words_and_scales(self.tensors, module)

    def format(self, module: str, rows: int, cols: int) -> WeightFormat:
        group = _columns(self.tensors, module, rows, cols, (cols // 8, rows))
        if (order := f"{module}.g_idx") in self.tensors:
            self.tensors.require_shape(order, (cols,), ("I32",))
            if not torch.equal(self.tensors.read(order), torch.arange(cols, dtype=torch.int32) // group):
                raise ModelError(
                    f"{self.tensors.folder}: {order} puts columns in groups out of order (act-order), which is not read: take a"
                    " checkpoint that was quantised with desc_act = false"
                )
        return _grouped(self.tensors, module, group, self._zeros(module))

    def frozen(self, module: str, rows: slice, cols: int, fmt: WeightFormat) -> Frozen:
        words = self.tensors.read(f"{module}.qweight", slice(None), rows)  # (cols / 8, rows)
        codes = _nibbles(words.T)  # (rows, cols)
        scales = self.tensors.read_floats(f"{module}.scales", slice(None), rows).T
        return _centred(fmt, cols, codes, scales, self._zeros(module).T[rows])

    def _zeros(self, module: str) -> Tensor:
        """(groups, rows)"""
        return _nibbles(self.tensors.read(f"{module}.qzeros")) + self.first


@dataclass(slots=True)
class _Awq:
    """`qweight` (cols, rows / 8) and `qzeros` (groups, rows / 8) have eight rows of a column in a word, in an order of their own;
    `scales` are (groups, rows).
    """

    tensors: TensorFolder
    name: str = "AWQ"
    rows_at_a_time: int = 8

    def parts(self, module: str) -> tuple[str, ...]:
        return _words_and_scales(self.tensors, module)

    def format(self, module: str, rows: int, cols: int) -> WeightFormat:
        group = _columns(self.tensors, module, rows, cols, (cols, rows // 8))
        return _grouped(self.tensors, module, group, self._unpacked(module, "qzeros"))

    def frozen(self, module: str, rows: slice, cols: int, fmt: WeightFormat) -> Frozen:
        words = slice(rows.start // 8, rows.stop // 8)
        codes, zeros = (self._unpacked(module, part, words).T for part in ("qweight", "qzeros"))
        return _centred(fmt, cols, codes, self.tensors.read_floats(f"{module}.scales", slice(None), rows).T, zeros)

    def _unpacked(self, module: str, part: str, words: slice = slice(None)) -> Tensor:
        """(cols or groups, rows)"""
        found = self.tensors.read(f"{module}.{part}", slice(None), words)
        ordered = _nibbles(found).view(*found.shape, 8)
        return ordered[..., [AWQ_ORDER.index(row) for row in range(8)]].reshape(len(found), -1)


def _words_and_scales(tensors: TensorFolder, module: str) -> tuple[str, ...]:
    """The tensors of a GPTQ or AWQ module; none where it is not quantised."""
    names = tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    return names if names[0] in tensors else ()


def _columns(tensors: TensorFolder, module: str, rows: int, cols: int, words: tuple[int, int]) -> int:
    """Columns of a group of a GPTQ or AWQ module, whose tensors must fit; `words` is the shape of its codes."""
    _, shape = tensors.type_and_shape(f"{module}.scales")
    groups = shape[0] if shape else 0
    tensors.require_shape(f"{module}.scales", (groups, rows), tuple(SUFFIXES))
    tensors.require_shape(f"{module}.qweight", words, ("I32",))
    tensors.require_shape(f"{module}.qzeros", (groups, rows // 8), ("I32",))
    if not (group := _group(cols, groups)):
        raise ModelError(f"{tensors.folder}: {module}.scales has {groups} groups, which do not divide {cols} columns")
    return group


def _group(cols: int, groups: int) -> int:
    """Columns of a group; 0, which no format has, where groups do not divide them."""
    return cols // groups if groups and cols % groups == 0 else 0


def _grouped(tensors: TensorFolder, module: str, group: int, zeros: Tensor) -> WeightFormat:
    """Signed codes where every zero point is in the middle of them."""
    dtype, _ = tensors.type_and_shape(f"{module}.scales")
    symmetric = bool((zeros == CENTRE).all())
    return _known(tensors, module, f"int4-{'' if symmetric else 'zero-'}g{group}", dtype)


def _known(tensors: TensorFolder, module: str, name: str, dtype: str) -> WeightFormat:
    name = f"{name}{SUFFIXES.get(dtype, f' with scales in {dtype}')}"
    name = "q4_0" if name == "int4-g32-fp16" else "q4_1" if name == "int4-affine-g32-fp16" else name
    if name not in FORMATS:
        raise ModelError(f"{tensors.folder}: {module} is in {name}, which is not read: {KNOWN} are")
    return FORMATS[name]


def _nibbles(words: Tensor) -> Tensor:
    """(rows, words) int32 as their eight codes of 4 bits each, (rows, 8 words) int32, low bits first."""
    return ((words[..., None] >> torch.tensor(NIBBLES, dtype=torch.int32)) & 15).reshape(len(words), -1)


def _centred(fmt: WeightFormat, cols: int, codes: Tensor, scales: Tensor, zeros: Tensor) -> Frozen:
    """Of codes (rows, cols), scales and zero points (rows, groups)."""
    if fmt.zero_point:
        return _frozen(fmt, cols, codes, scales, zeros.to(torch.uint8))
    return _frozen(fmt, cols, codes - CENTRE, scales, None)


def _frozen(fmt: WeightFormat, cols: int, codes: Tensor, scales: Tensor, offsets: Tensor | None) -> Frozen:
    joined = codes.contiguous().view(torch.int8) if fmt.bits == 8 else code_parts(codes.contiguous(), fmt.bits)[CODES]
    parts = {CODES: joined, SCALES: scales.contiguous()} | ({} if offsets is None else {OFFSETS: offsets.contiguous()})
    return Frozen(format=fmt, cols=cols, parts=parts)
