"""The worker and its parent: what crosses between them, and every way in which a run can end without a result."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from mebp import errors
from mebp.data.sample import SampleRange
from mebp.errors import Disagreement, InputError, MebpError, StoreError
from mebp.executor.measure import child, worker
from mebp.executor.measure.job import GradientCheck, Job, Measurement, TrainJob
from mebp.executor.measure.memory import Sampler, memory_now, trim
from mebp.executor.measure.message import (
    failure_line,
    progress_line,
    read_message,
    read_request,
    report_line,
    request_line,
    result_line,
    train_line,
    trained_line,
)
from mebp.executor.measure.worker import run_plan
from mebp.executor.train.settings import Evaluated, Saved, Trained, TrainSettings, Updated
from mebp.models.graph import Graph
from mebp.plan import Plan, parse_plan
from mebp.sim.device import Device
from tests.plans import fixed

MEASUREMENT = Measurement(
    arena_bytes=1,
    baseline_bytes=2,
    peak_bytes=3,
    file_bytes=4,
    step_s=(0.5, 0.25),
    loss=(3.0,),
    spans_ns=((0, 5),),
    memory=((1, 2),),
    gradients=GradientCheck(max_relative_error=1e-7, cosine=1.0),
)


@pytest.fixture(scope="module")
def plan(small_graph: Graph, device: Device) -> Plan:
    return fixed("checkpoint-1", small_graph, device)


def test_a_request_arrives_as_it_was_sent(plan: Plan) -> None:
    job = Job(store=Path("store"), ids=((1, 2),), spill_dir=Path("spill"), limit_bytes=5)
    text, received = read_request(request_line(plan, job))
    assert received == job
    assert parse_plan(text, "the request") == plan


def test_messages_arrive_as_they_were_sent() -> None:
    assert read_message(progress_line(2, 7)) == (2, 7)
    assert read_message(result_line(MEASUREMENT)) == MEASUREMENT
    assert read_message("a library's chatter") is None


@pytest.mark.parametrize("name", [name for name, kind in vars(errors).items() if isinstance(kind, type)])
def test_every_failure_arrives_with_its_text_and_exit_code(name: str) -> None:
    kind = getattr(errors, name)
    expected = MebpError if name in ("InvalidPlan", "InvalidPacking", "InfeasibleBudget") else kind  # made of more than a text
    failure = read_message(failure_line(name, "store S: header cut short"))
    assert type(failure) is expected
    assert str(failure) == "store S: header cut short"


def ended_by(program: str, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> MebpError:
    """The error of a run whose worker is `program` instead."""
    monkeypatch.setattr(worker, "CHILD", program)
    with pytest.raises(MebpError) as caught:
        run_plan(plan, Job(store=Path("nowhere")))
    return caught.value


def test_a_killed_worker_is_a_disagreement(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ended_by(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", plan, monkeypatch)
    assert isinstance(error, Disagreement)
    assert "killed" in str(error)


def test_a_worker_that_dies_is_quoted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ended_by("raise SystemError('the sky fell')", plan, monkeypatch)
    assert str(error) == "the run ended with status 1 before its result: SystemError: the sky fell"


def test_a_worker_that_says_nothing_is_one_line_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(ended_by("", plan, monkeypatch)) == "the run ended with status 0 before its result: no message"


def test_a_talkative_worker_does_not_block(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds on both streams, then a result; progress is relayed, chatter is not."""
    program = (
        "import sys; sys.stderr.write('x' * 10**6); print('chatter\\n' * 10**5);"
        f"print({progress_line(1, 3)!r}); print({result_line(MEASUREMENT)!r})"
    )
    monkeypatch.setattr(worker, "CHILD", program)
    seen: list[tuple[int, int]] = []
    assert run_plan(plan, Job(store=Path("nowhere")), lambda done, total: seen.append((done, total))) == MEASUREMENT
    assert seen == [(1, 3)]


