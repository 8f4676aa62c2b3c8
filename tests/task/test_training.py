"""Planning a training run: what its parts take together, what it is predicted to take, and which data it is of."""

from dataclasses import replace
from pathlib import Path

import pytest

from mebp.data.record_tokenizer import open_record_tokenizer
from mebp.errors import InfeasibleBudget, InputError
from mebp.executor.train.settings import TrainSettings
from mebp.models.build import build_graph
from mebp.models.config import ModelConfig
from mebp.models.format import weight_formats
from mebp.models.workload import Lora, Workload
from mebp.planner.effort import Effort
from mebp.sim.device import Device
from mebp.sim.footprint import footprint_bytes, outside_bytes, session_bytes
from mebp.sim.profile import load_device
from mebp.task.train.corpus import Corpus, Source, most_labelled, read_corpus
from mebp.task.train.log import cut_back, read_log
from mebp.task.train.planning import num_evaluations, plan_training, with_batches_of
from tests.conftest import small_config
from tests.data.spelling import chat, write_lines, write_tokenizer

BUDGET = 600_000_000
WORKLOAD = Workload(lora=Lora(rank=4), weights=weight_formats("int4-g32"), optimizer="adamw", clip_norm=1.0)
RECORDS = [chat(f"What is {at} + {at}?" * (1 + 3 * (at % 5 == 0)), f"It is {2 * at}.") for at in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def config() -> ModelConfig:
    return small_config(layers=4)


@pytest.fixture
def laptop() -> Device:
    return load_device("laptop16")


def corpus_of(tmp_path: Path, **changes: object) -> Corpus:
    model = write_tokenizer(tmp_path / "model")
    data = write_lines(tmp_path / "data.jsonl", *RECORDS)
    source = Source(**({"data": data, "seq_len": 160, "hold_out": 0.2} | changes))  # type: ignore[arg-type]
    return read_corpus(source, open_record_tokenizer(model), 512)


def test_several_graphs_share_adapters_and_add_up_tables(config: ModelConfig, laptop: Device) -> None:
    graphs = [build_graph(config, replace(WORKLOAD, seq_len=length)) for length in (64, 160)]
    together = session_bytes(graphs, laptop)
    apart = [outside_bytes(graph, laptop) for graph in graphs]
    assert session_bytes(graphs[:1], laptop) == apart[0]
    assert together["adapters"] == apart[0]["adapters"]
    assert together["runtime baseline"] == apart[0]["runtime baseline"]
    for name in ("rope tables", "token ids", "plan and graph"):
        assert together[name] == apart[0][name] + apart[1][name]


def test_each_length_has_a_plan_and_all_fit_together(config: ModelConfig, laptop: Device, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    settings = TrainSettings(updates=50, evaluate_every=20)
    plan = plan_training(config, WORKLOAD, corpus, settings, laptop, BUDGET, Effort(deterministic_s=0.1))
    assert [stage.seq_len for stage in plan.train] == list(corpus.train.seq_lens)
    assert len(plan.train) == 2
    assert plan.held_out
    assert plan.peak_bytes <= BUDGET
    for number, stage in enumerate(plan.train):
        assert stage.labelled == most_labelled(corpus.train, number, 1)
        assert footprint_bytes(stage.row.plan.arena_bytes, stage.row.graph, laptop) < plan.peak_bytes
    assert sum(stage.num_batches for stage in plan.train) == len(corpus.train.samples) == 32
    epoch = sum(stage.num_batches * stage.row.prediction.step_ns for stage in plan.train)
    assert epoch <= plan.update_ns * plan.updates_per_epoch < 1.05 * epoch  # resident weights are unpacked again at a switch
    assert plan.total_ns == 50 * plan.update_ns + 4 * plan.evaluation_ns


def test_a_budget_without_room_for_the_rest_says_how_much_is_needed(config: ModelConfig, laptop: Device, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    enough = plan_training(config, WORKLOAD, corpus, TrainSettings(updates=1), laptop, BUDGET, Effort(deterministic_s=0.1))
    outside = enough.peak_bytes - enough.peak_breakdown["arena"]
    for budget in (1000, outside + 1000):
        with pytest.raises(InfeasibleBudget) as caught:
            plan_training(config, WORKLOAD, corpus, TrainSettings(updates=1), laptop, budget, Effort(deterministic_s=0.1))
        assert caught.value.least_bytes > budget


def test_evaluations_are_before_between_and_after() -> None:
    assert num_evaluations(TrainSettings(updates=50)) == 0
    assert num_evaluations(TrainSettings(updates=50, evaluate_every=20)) == 4
    assert num_evaluations(TrainSettings(updates=40, evaluate_every=20)) == 3


def test_fewer_labels_make_shorter_steps(config: ModelConfig, laptop: Device) -> None:
    from mebp.sim.cost import CostModel  # noqa: PLC0415

    graphs = [build_graph(config, replace(WORKLOAD, labelled=labelled)) for labelled in (None, 77)]
    times = [CostModel(graph, laptop).op_ns(graph.head, streamed=graph.head.weights, tile=64) for graph in graphs]
    assert times[1] < 0.7 * times[0]


def test_batches_are_chosen_for_tokens_per_second(config: ModelConfig, laptop: Device, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    found = with_batches_of(1000, config, WORKLOAD, corpus, laptop, BUDGET, Effort(deterministic_s=0.05))
    mean = float(corpus.train.samples.lengths.mean())
    assert found.batch_size * found.accumulate * mean == pytest.approx(1000, rel=0.35)
    assert found.batch_size > 1
    with pytest.raises(InputError, match="`tokens_per_step` = 5: a sample has"):
        with_batches_of(5, config, WORKLOAD, corpus, laptop, BUDGET, Effort())


def test_a_folder_has_its_own_held_out_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", *RECORDS)
    write_lines(folder / "valid.jsonl", *RECORDS[:5])
    corpus = corpus_of(tmp_path, data=folder, hold_out=0.0)
    assert len(corpus.train.samples) == 40
    assert corpus.held_out is not None
    assert len(corpus.held_out.samples) == 5
    with pytest.raises(InputError, match=r"valid.jsonl is held out already"):
        corpus_of(tmp_path, data=folder, hold_out=0.1)


def test_all_but_one_sample_cannot_be_held_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl", RECORDS[0])
    with pytest.raises(InputError, match="has 1 samples: too few to hold 1 out"):
        corpus_of(tmp_path, data=tmp_path / "one.jsonl")


def test_a_log_is_cut_back_to_where_a_run_goes_on(tmp_path: Path) -> None:
    """A line that was being written when the run was killed is passed over; an update made twice counts once."""
    log = tmp_path / "log.jsonl"
    lines = [
        '{"event": "begin"}',
        *(f'{{"event": "update", "number": {at}, "loss": {at}.5}}' for at in (1, 2, 2, 3)),
        '{"event": "up',
    ]
    log.write_text("\n".join(lines))
    assert [event.get("number") for event in read_log(log)] == [None, 1, 2, 3]
    cut_back(log, 2)
    assert [event.get("number") for event in read_log(log)] == [None, 1, 2]
