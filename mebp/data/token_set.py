"""Records as tokens, kept in one file next to the data: ids, which of them carry a label, and where each record ends.

The file is safetensors, mapped and not read; its metadata say what it was made of, and it is rewritten where that changed.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from mebp.data.record import read_records
from mebp.data.record_tokenizer import RecordTokenizer
from mebp.errors import InputError, StoreError
from mebp.leftover import part_name, sweep
from mebp.text import shortened

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


def read_tokens(path: Path, tokenizer: RecordTokenizer, progress: Progress | None = None, what: str = "`data`") -> TokenSet:
    """The kept tokens of a data file, if data, tokenizer and template are unchanged; else tokenise it and keep them. InputError in
    one line, saying `what` names the file, for data that cannot be read.
    """
    digest = tokenizer.digest_of(path, what)
    places = list(_places(path, tokenizer, digest))
    for kept in places:
        found = _kept(kept, digest)
        if found is not None:
            return found
    ids, labelled, ends = _tokenised(path, tokenizer, progress, what)
    if tokenizer.digest_of(path, what) != digest:
        raise InputError(f"{what} {path} changed while it was read: begin again")
    for kept in places:
        if _keep(kept, digest, ends, ids, labelled):
            return open_tokens(kept, digest)
    folders = " and ".join(str(place.parent) for place in places)
    raise StoreError(f"the tokens of {what} {path} cannot be kept in {folders}: free disk, or make one of them writable")


def open_tokens(file: Path, digest: str) -> TokenSet:
    """Tokens that `read_tokens` has kept; StoreError where they are gone."""
    found = _kept(file, digest)
    if found is None:
        raise StoreError(f"{file} is missing, or was made from other data: begin again")
    return found


def _tokenised(
    path: Path, tokenizer: RecordTokenizer, progress: Progress | None, what: str
) -> "tuple[array[int], array[int], array[int]]":
    ids, labelled, ends = array("i"), array("B"), array("q")
    records = read_records(path, tokenizer.template, what)
    while some := list(islice(records, RECORDS_AT_A_TIME)):
        for own_ids, flags in tokenizer.tokenise(some):
            ids.extend(own_ids)
            labelled.extend(flags)
            ends.append(len(ids))
        if progress:
            progress(len(ends))
    if not ends:
        raise InputError(f"{what} {path} is empty: name a file of text or JSON lines")
    return ids, labelled, ends


def _places(path: Path, tokenizer: RecordTokenizer, digest: str) -> Iterator[Path]:
    """Where a file's tokens are kept, for each tokenizer: next to it, or, where that cannot be written, in the user's cache."""
    yield path.with_name(f".{path.name}.{tokenizer.digest[:8]}{SUFFIX}")
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


def require_vocabulary(tokens: TokenSet, vocabulary: int, what: str) -> None:
    """Refuse tokens that the model does not have: the tokenizer is another model's."""
    highest = int(tokens.ids.max()) if len(tokens.ids) else 0
    if highest >= vocabulary:
        raise InputError(
            f"{shortened(what, 120)} has token {highest}, the model knows {vocabulary}: put its own tokenizer next to its weights"
        )
