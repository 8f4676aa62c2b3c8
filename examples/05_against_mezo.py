"""First-order training against MeZO: one tiny model, the same data and adapters, the same simulated time on a phone.

Both run on the executor; time is what an iPhone 15 Pro Max would take by the simulator. Given a path, the curves are written there
too: python examples/05_against_mezo.py losses.csv
"""

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from mebp import STRATEGIES, Lora, Workload, build_graph, load_device, simulate, weight_formats
from mebp.executor.adapter import Adapter, new_adapters
from mebp.executor.executor import Executor
from mebp.models.huggingface import config_from_dict
from mebp.models.optimizer import Optimizer
from mebp.store.reader import Store, open_store
from mebp.store.synthetic import synthesize

torch.set_num_threads(1)  # tiny tensors
CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": 256}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
RATES = {"mebp": 1.0, "mezo": 0.002}  # the best of five tried for each
SEEDS = 20  # directions of MeZO
FIRST_ORDER_STEPS, BATCHES, POINTS, WIDTH = 120, 4, 8, 28

config = config_from_dict(CONFIG, name="tiny", source="this example")
workload = Workload(seq_len=32, lora=Lora(rank=4), weights=weight_formats("int4-g32"), precision="fp32")
base = build_graph(config, workload)
device = load_device("iphone15promax")
data = torch.randint(0, 32, (BATCHES, 1, 32), generator=torch.Generator().manual_seed(0))


def executor_of(method: str, store: Store, seed: int = 0) -> tuple[Executor, float]:
    """A fresh executor of a strategy's plan, and the simulated seconds of its step."""
    graph = STRATEGIES[method].graph(base)
    plan = STRATEGIES[method].plan(graph, device, budget_bytes=10**9)
    executor = Executor(plan, graph, store, new_adapters(graph), optimizer=Optimizer(rate=RATES[method]), seed=seed)
    return executor, simulate(plan, graph, device).step_ns / 1e9


def train(method: str, store: Store, seconds: float) -> list[tuple[float, float]]:
    """(simulated seconds so far, loss) after every round through the data, for as long as `seconds` last."""
    executor, step_s = executor_of(method, store)
    losses = [executor.step(data[number % BATCHES]).loss for number in range(int(seconds / step_s) // BATCHES * BATCHES)]
    rounds = range(0, len(losses), BATCHES)
    return [((at + BATCHES) * step_s, sum(losses[at : at + BATCHES]) / BATCHES) for at in rounds]


def flat(adapters: dict[str, Adapter]) -> torch.Tensor:
    return torch.cat([part.flatten() for adapter in adapters.values() for part in (adapter.A, adapter.B)])


def move(method: str, store: Store, seed: int = 0) -> torch.Tensor:
    """What one step changes of fresh adapters."""
    executor, _ = executor_of(method, store, seed)
    before = flat(executor.env.adapters).clone()
    executor.step(data[0])
    return flat(executor.env.adapters) - before


def cosines_of_mezo(store: Store) -> torch.Tensor:
    """Cosine between the direction of a MeZO step and that of the true gradient, at the same adapters, for each seed."""
    true = move("mebp", store)
    return torch.stack([torch.nn.functional.cosine_similarity(move("mezo", store, seed), true, dim=0) for seed in range(SEEDS)])


with tempfile.TemporaryDirectory() as folder:
    store = open_store(synthesize(Path(folder) / "store", config, workload.weights))
    seconds = FIRST_ORDER_STEPS * executor_of("mebp", store)[1]
    curves = {method: train(method, store, seconds) for method in RATES}
    cosines = cosines_of_mezo(store)
    num_trained = len(move("mebp", store))
    ratio = executor_of("mezo", store)[1] / executor_of("mebp", store)[1]

if len(sys.argv) > 1:
    rows = [f"{method},{at:.6f},{loss:.6f}" for method, curve in curves.items() for at, loss in curve]
    Path(sys.argv[1]).write_text("\n".join(["method,seconds,loss", *rows]) + "\n", encoding="utf-8")

console = Console(width=80, highlight=False)
losses = [loss for curve in curves.values() for _, loss in curve]
low, high = min(losses), max(losses)
for method, curve in curves.items():
    console.print(f"{method}: loss against simulated time, {len(curve) * BATCHES} steps")
    for at, loss in curve[:: max(1, len(curve) // POINTS)]:
        console.print(f"  {at / seconds:4.0%} {loss:6.2f} {'#' * round(WIDTH * (loss - low) / (high - low))}")
console.print(f"cosine of a MeZO step with the true gradient: {cosines[0]:.4f};")
console.print(f"|cosine| over {SEEDS} seeds, in the mean: {cosines.abs().mean():.4f}")
console.print(f"of a random direction among {num_trained} numbers: {(2 / torch.pi / num_trained) ** 0.5:.4f}")
console.print(f"a MeZO step takes {ratio:.2f} of a MeBP step here (0.51-0.70 in the paper)")
