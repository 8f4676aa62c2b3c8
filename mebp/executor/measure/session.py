"""One measured session in the worker: baseline, plan, store, a warm-up step, the timed steps, and a gradient check if requested."""

import gc
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from mebp.check import graph_of
from mebp.data.order import IGNORED
from mebp.errors import InputError, NotFinite, StoreError
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor, StepResult
from mebp.executor.measure.floor import LARGEST_BYTES, floor_seconds
from mebp.executor.measure.job import Job, Measurement, Progress, require_ids
from mebp.executor.measure.limit import lift_limit
from mebp.executor.measure.memory import Sampler, memory_now, trim
from mebp.executor.measure.process import WINDOW_PART, begin, enforced, too_much
from mebp.executor.measure.reference import compare_gradients
from mebp.kernel.library import library
from mebp.models.graph import Graph
from mebp.models.optimizer import Optimizer
from mebp.plan import parse_plan
from mebp.store.reader import open_store

WARM_UP_STEPS = 1
RECENT_STEPS = 5


def execute(plan_text: str, job: Job, progress: Progress, give_up: Callable[[str], None]) -> Measurement:
    """Run the job's steps and measure them; `give_up(message)` ends the process, from whatever thread. The baseline is the process
    with torch imported and its threads started.
    """
    baseline = begin(job.device)
    plan = parse_plan(plan_text, "the plan")
    if job.check_gradients and not plan.exact:
        raise InputError(f"{plan.name} has no exact gradient to check: leave `check_gradients` out")
    most_bytes = enforced(plan.budget_bytes, baseline) if job.enforce else 0
    graph = graph_of(plan, "the plan")
    store = open_store(job.store)
    adapters = new_adapters(graph, seed=job.seed, device=job.device)
    gc.collect()
    trim()  # reading the plan left a megabyte or two
    with Sampler(most_bytes, lambda nbytes: give_up(too_much(nbytes, plan.budget_bytes))) as sampler:
        executor = Executor(
            plan,
            graph,
            store,
            adapters,
            device=job.device,
            spill_dir=job.spill_dir,
            optimizer=Optimizer(rate=job.learning_rate),
            seed=job.seed,
            window_bytes=job.limit_bytes // WINDOW_PART,
        )
        labels = labels_of(graph, ids := batch(graph, job))
        results, recent = _steps(executor, ids, labels, job, progress, sampler)
    if job.enforce:
        lift_limit()  # gradients and floor are no part of the plan
    check = None
    if job.check_gradients:
        check = compare_gradients(plan, graph, store, (ids, labels), job)
    arena_bytes = executor.arena.used_bytes
    del executor
    gc.collect()  # the floor's products find the room that the arena had
    floor_s = floor_seconds(graph) if job.device == "cpu" and _has_room(job) else 0.0
    return Measurement(
        arena_bytes=arena_bytes,
        baseline_bytes=baseline,
        peak_bytes=sampler.anonymous,
        file_bytes=sampler.file,
        step_s=tuple(result.seconds for result in results[WARM_UP_STEPS:]),
        loss=tuple(result.loss for result in results),
        spans_ns=tuple(results[-1].spans_ns),
        durations_ns=tuple(int(median(durations)) for durations in zip(*recent, strict=True)),
        chunked_ns=results[-1].chunked_ns,
        memory=tuple(sampler.curve),
        floor_s=floor_s,
        unpacking=library().path if job.device == "cpu" else "in torch",
        gradients=check,
    )


def _has_room(job: Job) -> bool:
    """Whether a memory cgroup, if there is one, has room for the products of the floor."""
    return not job.limit_bytes or job.limit_bytes - memory_now()[0] > 2 * LARGEST_BYTES


def _steps(
    executor: Executor, ids: torch.Tensor, labels: torch.Tensor, job: Job, progress: Progress, sampler: Sampler
) -> tuple[list[StepResult], deque["array[int]"]]:
    """The warm-up step and those to be timed; of the spans and of the memory's curve only the last step's are kept, and of the last
    few timed steps what each instruction took, in ns.
    """
    total = WARM_UP_STEPS + job.steps
    results: list[StepResult] = []
    recent: deque[array[int]] = deque(maxlen=RECENT_STEPS)
    for step in range(total):
        progress(step, total)
        sampler.begin()
        try:
            result = executor.step(ids, labels)
        except NotFinite as error:
            raise StoreError(f"{error} at step {step}: {_remedy(step, job)}") from None
        if results:
            results[-1] = replace(results[-1], spans_ns=[])  # only the last step's are needed
        results.append(result)
        if step >= WARM_UP_STEPS:
            recent.append(array("q", (end - start for start, end in result.spans_ns)))
    progress(total, total)
    return results, recent


def _remedy(step: int, job: Job) -> str:
    """What a loss or gradient that is not finite may come from: before the first update from the weights alone."""
    damaged = f"the weights in {job.store} are damaged, or their steps too long"
    return f"the learning rate of {job.learning_rate:g} may be too large, or {damaged}" if step else damaged


def batch(graph: Graph, job: Job) -> torch.Tensor:
    """Token ids (batch, seq): the job's own, or random ones from its seed."""
    workload = graph.workload
    shape = (workload.batch_size, workload.seq_len)
    if job.ids is None:
        generator = torch.Generator().manual_seed(job.seed)
        return torch.randint(0, graph.head.dims.outs, shape, generator=generator)
    require_ids(job.ids, shape, graph.head.dims.outs)
    return torch.tensor(job.ids, dtype=torch.int64)


def labels_of(graph: Graph, ids: torch.Tensor) -> torch.Tensor:
    """The ids as labels, on as many tokens as the plan has room for, the last ones of each sequence first."""
    most = graph.workload.labelled
    if most is None:
        return ids
    labels = torch.full_like(ids, IGNORED)
    last, first = ids.shape[1], ids.shape[1] - most // len(ids)
    labels[:, max(1, first) : last] = ids[:, max(1, first) : last]
    return labels
