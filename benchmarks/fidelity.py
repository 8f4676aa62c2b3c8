"""Write docs/fidelity.md: every comparison of predicted with measured, as its command printed it: python benchmarks/fidelity.py

The paper's figures are compared again; what takes minutes comes from the file in which its last run is kept, with its date.
"""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTRODUCTION = """\
# Does the prediction hold?

Written by `python benchmarks/fidelity.py`: what each command printed, and when. Nothing here is typed by hand.
"""
KEPT = (
    ("This machine: plans predicted and run", "mebp-plan verify", "verify.txt"),
    ("This machine: shapes that no test and no profile names", "python benchmarks/unnamed.py", "unnamed.txt"),
    ("This machine: streamed products vs. dense ones", "python benchmarks/streamed.py", "streamed.txt"),
    ("This machine: vs. transformers + PEFT", "make side-by-side", "side_by_side.txt"),
    ("This machine: vs. a plain torch loop", "make bench", "plain_loop.txt"),
    ("The solver: plans, bounds and fixed strategies", "make solver", "solver.txt"),
)


def output(command: list[str]) -> str:
    """What a command prints at 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout


def section(title: str, command: str, day: str, text: str) -> str:
    """A heading, the command with its day, and its output as it came."""
    lines = "\n".join(f"    {line}".rstrip() for line in text.rstrip().splitlines())
    return f"\n## {title}\n\n`{command}`, {day}\n\n{lines}\n"


def main() -> None:
    """Write the page."""
    paper = output([sys.executable, "-m", "mebp", "validate", "--paper"])
    page = INTRODUCTION + section("The paper's twenty figures", "mebp-plan validate --paper", date.today().isoformat(), paper)
    for title, command, name in KEPT:
        path = ROOT / "benchmarks" / name
        day = output(["git", "log", "-1", "--format=%cs", "--", str(path)]).strip()
        page += section(title, command, day, path.read_text(encoding="utf-8"))
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "fidelity.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
