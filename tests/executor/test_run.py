"""The executor against transformers + PEFT with autograd, on the same decompressed weights."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mebp.errors import StoreError
from mebp.executor.adapter import new_adapters
from mebp.executor.env import Io
from mebp.executor.executor import Executor
from mebp.executor.measure.reference import reference_gradients
from mebp.executor.spill import Spill
from mebp.kernel.library import SWITCH, library
from mebp.models.optimizer import Optimizer
from mebp.models.tensor import TensorId
from mebp.models.workload import Lora
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import override
from tests.executor.exact import DEVICE, EXACT, PLANS, TOLERANCE, UNLIKE, plan_named, require_exact, run_once, worst_error
from tests.executor.families import FAMILIES, VARIANTS, trial


@pytest.mark.parametrize("family", FAMILIES)
def test_every_exact_plan_has_the_gradients_of_autograd(family: str, tmp_path: Path) -> None:
    """All of them for families that differ most, those that differ most for the others."""
    require_exact(trial(family, tmp_path), PLANS if family in UNLIKE else ["mebp", "checkpoint-1", "greedy", "least"])


@pytest.mark.parametrize("family", VARIANTS)
def test_other_arrangements_of_a_family_have_the_gradients_of_autograd(family: str, tmp_path: Path) -> None:
    require_exact(trial(family, tmp_path), ["mebp", "least"])


@pytest.mark.parametrize("family", UNLIKE)
@pytest.mark.parametrize("name", ["mebp", "mlx"])
def test_the_released_recipes_are_exact_on_the_graphs_that_they_run(name: str, family: str, tmp_path: Path) -> None:
    """As released: the loss computed twice, and for `mlx` each layer's weights copied into memory."""
    given = trial(family, tmp_path)
    graph = STRATEGIES[name].graph(given.graph)
    assert graph.signature != given.graph.signature
    assert sum(op.kind.makes_loss for op in graph.ops) == 2
    require_exact(replace(given, graph=graph), [name])


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
@pytest.mark.parametrize("targets", [("q", "v"), ("down",), ("o", "gate")])
def test_any_subset_of_linears_has_the_gradients_of_autograd(family: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    lora = Lora(rank=3, alpha=5.0, targets=targets)  # type: ignore[arg-type]
    require_exact(trial(family, tmp_path, lora=lora), ["least", "keep-all"])


@pytest.mark.parametrize("fmt", ["int4-g64", "int8", "ternary", "bf16"])
def test_every_weight_format_has_the_gradients_of_autograd(fmt: str, tmp_path: Path) -> None:
    require_exact(trial("llama", tmp_path, fmt=fmt), ["mebp", "checkpoint-1", "greedy"])


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_longer_batch_in_several_attention_tiles_is_exact(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mebp.models.kind.attention.SCORE_ELEMENTS", 256)
    require_exact(trial(family, tmp_path, seq_len=37, batch_size=3), ["mebp", "least"])


@pytest.mark.slow
@pytest.mark.parametrize("family", UNLIKE)
@pytest.mark.parametrize(
    ("seq_len", "batch_size", "plans"),
    [(7, 1, PLANS), (7, 2, EXACT), (256, 1, ["mebp", "solved", "least-dry"]), (256, 2, ["greedy"])],
)
def test_sequences_of_any_length_are_exact(family: str, seq_len: int, batch_size: int, plans: list[str], tmp_path: Path) -> None:
    require_exact(trial(family, tmp_path, seq_len=seq_len, batch_size=batch_size), plans)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_long_batch_is_exact(family: str, tmp_path: Path) -> None:
    require_exact(trial(family, tmp_path, seq_len=1500, batch_size=2), ["mebp", "least"])


@pytest.mark.parametrize("family", ["qwen2", *(pytest.param(name, marks=pytest.mark.slow) for name in UNLIKE if name != "qwen2")])
def test_a_padded_batch_is_exact(family: str, tmp_path: Path) -> None:
    """Padded at the end, the padding not counted: a causal model needs no mask for it."""
    given = trial(family, tmp_path, seq_len=21)
    mask = torch.ones_like(given.ids)
    mask[0, 15:] = mask[1, 4:] = 0
    given.ids[mask == 0] = 0
    require_exact(given, ["keep-all", "mebp", "solved"], given.ids.masked_fill(mask == 0, -100), mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_two_runs_of_one_plan_are_equal_bit_for_bit(name: str, tmp_path: Path) -> None:
    given = trial("gemma3", tmp_path, precision="bf16")
    plan = plan_named(name, given.graph)
    (loss, first), (again, second) = (run_once(plan, given) for _ in range(2))
    assert loss == again
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mebp", "checkpoint-1", "solved"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_no_op_takes_memory_that_no_plan_knows(family: str, name: str, tmp_path: Path) -> None:
    """All that torch allocates in a step is a few bytes a token: indices of labels, norms of rows."""
    given = trial(family, tmp_path, seq_len=256, precision="bf16")
    graph = STRATEGIES[name].graph(given.graph) if name in STRATEGIES else given.graph
    executor = Executor(plan_named(name, graph), graph, given.store, given.fresh_adapters(), spill_dir=tmp_path)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        executor.step(given.ids)
    largest = max((event.self_cpu_memory_usage, event.name) for event in profiled.events())
    assert 0 < largest[0] <= 8 * graph.workload.tokens, largest


def test_the_released_codes_recipe_holds_one_layer_s_compressed_weights(tmp_path: Path) -> None:
    given = trial("qwen3", tmp_path)
    graph = STRATEGIES["mlx"].graph(given.graph)
    executor = Executor(STRATEGIES["mlx"].plan(graph, DEVICE, 0), graph, given.store, given.fresh_adapters())
    executor.step(given.ids)
    held = [tensor for frozen in executor.env.copies.values() for tensor in frozen.parts.values()]
    assert sum(tensor.nbytes for tensor in held) == graph.outside_bytes["a layer's compressed weights"]
    assert "a layer's compressed weights" not in given.graph.outside_bytes


def test_masked_labels_are_not_counted(tmp_path: Path) -> None:
    given = trial("qwen3", tmp_path)
    labels = given.ids.clone()
    labels[0, 9:] = -100
    labels[1, :4] = -100
    require_exact(given, ["keep-all", "mebp"], labels)


@pytest.fixture(params=["as chosen", "own", "unpack", "0"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The ways that kernels have: what this machine takes, our own block products, torch's products, all in torch."""
    if request.param != "as chosen":
        monkeypatch.setenv(SWITCH, request.param)
    library.cache_clear()
    yield request.param
    monkeypatch.undo()
    library.cache_clear()
    library()  # hands this machine's block product to the kernels again


@pytest.mark.parametrize("family", [*FAMILIES, "phi3-short", "olmo3"])
def test_bf16_gradients_point_where_the_exact_ones_do(
    family: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = trial(family, tmp_path / "fp32", seq_len=40)
    rough = trial(family, tmp_path / "bf16", seq_len=40, precision="bf16")
    taken: list[bool] = []
    multiply = Io.multiply
    monkeypatch.setattr(Io, "multiply", lambda *given, **how: taken.append(multiply(*given, **how)) or taken[-1])
    _, expected = run_once(plan_named("checkpoint-1", exact.graph), exact)
    for name in ("checkpoint-1", "greedy"):
        taken.clear()
        _, found = run_once(plan_named(name, rough.graph), rough)
        flat, flat_expected = (torch.cat([g[name].flatten() for name in expected]).double() for g in (found, expected))
        assert torch.nn.functional.cosine_similarity(flat, flat_expected, dim=0) >= 0.9995
        if name == "checkpoint-1":
            assert any(taken) == library().multiplies


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_the_projects_own_reference_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    given = trial(family, tmp_path)
    loss, expected = given.expected()
    own_loss, own = reference_gradients(given.graph, given.store, given.adapters, given.ids)
    assert own_loss == pytest.approx(loss, rel=TOLERANCE)
    assert worst_error(own, expected) <= TOLERANCE


def test_mezo_measures_the_slope_along_its_noise(tmp_path: Path) -> None:
    """loss(adapters +- epsilon z) of transformers + PEFT gives the same two losses, and the update goes down the slope."""
    given = trial("qwen2", tmp_path)
    graph = STRATEGIES["mezo"].graph(given.graph)
    adapters = given.fresh_adapters()
    executor = Executor(STRATEGIES["mezo"].plan(graph, DEVICE, 10**9), graph, given.store, adapters)
    executor.step(given.ids)
    losses, epsilon = executor.env.losses, executor.env.optimizer.perturbation
    noise = torch.Generator()
    plus, minus = TensorId("+loss"), TensorId("-loss")
    for sign, name in ((1, plus), (-1, minus)):
        moved = given.fresh_adapters()
        noise.manual_seed(0)
        for adapter in moved.values():
            for parameter in (adapter.A, adapter.B):
                parameter.add_(torch.empty_like(parameter).normal_(generator=noise), alpha=sign * epsilon)
        assert losses[name] == pytest.approx(given.expected(adapters=moved)[0], rel=TOLERANCE)
    slope = (losses[plus] - losses[minus]) / (2 * epsilon)
    noise.manual_seed(0)
    before = given.adapters["0.q"].A
    stepped = before - executor.env.rate * slope * torch.empty_like(before).normal_(generator=noise)
    assert torch.allclose(adapters["0.q"].A, stepped, atol=1e-6)


def test_adamw_steps_as_torchs_own_does(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, optimizer="adamw")
    adapters = given.fresh_adapters()
    twin = torch.nn.Parameter(adapters["1.v"].A.clone())
    optimizer = torch.optim.AdamW([twin], lr=1e-3, weight_decay=0.0)
    executor = Executor(plan_named("checkpoint-1", given.graph), given.graph, given.store, adapters, optimizer=Optimizer(rate=1e-3))
    seen: dict[str, Tensor] = {}
    for _ in range(3):
        executor.step(given.ids, on_gradient=lambda name, gradient: seen.update({name: gradient.clone()}))
        twin.grad = seen["1.v.dA"]
        optimizer.step()
    assert torch.allclose(adapters["1.v"].A, twin.data, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("accumulate", "clip_norm"), [(3, 0.0), (1, 0.01), (2, 0.01)])
def test_deferred_gradients_step_as_torchs_own_clipping_and_accumulation_do(
    optimizer: str, accumulate: int, clip_norm: float, tmp_path: Path
) -> None:
    given = trial("qwen2", tmp_path, optimizer=optimizer, accumulate=accumulate, clip_norm=clip_norm)
    adapters = given.fresh_adapters()
    twins = {
        f"{name}.{slot}": torch.nn.Parameter(t.clone()) for name, a in adapters.items() for slot, t in (("dA", a.A), ("dB", a.B))
    }
    stepper = (torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD)(twins.values(), lr=1e-2, weight_decay=0.0)
    plan = plan_named("least", given.graph)
    executor = Executor(plan, given.graph, given.store, adapters, optimizer=Optimizer(rate=1e-2))
    for update in range(2):
        stepper.zero_grad()
        for micro in range(accumulate):
            before = adapters["0.q"].A.clone()
            ids = (given.ids + 17 * (update * accumulate + micro)) % given.config.vocab
            seen: dict[str, Tensor] = {}
            executor.step(ids, on_gradient=lambda name, gradient, seen=seen: seen.update({name: gradient.clone()}))
            for name, twin in twins.items():
                twin.grad = (0 if twin.grad is None else twin.grad) + seen[name] / accumulate
            moved = not torch.equal(before, adapters["0.q"].A)
            assert moved == (micro == accumulate - 1)
        if clip_norm:
            assert float(torch.nn.utils.clip_grad_norm_(twins.values(), clip_norm)) > clip_norm
        stepper.step()
        for name, adapter in adapters.items():
            assert torch.allclose(adapter.A, twins[f"{name}.dA"].data, rtol=1e-5, atol=1e-6)
            assert torch.allclose(adapter.B, twins[f"{name}.dB"].data, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss_and_two_runs_are_bit_identical(tmp_path: Path) -> None:
    given = trial("llama", tmp_path)
    plan = plan_named("mebp", given.graph)
    curves = []
    for _ in range(2):
        executor = Executor(plan, given.graph, given.store, new_adapters(given.graph), optimizer=Optimizer(rate=0.5))
        curves.append([executor.step(given.ids).loss for _ in range(6)])
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0] - 0.01


def test_spilled_activations_go_through_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file's bytes zeroed behind the executor's back, the gradients are wrong: nothing else holds them."""
    given = trial("llama", tmp_path)
    plan = plan_named("mebp", given.graph)
    _, right = run_once(plan, given)
    load = Spill.load
    monkeypatch.setattr(Spill, "load", lambda self, tensor, target: (self._bytes.zero_(), load(self, tensor, target)))
    _, wrong = run_once(plan, given)
    assert worst_error(wrong, right) > 0.1


def test_a_failing_engine_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trial("llama", tmp_path)
    executor = Executor(plan_named("mebp", given.graph), given.graph, given.store, given.fresh_adapters())

    def fail(*_: object) -> None:
        raise StoreError("the disk broke")

    monkeypatch.setattr(executor.spill, "store", fail)
    with pytest.raises(StoreError, match="the disk broke"):
        executor.step(given.ids)


def test_unpacking_concurrently_with_compute_gives_the_same_gradients(tmp_path: Path) -> None:
    given = trial("qwen3", tmp_path)
    concurrent = override(DEVICE, ["runtime.unpack_beside=1"])
    plans = [STRATEGIES["mebp"].plan(given.graph, device, 10**9) for device in (DEVICE, concurrent)]
    found = [run_once(plan, given)[1] for plan in plans]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
