"""The entry point: commands by name, `plan` where none is named, and every expected error as one line with its exit code.

0 fits · 1 does not fit · 2 usage or input · 3 no plan in time · 4 measured disagrees with predicted · 130 Ctrl-C
"""

import errno
import os
import sys

import typer

from mebp.cli import device, frontier, graph, model, pack, plan, run, show, validate, verify
from mebp.cli.request import takes_request
from mebp.cli.screen import note
from mebp.errors import MebpError

INTERRUPTED = 130
GROUP_FLAGS = ("--help", "-h", "--version", "--install-completion", "--show-completion")

app = typer.Typer(
    name="mebp-plan",
    help="Plan LoRA fine-tuning with exact gradients for small devices, see the trade-offs, run the plan.",
    epilog="Without a command, `plan` is meant: mebp-plan --device iphone15promax --model 4b",
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(takes_request(plan.plan))
app.command("run")(takes_request(run.run))
app.command("verify")(takes_request(verify.verify))
app.command("validate")(validate.validate)
app.command("show")(show.show)
app.command("compare")(show.compare)
app.command("models")(model.models)
app.command("synthesize")(model.synthesize)
app.command("compress")(model.compress)
app.command("frontier")(takes_request(frontier.frontier))
app.command("graph")(graph.graph)
app.command("pack")(pack.pack)
app.command("calibrate")(takes_request(device.calibrate))
app.add_typer(device.app, name="devices")


@app.callback(invoke_without_command=True)
def group(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Plan LoRA fine-tuning with exact gradients for small devices, see the trade-offs, run the plan."""
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415

        typer.echo(f"mebp-plan {installed('mebp-plan')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code."""
    if sys.stdout is None:  # closed before the command began
        note("mebp-plan: standard output is closed: send it to a file, or to /dev/null")
        sys.exit(MebpError.exit_code)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0].startswith("-") and given[0] not in GROUP_FLAGS:
        given.insert(0, "plan")
    code = _guarded(given)
    if code == INTERRUPTED:  # a search may still run in its thread, and would not survive an orderly exit
        _flush()
        os._exit(INTERRUPTED)
    sys.exit(code)


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


def _guarded(given: list[str]) -> int:  # noqa: PLR0911  (one way out for each kind of end)
    try:
        result = app(args=given, standalone_mode=False)  # an exit code, where a command ended early
        _flush()
        if result == INTERRUPTED:
            note("mebp-plan: interrupted")
        return result if isinstance(result, int) else 0
    except MebpError as error:
        note(f"mebp-plan: {error}")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        note("mebp-plan: interrupted")
        return INTERRUPTED
    except typer.Exit as leaving:
        return leaving.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has seen enough
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
            note(f"mebp-plan: {error.format_message().rstrip('.')}: see mebp-plan --help")
            return int(error.exit_code)
        raise
