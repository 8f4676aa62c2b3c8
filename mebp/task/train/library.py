"""Training from Python in a few lines: a trainer for a store, data and a budget; and its adapters as other tools take them."""

from pathlib import Path

from mebp.data.order import Order
from mebp.data.speller import open_speller
from mebp.executor.train.settings import Settings
from mebp.executor.train.trainer import Trainer, Trials
from mebp.export.base import Base
from mebp.export.lora_set import LoraSet
from mebp.export.peft import write_peft
from mebp.models.workload import Lora, Workload
from mebp.planner.effort import Effort
from mebp.sim.device import Device
from mebp.sim.profile import load_device
from mebp.store.reader import open_store
from mebp.task.host import STAND_IN, host_path
from mebp.task.train.corpus import Source, read_corpus
from mebp.task.train.planning import plan_training


def make_trainer(
    store: str | Path,
    source: Source,
    settings: Settings,
    *,
    budget_bytes: int,
    workload: Workload | None = None,
    device: Device | None = None,
    folder: Path | None = None,
) -> Trainer:
    """Plan for `device` (default: this machine's profile, or one like it) and get ready to train, in this process, on a store's
    weights. `workload` (default: LoRA of rank 8 with AdamW, clipped) is given its lengths, labels and formats here; the state is
    saved in `folder`. InputError for what no run can take, InfeasibleBudget where nothing fits.
    """
    opened = open_store(Path(store))
    asked = workload or Workload(lora=Lora(), weights=opened.formats, optimizer="adamw", clip_norm=1.0)
    corpus = read_corpus(source, open_speller(opened.folder), opened.config.vocab)
    here = device or load_device("host" if host_path().is_file() else STAND_IN)
    plan = plan_training(opened.config, asked, corpus, settings, here, budget_bytes, Effort())
    order = Order(
        corpus.train.samples,
        corpus.train.seq_lens,
        batch_size=asked.batch_size,
        accumulate=settings.accumulate,
        seed=settings.seed,
    )
    trials = None
    if corpus.held_out is not None and plan.trials:
        held_out = Order(corpus.held_out.samples, corpus.held_out.seq_lens, batch_size=asked.batch_size, seed=None)
        trials = Trials(plans=[stage.row.plan for stage in plan.trials], order=held_out)
    plans = [stage.row.plan for stage in plan.stages]
    return Trainer(plans, opened, order, settings, trials=trials, folder=folder)


def write_adapter(folder: str | Path, trainer: Trainer, base: str) -> None:
    """Write a trainer's adapters as they are now as a new folder that PEFT loads on the model `base`."""
    config, lora = trainer.config, trainer.workload.lora
    pairs = {name: (adapter.A, adapter.B) for name, adapter in trainer.adapters.items()}
    adapters = LoraSet(config=config, rank=lora.rank, alpha=lora.scale * lora.rank, pairs=pairs)
    write_peft(Path(folder), adapters, Base(config=config, name=base))
