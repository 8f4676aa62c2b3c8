"""The loss of a store's model on given tokens, by an evaluation plan, without adapters that change it."""

from collections.abc import Sequence

import torch

from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.store.reader import Store


def mean_loss(store: Store, plan: Plan, graph: Graph, sequences: Sequence[Sequence[int]]) -> float:
    """Mean loss over `sequences`, each of the graph's length; fresh adapters add nothing."""
    executor = Executor(plan, graph, store, new_adapters(graph))
    return sum(executor.step(torch.tensor([ids])).loss for ids in sequences) / len(sequences)
