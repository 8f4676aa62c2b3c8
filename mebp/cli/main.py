"""The entry point: commands by name, `plan` where none is named, and every expected error as one line with its exit code.

0 fits · 1 does not fit · 2 usage or input · 3 no plan in time · 4 measured disagrees with predicted
130 Ctrl-C · 129 hang-up · 143 SIGTERM
"""

import errno
import gc
import os
import signal
import sys
from importlib import import_module
from itertools import pairwise
from typing import Any

import typer

from mebp.cli.flag import with_flags
from mebp.cli.help import Command
from mebp.cli.screen import note
from mebp.cli.spelling import spell
from mebp.errors import MebpError
from mebp.text import shortened

INTERRUPTED, SIGNALLED = 130, 128  # by Ctrl-C; by another signal, its number added
ALLOCATIONS = 200_000  # between collections: plans are many small objects without cycles (a seventh of the time to plan 4b)
NUMBERS = {"valid integer": "a whole number", "valid number": "a number"}  # the parser's words -> this command's
LONGEST = 1000  # characters of a line that says what is wrong
GROUP_FLAGS = ("--help", "-h", "--version")
HELP = {"help_option_names": ["-h", "--help"]}

# Modules are imported when their command is called: --help needs none of them.
COMMANDS = {
    "plan": "Compare fixed strategies with solved plans for a device, and choose one.",
    "run": "Execute a plan on this machine: predicted vs. measured.",
    "train": "Fine-tune a model here within a budget of memory: data in, an adapter out.",
    "plot": "Draw a training run's loss, memory and time as PNG or SVG.",
    "compare": "Compare devices and models, or plan files, in one table.",
    "show": "Explain a plan file: its peak, its memory over time, its instructions.",
    "curve": "Solve for a series of budgets: step time against memory.",
    "models": "List the models that are known by name.",
    "devices": "List device profiles, or show where a profile's numbers come from.",
    "compress": "Compress a checkpoint or GGUF file into a store to run plans on.",
    "export": "Write a trained adapter for PEFT, llama.cpp or mlx-lm.",
    "merge": "Merge a trained adapter into its model, as a Hugging Face checkpoint.",
    "synthesize": "Write a store of random weights to run plans on.",
    "calibrate": "Measure this machine as device `host`, or fit a phone to measurements.",
    "verify": "Execute six plans here and print the error of each prediction.",
    "validate": "Compare measured figures, the paper's or yours, with the simulator's.",
    "graph": "Find an order with recomputation for any training graph under a budget.",
    "pack": "Give buffers addresses within a capacity (the format of google/minimalloc).",
}
OLD_NAMES = {"frontier": "curve"}  # understood, not listed

START = """\
mebp-plan plans LoRA fine-tuning with exact gradients for small devices, runs
the plan on this machine, and trains with it.

  mebp-plan --device iphone15promax --model 4b      what fits, and how fast
  mebp-plan run --model 0.5b --budget 400MB         a plan executed here
  mebp-plan train --model DIR --data DATA.jsonl     an adapter, in your budget

Known models: mebp-plan models. Known devices: mebp-plan devices.
Every command: mebp-plan --help."""


class LazyGroup(typer.core.TyperGroup):
    """The commands by name, each made from its module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = OLD_NAMES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = import_module(f"mebp.cli.command.{name}")
        if hasattr(module, "app"):
            return typer.main.get_command(module.app)
        app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        app.command(name, cls=Command, context_settings=HELP)(with_flags(getattr(module, name)))
        return typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Every command with its line, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    name="mebp-plan",
    cls=LazyGroup,
    help="Plan LoRA fine-tuning with exact gradients for small devices, see the trade-offs, run the plan, train.",
    epilog="Without a command, `plan` is meant: mebp-plan --device iphone15promax --model 4b",
    no_args_is_help=False,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


@app.callback(invoke_without_command=True)
def group(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Plan LoRA fine-tuning with exact gradients for small devices, see the trade-offs, run the plan."""
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415

        typer.echo(f"mebp-plan {installed('mebp-plan')}")
    elif context.invoked_subcommand is None:
        typer.echo(START)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code."""
    if sys.stdout is None:  # closed before the command began
        note("mebp-plan: standard output is closed: send it to a file, or to /dev/null")
        sys.exit(MebpError.exit_code)
    gc.set_threshold(ALLOCATIONS, 10, 10)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _end)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0].startswith("-") and given[0] not in GROUP_FLAGS:
        given.insert(0, "plan")
    code = _guarded(given)
    if code == INTERRUPTED or code > SIGNALLED:  # a search may still run in its thread, and would not survive an orderly exit
        _flush()
        os._exit(code)
    sys.exit(code)


class _Ended(BaseException):
    """A signal asked the process to end: what it had begun is put away on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, frame: object) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)  # once is enough
    raise _Ended(number)


def _flush() -> None:
    sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.flush()


def _cannot_go_on(error: OSError) -> int:
    """One line for what the system refuses; a full standard output is named as such."""
    if error.errno == errno.ENOSPC and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        note("mebp-plan: cannot write to standard output: no space left on device: send it elsewhere")
    else:
        where = f": {error.filename}" if error.filename else ""
        note(f"mebp-plan: cannot go on: {error.strerror or error}{where}: check the input")
    return 2


def _usage(error: Any, given: list[str]) -> str:
    """A usage error in one line: for a value of the wrong type the flag, the value as it was typed, and what it must be."""
    flags = getattr(getattr(error, "param", None), "opts", [])
    kind = next((words for sign, words in NUMBERS.items() if sign in error.format_message()), None)
    typed = next((after for flag, after in pairwise(given) if flag in flags), None)
    if kind is None or typed is None:
        return str(error.format_message()).rstrip(".")
    return f"{flags[0]} = {typed!r}: must be {kind}"


def _guarded(given: list[str]) -> int:  # noqa: PLR0911  (one way out for each kind of end)
    try:
        result = app(args=given, prog_name="mebp-plan", standalone_mode=False)  # an exit code, where a command ended early
        _flush()
        if result == INTERRUPTED:
            note("mebp-plan: interrupted")
        return result if isinstance(result, int) else 0
    except MebpError as error:
        note(f"mebp-plan: {shortened(spell(str(error)), LONGEST)}")
        return error.exit_code
    except _Ended as ended:
        note(f"mebp-plan: ended by {signal.Signals(ended.number).name}")
        return SIGNALLED + ended.number
    except (KeyboardInterrupt, typer.Abort):
        note("mebp-plan: interrupted")
        return INTERRUPTED
    except typer.Exit as leaving:
        return leaving.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        return 0
    except SystemExit:  # how rich ends when its reader has gone
        return 0
    except OSError as error:
        return _cannot_go_on(error)
    except (OverflowError, RecursionError) as error:  # numbers, names and nesting that no reader can take
        note(f"mebp-plan: cannot go on: {str(error).splitlines()[0] or type(error).__name__}: check the input")
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "mebp-plan"
            note(f"mebp-plan: {_usage(error, given)}: see {path} --help")
            return int(error.exit_code)
        raise
