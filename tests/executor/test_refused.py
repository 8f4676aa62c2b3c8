"""What a step refuses: ids that are no batch, labels that are no tokens, a loss or gradient that is not finite."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mebp.errors import InputError, NotFinite
from mebp.executor.executor import Executor
from mebp.models.optimizer import Optimizer
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from tests.executor.families import trial

DEVICE = load_device("iphone15promax")


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (torch.zeros(64, dtype=torch.int64), "ids are torch.int64"),
        (torch.tensor([[5]]), "must be whole numbers"),
        (torch.zeros(2, 32), "torch.float32"),
        (torch.full((2, 32), -1), "ids hold -1"),
        (torch.full((2, 32), 10**6), "ids hold 1000000: must be between 0"),
    ],
)
def test_ids_that_are_no_batch_are_refused(ids: Tensor, says: str, tmp_path: Path) -> None:
    given = trial("llama", tmp_path)
    shape = (given.workload.batch_size, given.workload.seq_len)
    ids = ids if ids.shape != (2, 32) else ids[:1, :1].expand(shape).clone()
    executor = Executor(STRATEGIES["checkpoint-1"].plan(given.graph, DEVICE, 0), given.graph, given.store, given.fresh_adapters())
    with pytest.raises(InputError, match=says):
        executor.step(ids)


def test_labels_are_in_the_vocabulary_or_do_not_count(tmp_path: Path) -> None:
    given = trial("llama", tmp_path)
    executor = Executor(STRATEGIES["checkpoint-1"].plan(given.graph, DEVICE, 0), given.graph, given.store, given.fresh_adapters())
    labels = given.ids.clone()
    labels[:, 3] = -100
    assert executor.step(given.ids, labels).loss
    labels[:, 5] = given.config.vocab
    with pytest.raises(
        InputError, match=f"labels hold {given.config.vocab}: must be between 0 and {given.config.vocab - 1}, or -100"
    ):
        executor.step(given.ids, labels)


@pytest.mark.parametrize("name", ["checkpoint-1", "mezo"])
def test_a_loss_that_is_not_finite_reaches_no_adapter(name: str, tmp_path: Path) -> None:
    given = trial("llama", tmp_path)
    adapters = given.fresh_adapters()
    first = next(iter(adapters.values()))
    first.B.fill_(float("inf"))
    graph = STRATEGIES[name].graph(given.graph)
    before = {key: (adapter.A.clone(), adapter.B.clone()) for key, adapter in adapters.items()}
    executor = Executor(STRATEGIES[name].plan(graph, DEVICE, 0), graph, given.store, adapters, optimizer=Optimizer(rate=1.0))
    with pytest.raises(NotFinite, match="the loss is"):
        executor.step(given.ids)
    for key, adapter in adapters.items():
        assert torch.allclose(adapter.A, before[key][0], atol=1e-6), key
        assert torch.equal(adapter.B, before[key][1]) or torch.allclose(adapter.B, before[key][1], atol=1e-6), key


def test_a_gradient_that_is_not_finite_reaches_neither_its_layer_nor_those_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = trial("llama", tmp_path)
    adapters = given.fresh_adapters()
    before = {key: (adapter.A.clone(), adapter.B.clone()) for key, adapter in adapters.items()}
    executor = Executor(
        STRATEGIES["checkpoint-1"].plan(given.graph, DEVICE, 0), given.graph, given.store, adapters, optimizer=Optimizer(rate=1.0)
    )

    def spoil(name: str, gradient: Tensor) -> None:
        if name == "0.v.dA":
            gradient[0, 0] = float("nan")

    with pytest.raises(NotFinite, match=r"0\.v\.dA"):
        executor.step(given.ids, on_gradient=spoil)
    for key, adapter in adapters.items():
        unchanged = torch.equal(adapter.A, before[key][0]) and torch.equal(adapter.B, before[key][1])
        assert unchanged == key.startswith("0."), key
