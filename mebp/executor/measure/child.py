"""The worker's side: one request in on stdin, reports and one result out on stdout. Imports torch only after it has its request.

It ends with its parent: stdin is open as long as that lives.
"""

import os
import select
import sys
import threading

from mebp.errors import MebpError
from mebp.executor.measure.job import Job, TrainJob
from mebp.executor.measure.message import failure_line, progress_line, read_request, report_line, result_line, trained_line

NO_MEMORY = ("allocate", "could not create a primitive")  # how torch and oneDNN say that there is none


def main() -> None:
    """Run the request, and report how it went."""
    try:
        _answer(read_request(sys.stdin.readline()))
    except MebpError as error:
        _say(failure_line(type(error).__name__, str(error)))
    except FileNotFoundError as error:
        gone = f"{error.filename} was removed while the run used it: write it again, or name another store"
        _say(failure_line("StoreError", gone))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _say(failure_line("StoreError", f"the run cannot go on: {error.strerror or error}{where}"))
    except MemoryError as error:
        _say(failure_line("Disagreement", f"out of memory: {error}"))
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        _say(failure_line("Disagreement", f"the machine cannot give the plan its memory: {str(error).splitlines()[0]}"))
    except KeyboardInterrupt:
        sys.exit(130)


def _answer(request: tuple[str, Job] | TrainJob) -> None:
    """Do what is asked; torch is imported here, in the worker only."""
    if isinstance(request, TrainJob):
        from mebp.executor.measure.training import train  # noqa: PLC0415

        _say(trained_line(train(request, lambda report: _say(report_line(report)), _give_up)))
    else:
        from mebp.executor.measure.session import execute  # noqa: PLC0415

        _say(result_line(execute(*request, lambda done, total: _say(progress_line(done, total)), _give_up)))


def _say(line: str) -> None:
    print(line, flush=True)


def _give_up(message: str) -> None:
    """End at once; on a line of its own, whatever another thread is saying."""
    os.write(sys.stdout.fileno(), f"\n{failure_line('Disagreement', message)}\n".encode())
    os._exit(1)


def end_with_parent() -> None:
    """From now on, end at once when the parent has: stdin's other end is closed then."""
    waiting = select.poll()
    waiting.register(sys.stdin.fileno(), 0)  # nothing but the end of it

    def wait() -> None:
        waiting.poll()
        os._exit(1)

    threading.Thread(target=wait, name="mebp-parent", daemon=True).start()
