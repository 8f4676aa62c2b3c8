"""A training file's records, as pieces of text with and without labels. Knows no tokens.

A file is JSON lines, each an object with `messages`, with `prompt` and `completion`, or with `text`; or it is plain text.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mebp.data.template import Template
from mebp.errors import InputError
from mebp.text import shortened

JSON_LINES = (".jsonl", ".json", ".ndjson")
FORMS = "an object with messages, with prompt and completion, or with text"
LONGEST_LINE = 1 << 28  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text; the loss counts its tokens where it is `labelled`."""

    text: str
    labelled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one line holds, in pieces. `rendered` where the chat template made it: it has its special tokens then."""

    pieces: tuple[Piece, ...]
    rendered: bool = False

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def file_hash(path: Path, what: str = "`data`") -> str:
    """SHA-256 of a file's bytes; InputError for a file, which `what` names, that cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}): name a file of text or JSON lines") from None
    return digest.hexdigest()


def is_json_lines(path: Path) -> bool:
    """Whether a file's name says that it holds JSON lines."""
    return path.suffix.lower() in JSON_LINES


def read_records(path: Path, template: Template, what: str = "`data`") -> Iterator[Record]:
    """Every record of a file, in order; InputError naming file and line for one that is none."""
    if not is_json_lines(path):
        yield Record(pieces=(Piece(text=_plain_text(path, what), labelled=True),))
        return
    for number, line in _lines(path, what):
        if line.strip():
            where = f"{path}, line {number}"
            yield _record(_object(line, where), template, where)


def _plain_text(path: Path, what: str) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or f"not UTF-8 at byte {getattr(error, 'start', 0)}"
        raise InputError(f"{what} {path} cannot be read ({said}): name a file of text or JSON lines") from None
    if not text.strip():
        raise InputError(f"{what} {path} is empty: name a file of text or JSON lines")
    return text


def _lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Lines by number from 1."""
    number = 0
    try:
        with path.open("rb") as opened:
            while raw := opened.readline(LONGEST_LINE):
                number += 1
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}): name a file of text or JSON lines") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: not UTF-8 at its byte {error.start + 1}: save the file as UTF-8") from None


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", None) or ("nested too deeply" if isinstance(error, RecursionError) else "a number too long")
        raise InputError(f"{where}: no JSON ({said}): must be {FORMS}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: {shortened(json.dumps(found))} is no object: must be {FORMS}")
    return found


def _record(given: Mapping[str, Any], template: Template, where: str) -> Record:
    if "messages" in given:
        return _chat(given, _messages(given["messages"], "messages", where), 0, template, where)
    if "prompt" in given and "completion" in given:
        return _completion(given, template, where)
    if "text" in given:
        return Record(pieces=(Piece(text=_text(given, "text", where), labelled=True),))
    has = ", ".join(shortened(key) for key in list(given)[:5]) or "nothing"
    raise InputError(f"{where}: has {has}: must be {FORMS}")


def _completion(given: Mapping[str, Any], template: Template, where: str) -> Record:
    """A prompt and its completion, texts or lists of messages."""
    if isinstance(given["prompt"], list):
        first, second = (_messages(given[key], key, where) for key in ("prompt", "completion"))
        return _chat(given, [*first, *second], len(first), template, where)
    prompt, completion = (_text(given, key, where) for key in ("prompt", "completion"))
    return Record(pieces=(Piece(text=prompt, labelled=False), Piece(text=completion, labelled=True)))


def _text(given: Mapping[str, Any], key: str, where: str) -> str:
    text = given[key]
    if not isinstance(text, str):
        raise InputError(f"{where}: {key} = {shortened(json.dumps(text))}: must be text")
    return _encodable(text, key, where)


def _encodable(text: str, key: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {key} holds half of a surrogate pair: save the file as UTF-8") from None
    return text


def _messages(given: object, key: str, where: str) -> list[Mapping[str, Any]]:
    """Messages with a role and a content, or what else a template asks of them (calls of tools)."""
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}: {key} is no list of messages: must be objects with role and content")
    for at, message in enumerate(given, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{where}: message {at} has no role: must be an object with role and content")
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            raise InputError(f"{where}: message {at} has no content: must be an object with role and content")
        if isinstance(content, str):
            _encodable(content, "content", where)
    return given


def _chat(given: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], first: int, template: Template, where: str) -> Record:
    """A conversation; what the assistant says from message number `first` on is labelled."""
    pieces = template.render(messages, first=first, tools=given.get("tools"), where=where)
    return Record(pieces=tuple(Piece(text=text, labelled=labelled) for text, labelled in pieces if text), rendered=True)
