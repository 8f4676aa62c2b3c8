"""Records of a file: what each form means, and the line that a bad one is refused with."""

from pathlib import Path

import pytest

from mebp.data.record import Record, read_records
from mebp.data.template import Template
from mebp.errors import InputError
from tests.data.spelling import MARKED, TEMPLATE, chat, write_lines


def records(file: Path, template: str | None = TEMPLATE) -> list[Record]:
    return list(read_records(file, Template(template, {"eos_token": "<|end|>"})))


def labelled(record: Record) -> list[str]:
    return [piece.text for piece in record.pieces if piece.labelled]


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_what_the_assistant_says_is_labelled(template: str, tmp_path: Path) -> None:
    (record,) = records(write_lines(tmp_path / "a.jsonl", chat("Hi", "Hello", "Bye", "See you")), template)
    assert "".join(labelled(record)).replace("\n", "") == "Hello<|end|>See you<|end|>"
    assert record.text.replace("\n", "").startswith("<|user|>Hi<|end|><|assistant|>Hello")
    assert record.rendered


def test_a_completion_is_labelled_and_its_prompt_is_not(tmp_path: Path) -> None:
    (record,) = records(write_lines(tmp_path / "a.jsonl", {"prompt": "1 + 1 =", "completion": " 2"}))
    assert [(piece.text, piece.labelled) for piece in record.pieces] == [("1 + 1 =", False), (" 2", True)]


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_messages_of_a_prompt_are_not_labelled(template: str, tmp_path: Path) -> None:
    turns = chat("a", "b", "c", "d")["messages"]
    assert isinstance(turns, list)
    (record,) = records(write_lines(tmp_path / "a.jsonl", {"prompt": turns[:3], "completion": turns[3:]}), template)
    assert [text.strip() for text in labelled(record)] == ["d<|end|>"]


def test_a_text_and_a_plain_file_are_labelled_whole(tmp_path: Path) -> None:
    (record,) = records(write_lines(tmp_path / "a.jsonl", {"text": "All of it"}))
    assert labelled(record) == ["All of it"]
    (tmp_path / "a.txt").write_text("\ufeffLine one\nLine two\n")
    (record,) = records(tmp_path / "a.txt")
    assert labelled(record) == ["Line one\nLine two\n"]


def test_a_system_message_and_tools_reach_the_template(tmp_path: Path) -> None:
    template = "{{ tools[0]['name'] }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    given = {
        "tools": [{"name": "clock"}],
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "?"}],
    }
    (record,) = records(write_lines(tmp_path / "a.jsonl", given), template)
    assert record.text == "clock[system]Be brief[user]?"


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    assert [record.text for record in records(tmp_path / "a.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: no JSON"),
        ("[" * 100_000, "line 2: no JSON"),
        ("[1]", r"line 2: \[1\] is no object"),
        ("{}", "line 2: has nothing"),
        ('{"prompt": "a"}', "line 2: has prompt: must be an object with messages"),
        ('{"text": 3}', "line 2: text = 3: must be text"),
        ('{"text": "\\ud800"}', "line 2: text holds half of a surrogate pair"),
        ('{"prompt": "a", "completion": null}', "line 2: completion = null"),
        ('{"messages": []}', "line 2: messages is no list"),
        ('{"messages": [{"content": "a"}]}', "line 2: message 1 has no role"),
        ('{"messages": [{"role": "user"}]}', "line 2: message 1 has no content"),
        ('{"messages": [{"role": "user", "content": {"a": 1}}]}', "line 2: the chat template refuses it"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=f"a.jsonl, {says}"):
        records(tmp_path / "a.jsonl")


def test_bytes_that_are_no_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not UTF-8 at its byte 11"):
        records(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        records(tmp_path / "a.txt")


def test_a_template_that_fails_or_reaches_out_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", chat("a", "b"))
    for source in (
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
    ):
        with pytest.raises(InputError, match="line 1: the chat template refuses it"):
            records(file, source)
    with pytest.raises(InputError, match="the model's chat template cannot be read"):
        records(file, "{% for %}")
    with pytest.raises(InputError, match="the model has no chat template"):
        records(file, None)


def test_a_template_that_renders_earlier_turns_anew_is_refused_in_a_line(tmp_path: Path) -> None:
    """As those do that leave out what was thought in earlier turns."""
    source = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] if loop.last else '' }}{% endfor %}"
    with pytest.raises(InputError, match="renders earlier turns anew"):
        records(write_lines(tmp_path / "a.jsonl", chat("a", "b", "c", "d")), source)
