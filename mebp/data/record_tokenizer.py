"""A model's tokenizer as training uses it: records in, token ids and which of them carry a label out."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from mebp.data.record import Record, file_hash
from mebp.data.template import Template
from mebp.errors import ModelError
from mebp.store.tokenizer import SETTINGS, TEMPLATE, TOKENIZER, open_tokenizer
from mebp.text import read_text

VERSION = 1  # of how records become tokens: raise it, and kept tokens are rewritten


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTokenizer:
    """A model's tokenizer with its template and the token that ends a text."""

    tokenizer: Tokenizer
    template: Template
    end: int | None
    digest: str

    def digest_of(self, path: Path, what: str = "`data`") -> str:
        """What the tokens of a data file are kept under: a hash of its bytes, and of what makes tokens of them."""
        return hashlib.sha256(f"{self.digest} {file_hash(path, what)} {path.suffix.lower()}".encode()).hexdigest()

    def tokenise(self, records: list[Record]) -> Iterator[tuple[list[int], list[bool]]]:
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


def open_record_tokenizer(folder: Path) -> RecordTokenizer:
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
    return RecordTokenizer(tokenizer=tokenizer, template=template, end=end, digest=digest.hexdigest())


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
