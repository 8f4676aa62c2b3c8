"""Records as tokens, kept in one file beside the data: ids, which of them carry a label, and where each record ends.

The file is safetensors, mapped and not read, so that a set of any size takes no memory; its metadata say what it was made of, and
it is made again where that changed.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
from tokenizers import Encoding, Tokenizer

from mebp.data.record import Record, file_hash, read_records
from mebp.data.template import Template
from mebp.errors import InputError, ModelError, StoreError
from mebp.leftover import part_name, sweep
from mebp.store.tokenizer import SETTINGS, TEMPLATE, TOKENIZER, open_tokenizer
from mebp.text import read_text, shortened

VERSION = 1
RECORDS_AT_A_TIME = 256
SUFFIX = ".mebp-tokens"
DTYPES = {"I32": np.int32, "U8": np.uint8, "I64": np.int64}
Progress = Callable[[int], None]  # records so far


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """`ids` (tokens,) of all records, one after another; `labelled` (tokens,) is 1 where the loss counts a token; record number i
    ends before `ends[i]`. They are mapped from `file`; `digest` tells what it was made of: data, tokenizer and template.
    """

    file: Path

    ids: npt.NDArray[np.int32]
    labelled: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    digest: str

    @property
    def num_records(self) -> int:
        return len(self.ends)

    def bounds(self, number: int) -> tuple[int, int]:
        """Where a record's tokens begin and end."""
        return (int(self.ends[number - 1]) if number else 0), int(self.ends[number])


@dataclass(frozen=True, slots=True, kw_only=True)
class Speller:
    """A model's tokenizer with its template and the token that ends a text."""

    tokenizer: Tokenizer
    template: Template
    end: int | None
    digest: str

    def digest_of(self, path: Path) -> str:
        """What the tokens of a data file are kept under: a hash of its bytes, and of what spells them."""
        return hashlib.sha256(f"{self.digest} {file_hash(path)} {path.suffix.lower()}".encode()).hexdigest()

    def spell(self, records: list[Record]) -> Iterator[tuple[list[int], list[bool]]]:
        """Ids of each record, and which of them carry a label: those that begin in a labelled piece, and the end behind one."""
        for rendered, alike in groupby(records, key=lambda record: record.rendered):
            some = list(alike)
            encoded = self.tokenizer.encode_batch([record.text for record in some], add_special_tokens=not rendered)
            yield from map(self._labelled, some, encoded)

    def _labelled(self, record: Record, encoding: Encoding) -> tuple[list[int], list[bool]]:
        ids, spans = list(encoding.ids), encoding.offsets
        flags: list[bool] = []
        at, end = -1, 0  # the piece that a token begins in, and where that ends
        for (start, stop), special in zip(spans, encoding.special_tokens_mask, strict=True):
            while at + 1 < len(record.pieces) and (at < 0 or start >= end):
                at += 1
                end += len(record.pieces[at].text)
            added = special and start == stop  # a token that stands for no text
            flags.append(record.pieces[at].labelled and not added)
        if not record.rendered and self.end is not None and record.pieces[-1].labelled:
            if not ids or ids[-1] != self.end:
                ids.append(self.end)
                flags.append(True)
            else:
                flags[-1] = True
        return ids, flags


