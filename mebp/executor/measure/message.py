"""The lines that a worker sends its parent: progress, one result, or one failure."""

import json

from pydantic import TypeAdapter

from mebp import errors
from mebp.errors import MebpError
from mebp.executor.measure.job import Job, Measurement
from mebp.plan import Plan, dump_plan

REPORT, RESULT, FAILURE = "progress ", "result ", "failure "


def request_line(plan: Plan, job: Job) -> str:
    """What the parent asks: a plan and a job."""
    return json.dumps([dump_plan(plan), TypeAdapter(Job).dump_json(job).decode()])


def read_request(line: str) -> tuple[str, Job]:
    """A plan's text and the job."""
    plan_text, job_text = json.loads(line)
    return plan_text, TypeAdapter(Job).validate_json(job_text)


def progress_line(done: int, total: int) -> str:
    return f"{REPORT}{done} {total}"


def result_line(measurement: Measurement) -> str:
    return RESULT + TypeAdapter(Measurement).dump_json(measurement).decode()


def failure_line(name: str, message: str) -> str:
    """A failure by the name of its class in mebp.errors."""
    return FAILURE + json.dumps([name, message])


def read_message(line: str) -> tuple[int, int] | Measurement | MebpError | None:
    """Progress as (done, total), the result, the failure, or None for a line that is none of them (a library's chatter)."""
    if line.startswith(REPORT):
        done, total = line.removeprefix(REPORT).split()
        return int(done), int(total)
    if line.startswith(RESULT):
        return TypeAdapter(Measurement).validate_json(line.removeprefix(RESULT))
    if line.startswith(FAILURE):
        name, message = json.loads(line.removeprefix(FAILURE))
        return _failure(name, message)
    return None


def _failure(name: str, message: str) -> MebpError:
    """The error rebuilt; one that is made of more than its text becomes a plain MebpError."""
    kind = getattr(errors, name, MebpError)
    failure = MebpError(message) if "__init__" in vars(kind) else kind(message)
    assert isinstance(failure, MebpError)
    return failure
