"""Every example prints what its .out file says; losses and bars as near as processors round alike."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LOSS = re.compile(r"^(?P<time> *\d+%) +(?P<loss>\d+\.\d\d) (?P<bar>#*)$", re.MULTILINE)
NEAR = 0.03  # of a loss after many steps
BAR = 3  # characters


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(example: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = example.with_suffix(".out").read_text()
    assert LOSS.sub(r"\g<time>", done.stdout) == LOSS.sub(r"\g<time>", told)
    for ours, theirs in zip(LOSS.finditer(done.stdout), LOSS.finditer(told), strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), abs=NEAR)
        assert abs(len(ours["bar"]) - len(theirs["bar"])) <= BAR
