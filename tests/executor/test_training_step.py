"""What training adds to a step, against transformers + PEFT: labels on some tokens, dropout, the last layers alone, updates."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from mebp.errors import InputError
from mebp.executor.adapter import Adapter, new_adapters
from mebp.executor.env import UpdateShare
from mebp.executor.executor import Executor
from mebp.executor.ops.dropout import drop
from mebp.models.build import build_graph
from mebp.models.kind.linear import DROPOUT_ROWS, LinearParams
from mebp.models.optimizer import Optimizer, Schedule
from mebp.models.workload import Lora
from tests.executor.exact import EXACT, PLANS, TOLERANCE, plan_named, require_exact, run_once, worst_error
from tests.executor.families import Trial, our_name, reference, trial


def some_labels(given: Trial) -> Tensor:
    """Labels on a few tokens of the first sequence and one of the second."""
    labels = torch.full_like(given.ids, -100)
    labels[0, 6:10], labels[1, 12] = given.ids[0, 6:10], given.ids[1, 12]
    return labels


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "granite", "phi3"])
@pytest.mark.parametrize("labelled", [5, 9, 26])
def test_the_head_on_labelled_tokens_alone_is_exact(family: str, labelled: int, tmp_path: Path) -> None:
    """Five tokens have a label; the plan has room for as many, for more, or for all."""
    given = trial(family, tmp_path, labelled=labelled)
    require_exact(given, ["checkpoint-1", "mebp", "least"], some_labels(given))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_computes_labelled_tokens_alone(name: str, tmp_path: Path) -> None:
    given = trial("qwen3", tmp_path, labelled=6)
    require_exact(given, [name], some_labels(given))


def test_fewer_labelled_tokens_make_a_smaller_head(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    few = build_graph(given.config, replace(given.workload, labelled=3))
    assert few.head.kind.flops(few.head) * 26 == given.graph.head.kind.flops(given.graph.head) * 3
    assert (
        few.scratch(few.head, streamed=few.head.weights, tile=64).nbytes
        < given.graph.scratch(given.graph.head, streamed=given.graph.head.weights, tile=64).nbytes
    )


def test_more_labels_than_the_plan_has_room_for_are_refused(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, labelled=4)
    with pytest.raises(InputError, match="5 tokens carry a label: the plan has room for 4"):
        run_once(plan_named("checkpoint-1", given.graph), given, some_labels(given))


def test_a_batch_without_labels_changes_nothing(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, labelled=4)
    loss, gradients = run_once(plan_named("checkpoint-1", given.graph), given, torch.full_like(given.ids, -100))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "olmo2"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_layers_alone_have_the_gradients_of_autograd(family: str, layers: int, tmp_path: Path) -> None:
    given = trial(family, tmp_path, lora=Lora(rank=4, alpha=8.0, layers=layers))
    assert {int(name.partition(".")[0]) for name in given.graph.adapters} == set(range(3 - layers, 3))
    require_exact(given, PLANS if family == "qwen2" else ["mebp", "solved", "least"])


def test_layers_below_the_trained_ones_have_no_backward_and_keep_nothing(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, lora=Lora(layers=1))
    below = [layer for layer in given.graph.layers if layer.number < 2]
    assert not any(layer.backward for layer in below)
    plan = plan_named("checkpoint-1", given.graph)
    freed = [instruction.tensor for instruction in plan.instructions if instruction.do == "free"]
    head = next(at for at, i in enumerate(plan.instructions) if i.do == "compute" and i.op == given.graph.head.id)
    before = {i.tensor for i in plan.instructions[:head] if i.do == "free"}
    assert {layer.input for layer in below} <= before <= set(freed)
    assert given.graph.layers[2].input not in before


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    assert Lora(rank=4, alpha=8.0, rslora=True).scale == 4.0
    require_exact(trial("qwen2", tmp_path, lora=Lora(rank=4, alpha=8.0, rslora=True)), ["mebp", "least"])


class _Masked(torch.nn.Module):
    """PEFT's dropout with the mask that the executor draws."""

    def __init__(self, executor: Executor, name: str) -> None:
        super().__init__()
        self.executor, self.name = executor, name

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0] * x.shape[1], x.shape[2])
        return x * mask_of(self.executor, self.name, ones).view(x.shape)


