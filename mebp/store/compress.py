"""Compress a model's weights into a store, a few rows of one matrix at a time: from a Hugging Face checkpoint or a GGUF file.

What a source has in a format of ours is kept as it is; other matrices are quantised as codec.quantise does, and their relative RMS
error is recorded.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mebp.errors import InputError, ModelError, StoreError
from mebp.kernel.weight import Frozen, plain
from mebp.models.config import ModelConfig
from mebp.models.format import DEFAULT_RECIPE, FORMATS, OFFERED, WeightFormat, WeightFormats, formats_of, weight_formats
from mebp.models.huggingface import CONFIG, GGUF
from mebp.store.checkpoint import Checkpoint
from mebp.store.codec import quantise, unpack_whole
from mebp.store.tokenizer import TOKENIZER, Files
from mebp.store.writer import Pieces, parts_of, write_store
from mebp.text import resolved

Progress = Callable[[int, int], None]
CONVERTED = FORMATS["int8"]  # what quantised matrices become whose format is not known here


class Source(Protocol):
    """Where weights come from. Names are a store's; matrices and vectors come some rows at a time."""

    config: ModelConfig

    def watch(self, see: Callable[[memoryview], object]) -> None:
        """Show `see` every byte that is read from now on."""

    def stored(self, name: str) -> WeightFormat | None:
        """The format that a matrix is in already; None where it is not in one of ours."""

    def type_name(self, name: str) -> str | None:
        """What the source calls the format of a quantised matrix; None where it is not quantised."""

    def frozen(self, name: str) -> Iterator[Frozen]:
        """A matrix as it is stored."""

    def rows(self, name: str) -> Iterator[Tensor]:
        """A tensor in floating point."""

    def tokenizer(self) -> Files:
        """The files of the model's tokenizer, as far as there are any."""

    def float_type(self, name: str) -> torch.dtype:
        """The type of a tensor that is not quantised; bf16 of one that is."""

    def hf_config(self) -> Mapping[str, object]:
        """A config.json of the same decoder, not quantised."""


@dataclass(slots=True, kw_only=True)
class Compressed:
    """What compressing found: the relative RMS error of every matrix that was quantised, that of every tensor whose rounding to
    bf16 changes it, how many matrices of a quantised source are in another format now, by its name of theirs and ours, whether a
    tokenizer is kept beside the weights, and the SHA-256 of all source bytes in the store's order.
    """

    config: ModelConfig
    formats: WeightFormats
    errors: dict[str, float] = field(default_factory=dict)
    rounded: dict[str, float] = field(default_factory=dict)
    converted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    has_tokenizer: bool = False
    source_sha256: str = ""

    @property
    def worst(self) -> tuple[str, float]:
        """The matrix with the largest error, and that error."""
        return max(self.errors.items(), key=lambda item: item[1], default=("", 0.0))

    def by_role(self) -> dict[str, float]:
        """Root mean square of the errors of the matrices of each role."""
        found: dict[str, list[float]] = {}
        for name, error in self.errors.items():
            found.setdefault(name.rpartition(".")[2], []).append(error)
        return {role: math.sqrt(sum(error**2 for error in errors) / len(errors)) for role, errors in found.items()}


def compress(source: Path, target: Path, formats: WeightFormats | None = None, progress: Progress | None = None) -> Compressed:
    """Write the checkpoint in folder `source`, or the GGUF file, as a store in folder `target`, its tokenizer beside it; refuses to
    overwrite. Without `formats` matrices that are quantised stay as they are, and those of other sources take the default recipe's.

    ModelError for a source that is incomplete, of other shapes or types than its config says, with weights that are not finite, or
    whose index points outside the folder; StoreError where the store cannot be written.
    """
    opened = open_source(source)
    chosen = formats or own_formats(opened)
    beside = opened.tokenizer()
    found = Compressed(
        config=opened.config, formats=chosen, converted=_converted(opened, chosen), has_tokenizer=TOKENIZER in beside
    )
    for name, (_, cols) in found.config.matrices().items():
        chosen.require_fits(name, cols)
        if (fmt := chosen.of(name)).block and opened.stored(name) != fmt:
            raise InputError(f"format {fmt.name} is read from GGUF files, not written: take one of {', '.join(OFFERED)}")
    digest = hashlib.sha256()
    total = found.config.num_parameters

    def tensors() -> Iterator[tuple[str, Pieces]]:
        done = 0
        for name, shape in found.config.matrices().items():
            yield from parts_of(name, chosen.of(name), shape, _pieces(opened, name, found, source))
            done += math.prod(shape)
            if progress:
                progress(done, total)
        for name in found.config.vectors():
            yield name, _rounded(opened.rows(name), found.rounded, name, source)

    def facts() -> Mapping[str, str]:
        found.source_sha256 = digest.hexdigest()
        errors = {f"error {name}": f"{error:.3e}" for name, error in found.errors.items()}
        return {"source": source.name, "source_sha256": found.source_sha256} | errors

    opened.watch(digest.update)
    write_store(target, found.config, chosen, tensors(), facts, beside)
    return found


