"""Weight formats: the parts that a frozen weight of shape (rows, cols) is stored in, what they are worth, how many bytes they take.

A format is data: `weight = level x scale + offset`, rounded once to the type that is asked for. A code of `bits` bits names a
level: a whole number, signed or not, or one of NF4's. `group` columns share a scale, and an offset where the format has them.
Scales and offsets are 16-bit floats, or bytes that a 16-bit float for each `block` columns multiplies. Or the offset is a byte, the
zero point: the level that is worth nothing, `weight = (level - zero point) x scale`.

Codes are laid out so that unpacking runs over contiguous bytes: byte i of a row holds the codes of columns i, i + m, ...
(m = cols / codes per byte), low bits first. Of codes of 6 bits the part `codes` has the low four, and `high` the upper two in the
same way. This module knows sizes only; mebp/store/codec.py and mebp/kernel move the bits.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from mebp.errors import InputError

Levels = Literal["signed", "unsigned", "nf4"]
PartType = Literal["int8", "uint8", "bf16", "fp16"]
PART_BYTES: dict[PartType, int] = {"int8": 1, "uint8": 1, "bf16": 2, "fp16": 2}
CODES, HIGH, SCALES, OFFSETS = "codes", "high", "scales", "offsets"
BLOCK_SCALES, BLOCK_OFFSETS = "block_scales", "block_offsets"
SPLIT_BITS = 6  # of codes in two parts
PLAIN_BITS = 16  # of a weight that is stored in bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a format stores: so many values a row."""

    name: str
    dtype: PartType
    per_row: int

    @property
    def row_bytes(self) -> int:
        return self.per_row * PART_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A storage format; `group` counts columns that share one scale, 0 a whole row; 16 bits are plain bf16, in the part `codes`.

    `scale` is the type of scales and offsets; where it is a byte, `block` columns (0: a whole row) share a fp16 number that
    multiplies them. With `zero_point` offsets are zero points.
    """

    name: str
    bits: int
    group: int = 0
    levels: Levels = "signed"
    scale: PartType = "bf16"
    affine: bool = False
    zero_point: bool = False
    block: int = 0

    @property
    def offset(self) -> PartType | None:
        """The type of offsets; None where there are none."""
        return "uint8" if self.zero_point else self.scale if self.affine else None

    @property
    def compressed(self) -> bool:
        """Whether a weight must be unpacked before a product can read it."""
        return self.bits < PLAIN_BITS

    def group_cols(self, cols: int) -> int:
        """Columns that share one scale in a row of `cols`."""
        return self.group or cols

    def block_cols(self, cols: int) -> int:
        """Columns that share one 16-bit float in a row of `cols`; 0 where scales are no bytes."""
        return (self.block or cols) if PART_BYTES[self.scale] == 1 else 0

    @property
    def low_bits(self) -> int:
        """Bits of a code in the part `codes`."""
        return 4 if self.bits == SPLIT_BITS else self.bits

    def parts(self, cols: int) -> tuple[Part, ...]:
        """What a row of `cols` is stored in."""
        if not self.compressed:
            return (Part(name=CODES, dtype="bf16", per_row=cols),)
        groups = cols // self.group_cols(cols)
        found = [
            Part(name=CODES, dtype="int8", per_row=cols * self.low_bits // 8),
            Part(name=SCALES, dtype=self.scale, per_row=groups),
        ]
        if self.bits == SPLIT_BITS:
            found.append(Part(name=HIGH, dtype="int8", per_row=cols // 4))
        if self.offset:
            found.append(Part(name=OFFSETS, dtype=self.offset, per_row=groups))
        if block := self.block_cols(cols):
            found.append(Part(name=BLOCK_SCALES, dtype="fp16", per_row=cols // block))
            if self.affine:
                found.append(Part(name=BLOCK_OFFSETS, dtype="fp16", per_row=cols // block))
        return tuple(found)

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a stored (rows, cols) weight, all its parts."""
        return rows * sum(part.row_bytes for part in self.parts(cols))

    def require_fits(self, name: str, cols: int) -> None:
        """Refuse a weight whose row does not divide into groups and blocks, or into whole bytes."""
        whole = (
            cols % (self.block or self.group_cols(cols)) == 0
            and cols % (4 if self.bits == SPLIT_BITS else 8 // self.bits or 1) == 0
        )
        if self.compressed and not whole:
            remedy = REMEDY.get(self.name, REMEDIES)
            raise InputError(f"weight {name} has {cols} columns, which format {self.name} cannot divide: take {remedy}")


WEIGHTS_FILE = "weights.safetensors"  # of a store
STORE_VERSION = "5"  # of the files with weights in these formats
REMEDIES = "a smaller group (int4-g32), int8 or bf16"
REMEDY = {"int4-g32": "int8 or bf16", "ternary": "int8 or bf16", "int8": "bf16"}


def _imported() -> Iterator[WeightFormat]:
    """What other tools quantise to: signed, affine or with zero points, in groups of some sizes, scales in either 16-bit type."""
    types: tuple[tuple[PartType, str], ...] = (("bf16", ""), ("fp16", "-fp16"))
    for group, (scale, suffix) in product((32, 64, 128), types):
        common = WeightFormat(name="", bits=4, group=group, levels="unsigned", scale=scale)
        for bits in (4, 8):
            yield replace(common, name=f"int{bits}-affine-g{group}{suffix}", bits=bits, affine=True)
        yield replace(common, name=f"int4-zero-g{group}{suffix}", zero_point=True)
        if suffix:
            yield replace(common, name=f"int4-g{group}{suffix}", levels="signed")


FORMATS = {
    fmt.name: fmt
    for fmt in (
        WeightFormat(name="int4-g32", bits=4, group=32),
        WeightFormat(name="int4-g64", bits=4, group=64),
        WeightFormat(name="int4-g128", bits=4, group=128),
        WeightFormat(name="nf4-g64", bits=4, group=64, levels="nf4"),
        WeightFormat(name="int4-k", bits=4, group=32, levels="unsigned", scale="uint8", affine=True),
        WeightFormat(name="int6", bits=6),
        WeightFormat(name="int8", bits=8),
        WeightFormat(name="ternary", bits=2),
        WeightFormat(name="bf16", bits=PLAIN_BITS),
        WeightFormat(name="q4_0", bits=4, group=32, scale="fp16"),
        WeightFormat(name="q4_1", bits=4, group=32, levels="unsigned", scale="fp16", affine=True),
        WeightFormat(name="q8_0", bits=8, group=32, scale="fp16"),
        WeightFormat(name="q4_k", bits=4, group=32, levels="unsigned", scale="uint8", affine=True, block=256),
        WeightFormat(name="q6_k", bits=6, group=16, scale="int8", block=256),
        *_imported(),
    )
}
OFFERED = tuple(name for name, fmt in FORMATS.items() if not (fmt.block or fmt.zero_point or fmt.scale == "fp16"))
"""Formats that help texts name: those of blocks, zero points and fp16 scales are what others' files come in."""


def weight_format(name: str) -> WeightFormat:
    """Look a format up by name; an unknown one is an InputError that lists what there is."""
    if name not in FORMATS:
        raise InputError(f"unknown weight format {name!r}: take one of {', '.join((*RECIPES, *OFFERED))}")
    return FORMATS[name]


ATTENTION, FFN = ("q", "k", "v", "o"), ("gate", "up", "down")
SELECTORS = {"attention": ATTENTION, "ffn": FFN, "layers": (*ATTENTION, *FFN)}  # roles, by a name for several
ROLES = (*ATTENTION, *FFN, "embedding", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormats:
    """Which format each weight of a model is stored in: the `default`, and by role (`q`, `embedding`) or by a store's name (`3.q`)
    what differs from it. `name` says the same in one word, or as the list that `weight_formats` reads.
    """

    name: str
    default: WeightFormat
    others: tuple[tuple[str, WeightFormat], ...] = ()

    def of(self, name: str) -> WeightFormat:
        """The format of the weight that a store calls `name`."""
        found = dict(self.others)
        return found.get(name) or found.get(name.rpartition(".")[2], self.default)

    def require_fits(self, name: str, cols: int) -> None:
        """Refuse a weight whose columns its format cannot divide."""
        self.of(name).require_fits(name, cols)


def weight_formats(text: str) -> WeightFormats:
    """Read a recipe's name, a format's, or a list that changes either for some weights: `int4,ffn=int4-g32,3.down=int8`. Roles are
    q, k, v, o, gate, up, down, embedding and head; `attention`, `ffn` and `layers` name several.
    """
    first, *rest = (word.strip() for word in text.split(","))
    if "=" in first:
        first, rest = DEFAULT_RECIPE, [first, *rest]
    recipe = RECIPES.get(first, first).split(",")
    others: dict[str, WeightFormat] = {}
    for word in (*recipe[1:], *rest):
        selector, equals, name = (part.strip() for part in word.partition("="))
        if not equals:
            raise InputError(f"`weights` {text!r}: expected WEIGHTS=FORMAT after the first word, found {word!r}")
        for role in SELECTORS.get(selector, (selector,)):
            if role.rpartition(".")[2] not in ROLES:
                known = ", ".join((*SELECTORS, *ROLES))
                raise InputError(f"`weights` {text!r}: no weight is called {selector!r}: take one of {known}, or one such as 3.q")
            others.pop(role, None)
            others[role] = weight_format(name)
    default = weight_format(recipe[0])
    others = {role: fmt for role, fmt in others.items() if fmt != default or "." in role}
    spelled = ",".join([default.name, *(f"{role}={fmt.name}" for role, fmt in others.items())])
    recipes = {RECIPES[name]: name for name in RECIPES}
    return WeightFormats(name=recipes.get(spelled, spelled), default=default, others=tuple(others.items()))


def formats_of(found: Mapping[str, WeightFormat]) -> WeightFormats:
    """The formats that weights have by name, said as shortly as can be: what most have, then roles, then single weights."""
    default, _ = Counter(found.values()).most_common(1)[0]
    by_role: dict[str, list[tuple[str, WeightFormat]]] = {}
    for name, fmt in found.items():
        by_role.setdefault(name.rpartition(".")[2], []).append((name, fmt))
    words = [default.name]
    for role, weights in by_role.items():
        common, _ = Counter(fmt for _, fmt in weights).most_common(1)[0]
        words += [f"{role}={common.name}"] if common != default else []
        words += [f"{name}={fmt.name}" for name, fmt in weights if fmt != common]
    return weight_formats(",".join(words))


DEFAULT_RECIPE = "int4"
RECIPES = {"int4": "int4-k,embedding=int6,head=int6"}
BY_SIZE = ("ternary", "int4-g128", "int4-g64", "int4-g32", "int4", "int6", "int8", "bf16")  # what most models take, smallest first
