"""A model's chat template, rendered in a sandbox, and which of its text the assistant says.

A template that marks that itself (`{% generation %}`, as transformers reads it) is taken at its word. With others a conversation is
rendered again for each turn of the assistant, up to it and with it: what the second has in addition is what it says.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mebp.errors import InputError
from mebp.text import shortened

BEGIN, END = "\ufdd0", "\ufdd1"  # around what a template marks; Unicode leaves them to such uses
ASSISTANT = "assistant"
DAY = datetime(2024, 7, 26)  # what templates that name today's date are told, so that tokens do not change from day to day

Parts = list[tuple[str, bool]]  # text, and whether the assistant says it


class _Marked(Extension):
    """`{% generation %}...{% endgeneration %}`."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @staticmethod
    def _mark(caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


class Template:
    """A chat template with the special tokens that it may name."""

    def __init__(self, source: str | None, special: Mapping[str, str]) -> None:
        """`source` is the template (None: the model has none); InputError for one that is no template."""
        self._special = dict(special)
        self._marks = source is not None and "endgeneration" in source
        extensions: list[Any] = [_Marked, "jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _as_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": DAY.strftime}
        try:
            self._template = None if source is None else environment.from_string(source)
        except TemplateError as error:
            raise InputError(f"the model's chat template cannot be read ({shortened(str(error))}): give one that can") from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, first: int = 0, tools: object = None, where: str) -> Parts:
        """A conversation's text in parts; the assistant's turns from message number `first` on count as its own. InputError naming
        `where` for one that the template refuses.
        """
        if self._template is None:
            raise InputError(f"{where}: the model has no chat template: give prompt and completion, or text")
        if self._marks:
            before = sum(message["role"] == ASSISTANT for message in messages[:first])
            return _split(self._text(messages, tools, where), before)
        parts: Parts = []
        done = ""
        for at, message in enumerate(messages):
            if message["role"] != ASSISTANT or at < first:
                continue
            asked = self._text(messages[:at], tools, where, prompt=True) if at else ""
            said = self._text(messages[: at + 1], tools, where)
            if not (asked.startswith(done) and said.startswith(asked)):
                raise InputError(
                    f"{where}: the chat template renders earlier turns anew as the conversation grows: give one turn of the"
                    " assistant per line, or prompt and completion"
                )
            parts += [(asked[len(done) :], False), (said[len(asked) :], True)]
            done = said
        whole = self._text(messages, tools, where)
        return [*parts, (whole[len(done) :], False)] if whole.startswith(done) else parts

    def _text(self, messages: Sequence[Mapping[str, Any]], tools: object, where: str, *, prompt: bool = False) -> str:
        assert self._template is not None
        try:
            return self._template.render(messages=messages, tools=tools, add_generation_prompt=prompt, **self._special)
        except Exception as error:  # a template is a program: it may fail in any way
            raise InputError(f"{where}: the chat template refuses it ({shortened(str(error), 200)})") from None


def _split(text: str, unlabelled: int) -> Parts:
    """Marked text in parts; the first `unlabelled` marks do not count."""
    parts: Parts = []
    for number, piece in enumerate(text.split(BEGIN)):
        said, ended, rest = piece.partition(END)
        parts += [(said, bool(ended) and number > unlabelled), (rest, False)] if ended else [(piece, False)]
    return parts


def _as_json(value: object, indent: int | None = None, **_: object) -> str:
    """As Python writes it: jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)
