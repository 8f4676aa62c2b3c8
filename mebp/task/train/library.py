"""Training from Python in a few lines: a trainer for a store, data and a budget; and its adapters as other tools take them."""

from dataclasses import replace
from pathlib import Path

from mebp.data.order import Order
from mebp.data.record_tokenizer import open_record_tokenizer
from mebp.executor.train.settings import TrainSettings, require_settings
from mebp.executor.train.trainer import HeldOut, Trainer
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
from mebp.unit import require_kind


def make_trainer(
    store: str | Path,
    source: Source,
    settings: TrainSettings,
    *,
    budget_bytes: int,
    workload: Workload | None = None,
    device: Device | None = None,
    folder: Path | None = None,
) -> Trainer:
    """Plan for `device` (default: this machine's profile, or one like it) and get ready to train, in this process, on a store's
    weights. `workload` (default: LoRA of rank 8 with AdamW, clipped) is given its lengths, labels, formats and accumulation here;
    the state is saved in `folder`. InputError for what no run can take, InfeasibleBudget where nothing fits.
    """
    require_kind("`source`", source, Source, remedy="Source(data=...) makes one")
    require_kind("`settings`", settings, TrainSettings, remedy="TrainSettings(updates=...) makes one")
    require_kind("`store`", store, str, Path, remedy="name the folder of a store")
    require_settings(settings)
    opened = open_store(Path(store))
    asked = workload or Workload(lora=Lora(), weights=opened.formats, optimizer="adamw", clip_norm=1.0)
    asked = replace(asked, weights=opened.formats, accumulate=settings.accumulate)
    corpus = read_corpus(source, open_record_tokenizer(opened.folder), opened.config.vocab)
    here = device or load_device("host" if host_path().is_file() else STAND_IN)
    plan = plan_training(opened.config, asked, corpus, settings, here, budget_bytes, Effort())
    order = Order(
        corpus.train.samples,
        corpus.train.seq_lens,
        batch_size=asked.batch_size,
        accumulate=settings.accumulate,
        seed=settings.seed,
    )
    held_out = None
    if corpus.held_out is not None and plan.held_out:
        own = Order(corpus.held_out.samples, corpus.held_out.seq_lens, batch_size=asked.batch_size, seed=None)
        held_out = HeldOut(plans=[bucket.row.plan for bucket in plan.held_out], order=own)
    return Trainer([bucket.row.plan for bucket in plan.train], opened, order, settings, held_out=held_out, folder=folder)


def write_adapter(folder: str | Path, trainer: Trainer, base: str) -> None:
    """Write a trainer's adapters as they are now as a new folder that PEFT loads on the model `base`."""
    config, lora = trainer.config, trainer.workload.lora
    pairs = {name: (adapter.A, adapter.B) for name, adapter in trainer.adapters.items()}
    adapters = LoraSet(config=config, rank=lora.rank, alpha=lora.scale * lora.rank, pairs=pairs)
    write_peft(Path(folder), adapters, Base(config=config, name=base))