def open_source(source: Path) -> Source:
    """A checkpoint's folder or a GGUF file, opened; ModelError naming what it is where it is neither."""
    if not source.is_file():
        return Checkpoint(source)
    with source.open("rb") as opened:
        if opened.read(len(GGUF)) != GGUF:
            raise ModelError(f"{source} is a file, and no GGUF: expected one, or a folder of safetensors with {CONFIG}")
    from mebp.store.gguf_file import GgufFile  # noqa: PLC0415  (its library takes a while)

    return GgufFile(source)


def require_apart(source: Path, target: Path) -> None:
    """Refuse to write a store into the checkpoint's own folder: both have a config.json."""
    if resolved(source) == resolved(target):
        raise StoreError(f"`output` {target} is the checkpoint's own folder: name another")


def own_formats(source: Source) -> WeightFormats:
    """The formats that a source's matrices are in, where one is quantised; else the default recipe."""
    names = list(source.config.matrices())
    if all(source.type_name(name) is None for name in names):
        return weight_formats(DEFAULT_RECIPE)
    others = {name: FORMATS["bf16"] if source.type_name(name) is None else CONVERTED for name in names}
    return formats_of({name: source.stored(name) or other for name, other in others.items()})


def _converted(source: Source, formats: WeightFormats) -> Mapping[tuple[str, str], int]:
    names = [name for name in source.config.matrices() if source.stored(name) != formats.of(name)]
    kinds = ((source.type_name(name), formats.of(name).name) for name in names)
    return Counter((kind, made) for kind, made in kinds if kind is not None)


def _pieces(source: Source, name: str, found: Compressed, file: Path) -> Iterator[Frozen]:
    fmt = found.formats.of(name)
    if source.stored(name) == fmt:
        return source.frozen(name)
    if fmt.compressed:
        return _quantised(source.rows(name), fmt, found.errors, name, file)
    return map(plain, _rounded(source.rows(name), found.rounded, name, file))


def _rounded(pieces: Iterator[Tensor], rounded: dict[str, float], name: str, source: Path) -> Iterator[Tensor]:
    """A tensor in bf16; how far that is from the original, relative RMS, is put into `rounded` where it is not 0."""
    wrong = right = 0.0
    for rows in pieces:
        made = rows.bfloat16()
        wrong += float((made.double() - rows.double()).square().sum())
        right += float(rows.double().square().sum())
        yield made
    _require_finite(wrong, name, source)
    if wrong:
        rounded[name] = math.sqrt(wrong / right)


def _require_finite(error: float, name: str, source: Path) -> None:
    if not math.isfinite(error):
        raise ModelError(f"{source}: the weights of {name} are too large for bf16: copy the checkpoint again")


def _quantised(pieces: Iterator[Tensor], fmt: WeightFormat, errors: dict[str, float], name: str, source: Path) -> Iterator[Frozen]:
    """A matrix in `fmt`, some rows at a time; its error is put into `errors` at the end."""
    wrong = right = 0.0
    for rows in pieces:
        weights = rows.float()
        made = quantise(weights, fmt)
        right += float(weights.square().sum(dtype=torch.float64))
        wrong += float(unpack_whole(made, torch.float32).sub_(weights).square_().sum(dtype=torch.float64))
        yield made
    _require_finite(wrong, name, source)
    errors[name] = math.sqrt(wrong / right) if right else 0.0
