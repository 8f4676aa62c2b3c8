"""Find a model by whatever names it: a name of the catalogue, a checkpoint's folder, a store, or a GGUF file."""

from pathlib import Path

from mebp.errors import InputError, ModelError
from mebp.models.catalogue import load_model
from mebp.models.config import ModelConfig


def find_model(spec: str, *, named: bool = True) -> ModelConfig:
    """The model that `spec` names; with `named` false the name is an adapter's own word for its base, and the error says so."""
    if spec.lower().endswith(".gguf") and Path(spec).is_file():
        from mebp.store.gguf_file import GgufFile  # noqa: PLC0415  (torch)

        return GgufFile(Path(spec)).config
    try:
        return load_model(spec)
    except ModelError as error:
        if named:
            raise
        said = f"the adapter was trained on {spec}, which is not found here" if spec else "the adapter names no model"
        raise InputError(f"{said}: name its checkpoint, GGUF file or store with `model`") from error
