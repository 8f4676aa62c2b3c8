"""What comes out of a run: its best adapter, or its last, in every form that was asked for, each written whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mebp.errors import StoreError
from mebp.executor.train.settings import BEST, STATE, Trained
from mebp.leftover import part_name, sweep
from mebp.plan import Plan
from mebp.task.train.card import model_card
from mebp.task.train.folder import ADAPTER, Run

if TYPE_CHECKING:
    from mebp.export.lora_set import Pair

FORMS = ("peft", "gguf", "mlx")


def write_adapters(
    folder: Path, run: Run, plans: list[Plan], trained: Trained, seconds: float | None, warn: Callable[[str], None]
) -> tuple[Path, ...]:
    """Write the adapters into a run's folder, in the place of those that are there; `seconds` are those of the whole run, None
    where they are not known. StoreError where the disk has no room.
    """
    from mebp.export.base import Base  # noqa: PLC0415
    from mebp.export.gguf_adapter import write_gguf  # noqa: PLC0415
    from mebp.export.lora_set import LoraSet  # noqa: PLC0415
    from mebp.export.mlx_adapter import write_mlx  # noqa: PLC0415
    from mebp.export.peft import write_peft  # noqa: PLC0415

    config, lora = plans[0].config, plans[0].workload.lora
    pairs = _pairs(folder, trained, warn)
    adapters = LoraSet(config=config, rank=lora.rank, alpha=lora.scale * lora.rank, pairs=pairs)
    base = Base(config=config, name=run.base.name, wrapper=run.base.wrapper, architecture=run.base.architecture)
    written = []
    for form in run.to:
        target = folder / {"peft": ADAPTER, "gguf": f"{ADAPTER}.gguf", "mlx": f"{ADAPTER}-mlx"}[form]
        part = target.with_name(part_name(target.name))
        sweep(folder, target.name)
        try:
            {"peft": write_peft, "gguf": write_gguf, "mlx": write_mlx}[form](part, adapters, base)
            if form == "peft":
                (part / "README.md").write_text(model_card(run, plans, trained, seconds), encoding="utf-8")
            _replace(part, target)
        except (OSError, StoreError) as error:
            said = getattr(error, "strerror", None) or str(error.__context__ or error)
            raise StoreError(f"cannot write {target}: {said}: free disk, then `resume`") from None
        finally:
            _remove(part)
        written.append(target)
    return tuple(written)


def _pairs(folder: Path, trained: Trained, warn: Callable[[str], None]) -> "dict[str, Pair]":
    """The adapters with the best evaluation, else the last."""
    from mebp.executor.train.state import read_pairs  # noqa: PLC0415  (torch)

    if trained.best_number is not None:
        try:
            return read_pairs(folder / BEST)
        except StoreError as error:
            warn(f"{error}: the last adapter is written in place of the best")
    return read_pairs(folder / STATE)


def _replace(part: Path, target: Path) -> None:
    """Put a file or folder in the place of what has its name."""
    if target.is_dir():
        old = target.with_name(part_name(target.name))
        target.replace(old)
        part.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.replace(target)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