def test_a_store_that_is_not_there_fails_as_it_does_in_one_process(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises((StoreError, InputError), match="nowhere"):
        run_plan(plan, Job(store=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("failure", "name", "words"),
    [
        (StoreError("a damaged tensor"), "StoreError", "a damaged tensor"),
        (MemoryError("7 GB"), "Disagreement", "out of memory: 7 GB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"), "Disagreement", "cannot give the plan its memory"),
        (RuntimeError("could not create a primitive"), "Disagreement", "cannot give the plan its memory"),
    ],
)
def test_the_worker_reports_what_went_wrong_in_one_line(
    failure: Exception, name: str, words: str, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("mebp.executor.measure.session.execute", fail)
    _give(request_line(plan, Job(store=Path("nowhere"))), monkeypatch)
    child.main()
    (line,) = capsys.readouterr().out.splitlines()
    received = read_message(line)
    assert type(received).__name__ == name
    assert words in str(received)


def test_a_bug_in_the_worker_keeps_its_traceback(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("mebp.executor.measure.session.execute", fail)
    _give(request_line(plan, Job(store=Path("nowhere"))), monkeypatch)
    with pytest.raises(RuntimeError, match="size mismatch"):
        child.main()


def _give(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(line + "\n"))


def test_a_job_without_a_plan_s_gradients_is_refused(small_graph: Graph, device: Device, tmp_path: Path) -> None:
    estimate = fixed("checkpoint-1", small_graph, device)
    with pytest.raises(InputError, match="no exact gradient"):
        run_plan(replace(estimate, exact=False), Job(store=tmp_path, check_gradients=True))


def test_a_worker_that_met_a_file_cut_off_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ended_by(f"import os; os.kill(os.getpid(), {int(signal.SIGBUS)})", plan, monkeypatch)
    assert isinstance(error, StoreError)
    assert "cut off while the run used it" in str(error)


def test_a_store_that_is_removed_while_it_is_used_is_one_line(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "store/weights.safetensors")

    monkeypatch.setattr("mebp.executor.measure.session.execute", fail)
    _give(request_line(plan, Job(store=Path("nowhere"))), monkeypatch)
    child.main()
    received = read_message(capsys.readouterr().out.strip())
    assert isinstance(received, StoreError)
    assert "store/weights.safetensors was removed" in str(received)


def test_a_worker_ends_with_its_parent() -> None:
    """Its stdin closes, whatever it is doing."""
    program = "from mebp.executor.measure.child import end_with_parent; end_with_parent(); import time; time.sleep(600)"
    running = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert running.stdin
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=1.5)
    running.stdin.close()
    assert running.wait(timeout=60) == 1


def test_memory_above_a_limit_is_seen_while_it_is_in_use() -> None:
    seen: list[int] = []
    trim()  # or what other tests have left is used again
    now, _ = memory_now()
    with Sampler(now + (64 << 20), seen.append):
        block = bytearray(128 << 20)
        block[::4096] = b"x" * len(block[::4096])
        until = time.monotonic() + 30
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
    assert seen
    assert min(seen) > now + (64 << 20)


def test_reports_cross_processes_whatever_the_loss_is() -> None:
    nan = float("nan")
    update = Updated(
        number=1,
        epochs=0.5,
        loss=nan,
        rate=1e-4,
        gradient_norm=None,
        tokens=9,
        labelled=3,
        seconds=0.1,
        seq_lens=(8,),
        skipped="nan",
    )
    received = read_message(report_line(update))
    assert isinstance(received, Updated)
    assert received.loss != received.loss
    assert replace(received, loss=0.0) == replace(update, loss=0.0)
    evaluated = Evaluated(number=1, loss=float("inf"), labelled=3, seconds=0.1, best=False)
    trained = Trained(number=1, ending="stopped", skipped=1, saved=None, best_number=0, best_loss=float("inf"))
    for message, line in ((evaluated, report_line), (Saved(number=1, problem="full"), report_line), (trained, trained_line)):
        assert read_message(line(message)) == message  # type: ignore[arg-type]


def test_a_training_job_crosses_to_the_worker_whole(tmp_path: Path) -> None:
    data = SampleRange(file=tmp_path / "tokens", digest="1", seq_len=8, packed=True, first=0, last=3)
    job = TrainJob(
        store=tmp_path,
        folder=tmp_path,
        plans=("{}",),
        seq_lens=(8,),
        data=data,
        settings=TrainSettings(updates=2),
        hashes={"a": "b"},
    )
    assert read_request(train_line(job)) == job
