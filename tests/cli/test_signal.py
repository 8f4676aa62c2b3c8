"""Signals: what had begun is put away, and processes end together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.typed import command

ENDED = """
import os, signal, sys
from mebp.cli.main import main
from mebp.store import writer
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
pieces, seen = writer._write_pieces, []
def write(*given):
    seen.append(None)
    if len(seen) == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return pieces(*given)
writer._write_pieces = write
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130), ("SIGKILL", -9)])
def test_after_an_interrupted_write_the_next_store_is_whole(name: str, code: int, tiny: str, tmp_path: Path) -> None:
    target = tmp_path / "stores" / "store"
    arguments = ["synthesize", "--model", tiny, "--weights", "int4-g32", "-o", str(target)]
    done = subprocess.run([sys.executable, "-c", ENDED, name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    left = list((tmp_path / "stores").iterdir())
    assert [path.suffix for path in left] == ([".part"] if name == "SIGKILL" else [])
    assert command(*arguments) == 0
    assert list((tmp_path / "stores").iterdir()) == [target]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_takes_its_worker_with_it(
    number: signal.Signals, plan_file: str, host: None, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    arguments = [sys.executable, "-m", "mebp", "run", plan_file, "--store", str(store), "--steps", "100000"]
    running = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    children: list[str] = []
    while not children and running.poll() is None:
        subprocess.run(["sleep", "0.1"], check=True)
        children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=False).stdout.split()
    assert children
    running.send_signal(number)
    running.wait(timeout=60)
    for _ in range(100):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    if number is signal.SIGTERM:
        assert list((tmp_path / "tmp").iterdir()) == []


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As `nohup` has it."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from mebp.cli.main import main\ntry: main(['--version'])\n"
    code += "finally: print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True False"