def mask_of(executor: Executor, name: str, ones: Tensor) -> Tensor:
    """What `drop` makes of ones, for the step that comes next."""
    bits = torch.empty(DROPOUT_ROWS, ones.shape[1], dtype=torch.int16)
    buffers = {"bits": bits, "mask": torch.empty(DROPOUT_ROWS, ones.shape[1])}
    params = LinearParams(lora_scale=1.0, copied=False, dropout=executor.graph.workload.lora.dropout)
    io = SimpleNamespace(
        params=lambda _: params, take=buffers.get, env=executor.env, op=SimpleNamespace(adapters=(name,)), span=None
    )
    return drop(io, ones, torch.empty_like(ones))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["checkpoint-1", "keep-all", "mebp", "least"])
def test_dropout_is_drawn_again_in_recomputation(name: str, tmp_path: Path) -> None:
    """Gradients equal those of transformers + PEFT with the same masks."""
    given = trial("qwen2", tmp_path, lora=Lora(rank=4, alpha=8.0, dropout=0.3), seq_len=71)
    executor = Executor(plan_named(name, given.graph), given.graph, given.store, given.fresh_adapters(), seed=3)
    executor.env.clock.step = 5
    model = reference(given.family, given.config, given.store, given.workload, given.adapters)
    for module_name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            module.lora_dropout["default"] = _Masked(executor, our_name(module_name))
    loss = model(input_ids=given.ids, labels=given.ids).loss
    loss.backward()
    expected = {
        f"{our_name(key)}.{'dA' if 'lora_A' in key else 'dB'}": parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    found: dict[str, Tensor] = {}
    result = executor.step(given.ids, on_gradient=lambda key, gradient: found.update({key: gradient.clone()}))
    assert result.loss == pytest.approx(float(loss), rel=TOLERANCE)
    assert worst_error(found, expected) <= TOLERANCE


def test_dropout_leaves_out_its_part_and_scales_the_rest(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, lora=Lora(rank=4, dropout=0.25))
    executor = Executor(plan_named("keep-all", given.graph), given.graph, given.store, given.fresh_adapters())
    ones = torch.ones(400, 64)
    first, again, other = (mask_of(executor, name, ones) for name in ("0.q", "0.q", "0.k"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    executor.env.clock.step += 1
    assert not torch.equal(first, mask_of(executor, "0.q", ones))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_in_the_kernel_is_the_dropout_in_torch(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trial("qwen2", tmp_path, lora=Lora(rank=4, dropout=0.3), precision=precision, seq_len=70)
    plan = plan_named("checkpoint-1", given.graph)
    _, fused = run_once(plan, given)
    monkeypatch.setattr("mebp.executor.env.Io.multiplies", property(lambda io: False))
    _, plain = run_once(plan, given)
    assert worst_error(fused, plain) <= (1e-5 if precision == "fp32" else 0.05)


def test_an_evaluation_has_no_dropout(tmp_path: Path) -> None:
    plain, dropped = (trial("qwen2", tmp_path / str(p), lora=Lora(rank=4, dropout=p), method="evaluate") for p in (0.0, 0.5))
    executor = Executor(plan_named("keep-all", plain.graph), plain.graph, plain.store, plain.fresh_adapters())
    dropped_graph = dropped.graph
    other = Executor(plan_named("keep-all", dropped_graph), dropped_graph, dropped.store, dropped.fresh_adapters())
    assert executor.step(plain.ids).loss == other.step(dropped.ids).loss


def twins_of(adapters: dict[str, Adapter]) -> dict[str, torch.nn.Parameter]:
    """The same adapters as torch's parameters, by the names of their gradients."""
    pairs = ((name, slot, t) for name, a in adapters.items() for slot, t in (("dA", a.A), ("dB", a.B)))
    return {f"{name}.{slot}": torch.nn.Parameter(t.clone()) for name, slot, t in pairs}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_updates_are_torchs_own(optimizer: str, clip_norm: float, tmp_path: Path) -> None:
    """Shares of unequal weight, decay, warm-up and cosine, with states in a file for AdamW."""
    given = trial("qwen2", tmp_path, optimizer=optimizer, clip_norm=clip_norm, accumulate=2, states_in_file=optimizer == "adamw")
    adapters = new_adapters(given.graph, seed=2, spill_dir=tmp_path)
    for name, adapter in given.adapters.items():
        adapter.B.copy_(adapters[name].B.copy_(adapter.B))
    twins = twins_of(adapters)
    numbers = Optimizer(rate=1e-2, betas=(0.8, 0.99), weight_decay=0.1, schedule=Schedule(decay="cosine", warm_up=2, updates=6))
    kinds = {"adamw": lambda p: torch.optim.AdamW(p, betas=(0.8, 0.99), lr=1.0, weight_decay=0.1)}
    stepper = kinds.get(optimizer, lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1))(twins.values())
    plan = plan_named("least", given.graph)
    executor = Executor(plan, given.graph, given.store, adapters, optimizer=numbers)
    for update in range(6):
        stepper.zero_grad()
        for share, last in ((0.3, False), (0.7, True)):
            seen: dict[str, Tensor] = {}
            ids = (given.ids + 17 * update + last) % given.config.vocab
            result = executor.step(
                ids,
                on_gradient=lambda name, gradient, seen=seen: seen.update({name: gradient.clone()}),
                share=UpdateShare(part=share, last=last),
            )
            for name, twin in twins.items():
                twin.grad = (0 if twin.grad is None else twin.grad) + share * seen[name]
        norm = torch.nn.utils.clip_grad_norm_(twins.values(), clip_norm or float("inf"))
        assert result.gradient_norm == pytest.approx(float(norm), rel=1e-5)
        stepper.param_groups[0]["lr"] = numbers.rate_at(update)
        stepper.step()
        for name, adapter in adapters.items():
            assert torch.allclose(adapter.A, twins[f"{name}.dA"].data, rtol=1e-5, atol=1e-6)
            assert torch.allclose(adapter.B, twins[f"{name}.dB"].data, rtol=1e-5, atol=1e-6)


def rates(schedule: Schedule) -> Iterator[float]:
    return (schedule.factor(update) for update in range(schedule.updates))


def test_the_rate_climbs_is_full_and_decays() -> None:
    assert list(rates(Schedule(updates=3))) == [1, 1, 1]
    assert list(rates(Schedule(decay="linear", warm_up=2, updates=6))) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = list(rates(Schedule(decay="cosine", updates=4, lowest=0.1)))
    assert cosine[0] == 1
    assert cosine[2] == pytest.approx(0.55)
    assert Schedule(decay="cosine", updates=4, lowest=0.1).factor(4) == pytest.approx(0.1)


@pytest.mark.parametrize("name", EXACT)
def test_executors_of_two_plans_may_share_one_arena(name: str, tmp_path: Path) -> None:
    """The second finds its resident weights unpacked, whatever the first left in the arena."""
    given = trial("qwen2", tmp_path)
    device = plan_named("keep-all", given.graph)
    alone, _ = run_once(plan_named(name, given.graph), given)
    first = Executor(device, given.graph, given.store, given.fresh_adapters())
    second = plan_named(name, given.graph)
    if second.arena_bytes > device.arena_bytes:
        pytest.skip("the arena of keep-all is smaller")
    executor = Executor(second, given.graph, given.store, given.fresh_adapters(), arena=first.arena)
    first.step(given.ids)
    assert executor.step(given.ids).loss == alone
