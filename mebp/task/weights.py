"""Weights to run on where no store is named: random ones of the model's shapes, written once."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from mebp.errors import StoreError
from mebp.models.config import ModelConfig
from mebp.models.format import STORE_VERSION, WEIGHTS_FILE, WeightFormats

LONGEST_NAME = 40  # of formats in the name of a folder
Progress = Callable[[int, int], None]  # weights written, and of how many


def default_store(config: ModelConfig, formats: WeightFormats) -> Path:
    """Where the random store of a model is, or will be."""
    name = f"{config.name}-{_short(formats.name)}-{config.mathematics[:8]}-v{STORE_VERSION}"
    return platformdirs.user_cache_path("mebp-plan") / "stores" / name


def _short(name: str) -> str:
    """A file's name for formats: a hash where the list of them is long."""
    return name if len(name) <= LONGEST_NAME else f"{name[:16]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def is_written(store: Path) -> bool:
    """Whether a store is there already."""
    return (store / WEIGHTS_FILE).is_file()


def write_random(store: Path, config: ModelConfig, formats: WeightFormats, seed: int, progress: Progress | None = None) -> int:
    """Write a store of random weights; returns its bytes on disk."""
    from mebp.store.synthetic import synthesize  # noqa: PLC0415  (torch)

    synthesize(store, config, formats, seed=seed, progress=progress)
    return (store / WEIGHTS_FILE).stat().st_size


def write_default(config: ModelConfig, formats: WeightFormats, progress: Progress | None = None) -> Path:
    """Write the random store of a model where it belongs. Where another process writes it too, either's will do; what an older
    version of this program left there unfinished is removed.
    """
    store = default_store(config, formats)
    if store.is_dir() and not is_written(store):
        shutil.rmtree(store, ignore_errors=True)
    try:
        write_random(store, config, formats, 0, progress)
    except StoreError:
        if not is_written(store):
            raise
    return store


def store_nbytes(config: ModelConfig, formats: WeightFormats) -> int:
    """Bytes of a model's compressed matrices."""
    return sum(formats.of(name).nbytes(*shape) for name, shape in config.matrices().items())


def compressed_store(source: Path, formats: WeightFormats | None, progress: Progress | None = None) -> tuple[Path, bool]:
    """A store of a checkpoint or GGUF file in the user's cache, made where it is not there yet; and whether it was made now."""
    from mebp.store.compress import compress  # noqa: PLC0415  (torch)

    files = sorted(source.iterdir()) if source.is_dir() else [source]
    facts = [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files if file.is_file()]
    made_of = f"{source.resolve()} {facts} {formats.name if formats else 'own'} {STORE_VERSION}"
    name = f"{source.resolve().stem[:LONGEST_NAME]}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    store = platformdirs.user_cache_path("mebp-plan") / "stores" / name
    if is_written(store):
        return store, False
    compress(source, store, formats, progress)
    return store, True
