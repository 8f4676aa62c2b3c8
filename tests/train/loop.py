"""A tiny model, samples of random tokens for it, and the same loop written with transformers + PEFT and torch.optim."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mebp.data.order import Order
from mebp.data.sample import Samples
from mebp.data.token_set import TokenSet
from mebp.executor.adapter import Adapter
from mebp.executor.train.settings import TrainSettings
from mebp.executor.train.trainer import Trainer
from mebp.models.build import build_graph
from mebp.models.workload import Workload
from mebp.plan import Plan
from mebp.planner.recipe.strategies import EVALUATION, STRATEGIES
from mebp.sim.profile import load_device
from tests.executor.families import Trial, our_name, reference

DEVICE = load_device("iphone15promax")
LENGTHS = (12, 21)  # of the two buckets


def samples_of(lengths: Sequence[int], vocabulary: int, *, labelled: float = 0.5, seed: int = 0) -> Samples:
    """Samples of random tokens of these lengths; the part `labelled` of their tokens, the last ones, carry labels."""
    draw = np.random.default_rng(seed)
    ends = np.cumsum(np.array(lengths, np.int64))
    starts = ends - np.array(lengths)
    flags = np.zeros(ends[-1], np.uint8)
    for start, end in zip(starts, ends, strict=True):
        flags[end - max(1, int((end - start - 1) * labelled)) : end] = 1
    ids = draw.integers(1, vocabulary, ends[-1], dtype=np.int32)
    tokens = TokenSet(file=Path("none"), ids=ids, labelled=flags, ends=ends, digest="")
    counts = np.array([flags[start + 1 : end].sum() for start, end in zip(starts, ends, strict=True)], np.int64)
    return Samples(tokens=tokens, starts=starts, ends=ends, labelled=counts)


def plans_for(given: Trial, name: str = "checkpoint-1", **changes: object) -> list[Plan]:
    """A plan for each bucket."""
    workloads = [replace(given.workload, seq_len=length, **changes) for length in LENGTHS]  # type: ignore[arg-type]
    return [planned(given, workload, name) for workload in workloads]


def planned(given: Trial, workload: Workload, name: str) -> Plan:
    """A fixed strategy's plan."""
    strategy = EVALUATION if name == "evaluate" else STRATEGIES[name]
    graph = strategy.graph(build_graph(given.config, workload))
    return strategy.plan(graph, DEVICE, DEVICE.default_budget_bytes)


def peft_run(
    given: Trial, adapters: dict[str, Adapter], order: Order, settings: TrainSettings, workload: Workload
) -> Iterator[tuple[float, torch.nn.Module]]:
    """Loss of each update and the model after it, by transformers + PEFT, torch.optim and torch's clipping."""
    model = reference(given.family, given.config, given.store, workload, adapters)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = settings.optimizer
    if workload.optimizer == "adamw":
        stepper: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, lr=1.0, betas=numbers.betas, eps=numbers.epsilon, weight_decay=numbers.weight_decay
        )
    else:
        stepper = torch.optim.SGD(parameters, lr=1.0, weight_decay=numbers.weight_decay)
    for update in range(settings.updates):
        batches = order.update(update)
        total = sum(batch.labelled for batch in batches)
        stepper.zero_grad()
        loss = 0.0
        for batch in batches:
            ids, labels = torch.from_numpy(batch.ids), torch.from_numpy(batch.labels)
            own = model(input_ids=ids, labels=labels).loss * (batch.labelled / total)
            own.backward()
            loss += float(own.detach())
        if workload.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, workload.clip_norm)
        stepper.param_groups[0]["lr"] = numbers.rate_at(update)
        stepper.step()
        yield loss, model


def largest_difference(adapters: dict[str, Adapter], model: torch.nn.Module) -> float:
    """Relative difference of all adapters together, in the 2-norm."""
    pairs = [
        (adapters[our_name(name)].A if "lora_A" in name else adapters[our_name(name)].B, parameter.detach())
        for name, parameter in model.named_parameters()
        if "lora_" in name
    ]
    ours, theirs = (torch.cat([pair[at].flatten() for pair in pairs]).double() for at in (0, 1))
    return float((ours - theirs).norm() / theirs.norm())


def with_adapters(trainer: Trainer, given: Trial) -> Trainer:
    """Start from the trial's adapters, whose B is not zero."""
    for name, adapter in trainer.adapters.items():
        adapter.A.copy_(given.adapters[name].A)
        adapter.B.copy_(given.adapters[name].B)
    return trainer