def open_speller(folder: Path) -> Speller:
    """The tokenizer and template in a store's folder; ModelError where there is no tokenizer that can be read."""
    tokenizer = open_tokenizer(folder)
    settings = _settings(folder)
    special = {key: _token(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    source = read_text(folder / TEMPLATE) if (folder / TEMPLATE).is_file() else None
    digest = hashlib.sha256(f"{VERSION}".encode())
    for name in (TOKENIZER, SETTINGS, TEMPLATE):
        digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"-")
    end = tokenizer.token_to_id(special["eos_token"]) if special["eos_token"] else None
    template = Template(source, {key: token for key, token in special.items() if token})
    return Speller(tokenizer=tokenizer, template=template, end=end, digest=digest.hexdigest())


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        found = json.loads(read_text(file))
    except (OSError, ValueError):
        raise ModelError(f"{file} is not readable JSON: copy the model's again") from None
    return found if isinstance(found, dict) else {}


def _token(given: object) -> str:
    """A special token as its settings name it: a text, or an object with a content."""
    content = given.get("content") if isinstance(given, dict) else given
    return content if isinstance(content, str) else ""


def read_tokens(path: Path, speller: Speller, progress: Progress | None = None) -> TokenSet:
    """The tokens of a data file, from the file kept beside it where that is still true of it, else made and kept. InputError in one
    line for data that cannot be read.
    """
    digest = speller.digest_of(path)
    for kept in _places(path, digest):
        found = _kept(kept, digest)
        if found is not None:
            return found
    ids, labelled, ends = _spelt(path, speller, progress)
    if speller.digest_of(path) != digest:
        raise InputError(f"`data` {path} changed while it was read: begin again")
    for kept in _places(path, digest):
        if _keep(kept, digest, ends, ids, labelled):
            return open_tokens(kept, digest)
    places = " and ".join(str(place.parent) for place in _places(path, digest))
    raise StoreError(f"the tokens of `data` {path} cannot be kept in {places}: free disk, or make one of them writable")


def open_tokens(file: Path, digest: str) -> TokenSet:
    """Tokens that `read_tokens` has kept; StoreError where they are gone."""
    found = _kept(file, digest)
    if found is None:
        raise StoreError(f"{file} is gone, or not what it was: begin again")
    return found


def _spelt(path: Path, speller: Speller, progress: Progress | None) -> "tuple[array[int], array[int], array[int]]":
    ids, labelled, ends = array("i"), array("B"), array("q")
    records = read_records(path, speller.template)
    while some := list(islice(records, RECORDS_AT_A_TIME)):
        for own_ids, flags in speller.spell(some):
            ids.extend(own_ids)
            labelled.extend(flags)
            ends.append(len(ids))
        if progress:
            progress(len(ends))
    if not ends:
        raise InputError(f"`data` {path} is empty: name a file of text or JSON lines")
    return ids, labelled, ends


def _places(path: Path, digest: str) -> Iterator[Path]:
    """Where the tokens of a file are kept: beside it, or, where that cannot be written, in the user's cache."""
    yield path.with_name(f".{path.name}{SUFFIX}")
    yield platformdirs.user_cache_path("mebp-plan") / "tokens" / f"{digest[:32]}{SUFFIX}"


def _keep(file: Path, digest: str, *arrays: "array[int]") -> bool:
    """Write a file of tokens whole; False where it cannot be."""
    entries: dict[str, object] = {"__metadata__": {"made_of": digest}}
    end = 0
    for (name, dtype), values in zip((("ends", "I64"), ("ids", "I32"), ("labelled", "U8")), arrays, strict=True):
        nbytes = len(values) * values.itemsize
        entries[name] = {"dtype": dtype, "shape": [len(values)], "data_offsets": [end, end + nbytes]}
        end += nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % 8)
    temporary = file.with_name(part_name(file.name))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep(file.parent, file.name)
        try:
            with temporary.open("wb") as out:
                out.write(len(header).to_bytes(8, "little") + header)
                for values in arrays:
                    values.tofile(out)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _kept(file: Path, digest: str) -> TokenSet | None:
    """The tokens in a file, mapped; None where there is none, or of something else."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            entries = json.loads(opened.read(min(length, 1 << 16)))
        if entries["__metadata__"]["made_of"] != digest:
            return None
        views = [_mapped(file, 8 + length, entries[name]) for name in ("ids", "labelled", "ends")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ids, labelled, ends = views
    if len(ids) != len(labelled) or (len(ends) and int(ends[-1]) != len(ids)):
        return None
    return TokenSet(file=file, ids=ids, labelled=labelled, ends=ends, digest=digest)


def _mapped(file: Path, base: int, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    start, _ = entry["data_offsets"]
    return np.memmap(file, dtype=DTYPES[entry["dtype"]], mode="r", offset=base + start, shape=tuple(entry["shape"]))


def require_vocabulary(tokens: TokenSet, vocabulary: int, path: Path) -> None:
    """Refuse tokens that the model does not have: the tokenizer is another model's."""
    highest = int(tokens.ids.max()) if len(tokens.ids) else 0
    if highest >= vocabulary:
        raise InputError(
            f"`data` {shortened(str(path))} has token {highest}, the model knows {vocabulary}: put its own tokenizer beside its"
            " weights"
        )
