"""What compressing costs in quality: the loss on a text, before and after."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mebp.errors import InputError
from mebp.leftover import temporary_folder
from mebp.models.build import build_graph
from mebp.models.format import WeightFormats, weight_formats
from mebp.models.workload import Lora, Workload
from mebp.planner.recipe.strategies import EVALUATION
from mebp.sim.profile import load_device

if TYPE_CHECKING:
    from mebp.store.compress import Compressed

SEQUENCE, MOST_SEQUENCES, FEWEST_TOKENS = 256, 8, 16
ORIGINAL = "bf16"  # what the source's weights are rounded to for the loss before


@dataclass(frozen=True, slots=True, kw_only=True)
class LossChange:
    """Mean loss over `tokens` tokens of a text, of the source's weights in bf16 and of the store's."""

    before: float
    after: float
    tokens: int


def sequences_of(source: Path, text: str) -> list[list[int]]:
    """The first tokens of a text by the tokenizer of a checkpoint or GGUF file, in sequences of one length. InputError where they
    are too few, ModelError where there is no tokenizer.
    """
    from mebp.store.compress import open_source  # noqa: PLC0415  (torch)
    from mebp.store.tokenizer import token_ids  # noqa: PLC0415

    files = open_source(source).tokenizer()
    with temporary_folder("tokenizer") as folder:
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        ids = token_ids(folder, text)
    if len(ids) < FEWEST_TOKENS:
        raise InputError(f"`calibrate_on` has {len(ids)} tokens: must be {FEWEST_TOKENS} or more")
    length = min(SEQUENCE, len(ids))
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:MOST_SEQUENCES]


def loss_change(
    source: Path, store: Path, found: "Compressed", sequences: list[list[int]], say: Callable[[str], None]
) -> LossChange:
    """The loss on `sequences` of tokens, through an evaluation plan, of `source` and of the store that was made of it. Where a
    weight changed, the source is written beside the store once more, in bf16, for as long as it takes. StoreError where that cannot
    be written.
    """
    say("after")
    after = _loss(store, found.formats, sequences)
    if not found.errors:
        before = after
    else:
        from mebp.store.compress import compress  # noqa: PLC0415  (torch)

        with temporary_folder(f"{store.name}-{ORIGINAL}", store.absolute().parent) as folder:
            say("before")
            original = weight_formats(ORIGINAL)
            compress(source, folder / "store", original)
            before = _loss(folder / "store", original, sequences)
    return LossChange(before=before, after=after, tokens=sum(map(len, sequences)))


def _loss(store: Path, formats: WeightFormats, sequences: list[list[int]]) -> float:
    from mebp.executor.measure.loss import mean_loss  # noqa: PLC0415  (torch)
    from mebp.store.reader import open_store  # noqa: PLC0415

    opened = open_store(store)
    graph = EVALUATION.graph(build_graph(opened.config, Workload(seq_len=len(sequences[0]), lora=Lora(), weights=formats)))
    plan = EVALUATION.plan(graph, load_device("laptop16"), 0)
    return mean_loss(opened, plan, graph, sequences)
