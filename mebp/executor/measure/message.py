"""The lines between a worker and its parent: a request and perhaps a stop; progress or reports, one result, or one failure."""

import json

from pydantic import TypeAdapter

from mebp import errors
from mebp.errors import MebpError
from mebp.executor.measure.job import Job, Measurement, TrainJob
from mebp.executor.train.settings import Evaluated, Report, Saved, Trained, Updated
from mebp.plan import Plan, dump_plan

PROGRESS, REPORT, RESULT, TRAINED, FAILURE = "progress ", "report ", "result ", "trained ", "failure "
STOP = "stop"  # what a parent says to a training worker
REPORTS: dict[str, type[Report]] = {kind.__name__: kind for kind in (Updated, Evaluated, Saved)}
Message = tuple[int, int] | Report | Measurement | Trained | MebpError

_reports = {name: TypeAdapter(kind) for name, kind in REPORTS.items()}


def request_line(plan: Plan, job: Job) -> str:
    """What the parent asks: a plan and a job."""
    return json.dumps([dump_plan(plan), TypeAdapter(Job).dump_json(job).decode()])


def train_line(job: TrainJob) -> str:
    """What the parent asks: to train."""
    return json.dumps([TypeAdapter(TrainJob).dump_json(job).decode()])


def read_request(line: str) -> tuple[str, Job] | TrainJob:
    """A plan's text and the job, or a training job."""
    *plan_text, job_text = json.loads(line)
    if not plan_text:
        return TypeAdapter(TrainJob).validate_json(job_text)
    return plan_text[0], TypeAdapter(Job).validate_json(job_text)


def progress_line(done: int, total: int) -> str:
    return f"{PROGRESS}{done} {total}"


def report_line(report: Report) -> str:
    """A report by the name of its class."""
    name = type(report).__name__
    return REPORT + json.dumps([name, _reports[name].dump_json(report).decode()])


def result_line(measurement: Measurement) -> str:
    return RESULT + TypeAdapter(Measurement).dump_json(measurement).decode()


def trained_line(trained: Trained) -> str:
    return TRAINED + TypeAdapter(Trained).dump_json(trained).decode()


def failure_line(name: str, message: str) -> str:
    """A failure by the name of its class in mebp.errors."""
    return FAILURE + json.dumps([name, message])


def read_message(line: str) -> Message | None:
    """Progress as (done, total), a report, a result, the failure, or None for a line that is none of them (a library's chatter)."""
    kind, _, text = line.partition(" ")
    match f"{kind} ":
        case "progress ":
            done, total = text.split()
            return int(done), int(total)
        case "report ":
            name, report = json.loads(text)
            return _reports[name].validate_json(report)
        case "result ":
            return TypeAdapter(Measurement).validate_json(text)
        case "trained ":
            return TypeAdapter(Trained).validate_json(text)
        case "failure ":
            name, message = json.loads(text)
            return _failure(name, message)
        case _:
            return None


def _failure(name: str, message: str) -> MebpError:
    """The error rebuilt; one that is made of more than its text becomes a plain MebpError."""
    kind = getattr(errors, name, MebpError)
    failure = MebpError(message) if "__init__" in vars(kind) else kind(message)
    assert isinstance(failure, MebpError)
    return failure
