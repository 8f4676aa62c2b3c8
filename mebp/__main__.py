"""The command's first module: `mebp-plan` and `python -m mebp`. Imports nothing until Ctrl-C is one line and not a traceback."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from mebp.cli.main import main as command  # noqa: PLC0415

        command()
    except KeyboardInterrupt:
        print("mebp-plan: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
