"""Weight formats: how a frozen weight of shape (rows, cols) is stored, and how many bytes that takes.

A format is data. Codes are signed, symmetric, and laid out so that unpacking runs over contiguous bytes: byte i of a row holds the
codes of columns i, i + m, ... (m = cols / codes per byte), low bits first, each in two's complement. Shifted to the top of a
signed byte a code is worth `code x 2**(8 - bits)`; the stored step (bf16, one for each `group` columns) is the value of one unit
there, so `weight = signed byte x step`. This module knows sizes only; mebp/store/codec.py moves the bits.
"""

from dataclasses import dataclass

from mebp.errors import InputError

STEP_BYTES = 2  # one bf16 per group
PLAIN_BITS = 16  # of a weight that is stored in bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A storage format; `group` counts columns that share one step, 0 a whole row; 16 bits are plain bf16."""

    name: str
    bits: int
    group: int

    @property
    def compressed(self) -> bool:
        """Whether a weight must be unpacked before a product can read it."""
        return self.bits < PLAIN_BITS

    def group_cols(self, cols: int) -> int:
        """Columns that share one step in a row of `cols`."""
        return self.group or cols

    def code_bytes(self, rows: int, cols: int) -> int:
        """Bytes of the codes."""
        return rows * cols * self.bits // 8

    def code_elements(self, cols: int) -> int:
        """Stored elements of one row: bytes of codes, or bf16 weights."""
        return cols * self.bits // 8 if self.compressed else cols

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a stored (rows, cols) weight, steps included."""
        steps = rows * (cols // self.group_cols(cols)) * STEP_BYTES if self.compressed else 0
        return self.code_bytes(rows, cols) + steps

    def require_fits(self, name: str, cols: int) -> None:
        """Refuse a weight whose row does not divide into groups, or a group into whole bytes."""
        group = self.group_cols(cols)
        if self.compressed and (cols % group or cols * self.bits % 8):
            remedy = REMEDY.get(self.name, REMEDIES)
            raise InputError(f"weight {name} has {cols} columns, which format {self.name} cannot divide: take {remedy}")


WEIGHTS_FILE = "weights.safetensors"  # of a store
STORE_VERSION = "3"  # of the files with weights in these formats
REMEDIES = "a smaller group (int4-g32), int8 or bf16"
REMEDY = {"int4-g32": "int8 or bf16", "ternary": "int8 or bf16", "int8": "bf16"}

FORMATS = {
    fmt.name: fmt
    for fmt in (
        WeightFormat(name="int4-g32", bits=4, group=32),
        WeightFormat(name="int4-g64", bits=4, group=64),
        WeightFormat(name="int4-g128", bits=4, group=128),
        WeightFormat(name="int8", bits=8, group=0),
        WeightFormat(name="ternary", bits=2, group=0),
        WeightFormat(name="bf16", bits=PLAIN_BITS, group=0),
    )
}


def weight_format(name: str) -> WeightFormat:
    """Look a format up by name; an unknown one is an InputError that lists what there is."""
    if name not in FORMATS:
        raise InputError(f"unknown weight format {name!r}: take one of {', '.join(FORMATS)}")
    return FORMATS[name]
