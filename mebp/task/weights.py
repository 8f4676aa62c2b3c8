"""Weights to run on where no store is named: random ones of the model's shapes, written once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from mebp.errors import StoreError
from mebp.models.config import ModelConfig
from mebp.models.format import STORE_VERSION, WEIGHTS_FILE, WeightFormat

Progress = Callable[[int, int], None]  # weights written, and of how many


def default_store(config: ModelConfig, fmt: WeightFormat) -> Path:
    """Where the random store of a model is, or will be."""
    name = f"{config.name}-{fmt.name}-{config.mathematics[:8]}-v{STORE_VERSION}"
    return platformdirs.user_cache_path("mebp-plan") / "stores" / name


def is_written(store: Path) -> bool:
    """Whether a store is there already."""
    return (store / WEIGHTS_FILE).is_file()


def write_random(store: Path, config: ModelConfig, fmt: WeightFormat, seed: int, progress: Progress | None = None) -> int:
    """Write a store of random weights; returns its bytes on disk."""
    from mebp.store.synthetic import synthesize  # noqa: PLC0415  (torch)

    synthesize(store, config, fmt, seed=seed, progress=progress)
    return (store / WEIGHTS_FILE).stat().st_size


def write_default(config: ModelConfig, fmt: WeightFormat, progress: Progress | None = None) -> Path:
    """Write the random store of a model where it belongs. Where another process writes it too, either's will do; what an older
    version of this program left there unfinished is removed.
    """
    store = default_store(config, fmt)
    if store.is_dir() and not is_written(store):
        shutil.rmtree(store, ignore_errors=True)
    try:
        write_random(store, config, fmt, 0, progress)
    except StoreError:
        if not is_written(store):
            raise
    return store


def store_nbytes(config: ModelConfig, fmt: WeightFormat) -> int:
    """Bytes of a model's compressed matrices."""
    return sum(fmt.nbytes(*shape) for shape in config.matrices().values())
