"""Settings that the library names, and the flags that they become."""

import re
from pathlib import Path

import pytest
import typer

from mebp.cli.main import COMMANDS, app
from mebp.cli.spelling import SETTINGS, flag_of, spell
from tests.cli.typed import refused

LIBRARY = Path(__file__).parents[2] / "mebp"


def test_settings_in_backticks_become_flags_and_other_words_stay() -> None:
    text = "`seq_len` = 1: lower `rank`, or name another file as `output`; `mebp-plan devices` and `kernel` stay"
    assert spell(text) == "--seq-len = 1: lower --lora-r, or name another file as -o; `mebp-plan devices` and `kernel` stay"


def every_flag() -> set[str]:
    group = typer.main.get_command(app)
    commands = (group.get_command(None, name) for name in COMMANDS)  # type: ignore[attr-defined]
    leaves = [leaf for found in commands for leaf in (getattr(found, "commands", None) or {"": found}).values()]
    return {flag for leaf in leaves for parameter in leaf.params for flag in parameter.opts}


def test_every_setting_is_a_flag_of_some_command() -> None:
    assert not {setting for setting in SETTINGS if flag_of(setting) not in every_flag()}


def test_no_text_below_the_command_names_a_flag() -> None:
    """Errors name settings in backticks; how those are typed is the command's affair."""
    below = [path for path in LIBRARY.rglob("*.py") if "cli" not in path.parts]
    assert len(below) > 80
    named = {found for path in below for found in re.findall(r'[" ](--[a-z][a-z-]+)', path.read_text())}
    assert not named & (every_flag() - {"--version"})  # a compiler's too


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "--bogus"], "mebp-plan plan --help"),
        (["run", "--bogus"], "mebp-plan run --help"),
        (["devices", "show", "--bogus"], "mebp-plan devices"),
        (["plam"], "plam"),
        (["plan", "--seq-len", "many"], "--seq-len"),
    ],
)
def test_a_wrong_flag_points_at_the_command_s_own_help(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *arguments)
