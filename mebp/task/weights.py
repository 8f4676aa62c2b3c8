"""Weights to run on where no store is named: random ones of the model's shapes, written once."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import platformdirs

from mebp.models.config import ModelConfig
from mebp.models.format import STORE_VERSION, WEIGHTS_FILE, WeightFormat

Progress = Callable[[int, int], None]  # weights written, and of how many


def default_store(config: ModelConfig, fmt: WeightFormat) -> Path:
    """Where the random store of a model's shapes is, or will be."""
    shapes = json.dumps([config.matrices(), config.vectors(), config.norm_offset, STORE_VERSION])
    key = hashlib.sha256(shapes.encode()).hexdigest()[:8]
    return platformdirs.user_cache_path("mebp-plan") / "stores" / f"{config.name}-{fmt.name}-{key}"


def is_written(store: Path) -> bool:
    """Whether a store is there already."""
    return (store / WEIGHTS_FILE).is_file()


def write_random(store: Path, config: ModelConfig, fmt: WeightFormat, seed: int, progress: Progress | None = None) -> int:
    """Write a store of random weights; returns its bytes on disk."""
    from mebp.store.synthetic import synthesize  # noqa: PLC0415  (torch)

    synthesize(store, config, fmt, seed=seed, progress=progress)
    return (store / WEIGHTS_FILE).stat().st_size


def store_nbytes(config: ModelConfig, fmt: WeightFormat) -> int:
    """Bytes of a model's compressed matrices."""
    return sum(fmt.nbytes(*shape) for shape in config.matrices().values())
