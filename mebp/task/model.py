"""Find a model by whatever names it: a name of the catalogue, a checkpoint's folder, a store, or a GGUF file."""

from dataclasses import dataclass
from pathlib import Path

from mebp.errors import InputError, ModelError
from mebp.models.catalogue import is_known, load_model
from mebp.models.config import ModelConfig
from mebp.models.format import WeightFormats
from mebp.models.huggingface import is_gguf, wrapper_of
from mebp.task.weights import is_written


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model, and what named it: a store, a GGUF file of an `architecture`, or a checkpoint of a vision model, whose type is
    `wrapper`. `formats` are those of its weights, where they are in some already.
    """

    config: ModelConfig
    formats: WeightFormats | None = None
    store: Path | None = None
    architecture: str | None = None
    wrapper: str | None = None


def find_model(spec: str) -> FoundModel:
    """The model that `spec` names; a name of the catalogue goes before a file of that name. ModelError or StoreError in one line
    where there is none, or none that can be read.
    """
    path = Path(spec)
    if is_known(spec) or not spec.strip():
        return FoundModel(config=load_model(spec))
    if is_gguf(path):
        from mebp.store.compress import own_formats  # noqa: PLC0415  (torch)
        from mebp.store.gguf_file import GgufFile  # noqa: PLC0415

        file = GgufFile(path)
        return FoundModel(config=file.config, formats=own_formats(file), architecture=file.architecture)
    if is_written(path):
        return found_store(path)
    return FoundModel(config=load_model(spec), wrapper=wrapper_of(path))


def found_store(folder: Path) -> FoundModel:
    """The model of a store."""
    from mebp.store.header import read_header  # noqa: PLC0415  (torch)

    header = read_header(folder)
    return FoundModel(config=header.config, formats=header.formats, store=folder)


def find_base(spec: str) -> FoundModel:
    """The model that an adapter names as its base; InputError where that is not found here."""
    try:
        return find_model(spec)
    except ModelError as error:
        if spec and Path(spec).exists():
            raise
        said = f"the adapter was trained on {spec}, which is not found here" if spec else "the adapter names no model"
        raise InputError(f"{said}: name its checkpoint, GGUF file or store with `model`") from error
