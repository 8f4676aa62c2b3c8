"""A Hugging Face checkpoint as a source of weights: safetensors, sharded or not. Nothing of it is unpickled or executed."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mebp.errors import ModelError
from mebp.kernel.weight import Frozen
from mebp.models.config import ModelConfig
from mebp.models.format import WeightFormat
from mebp.models.huggingface import CONFIG, quantisation_of, read_config, read_model
from mebp.text import read_text

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
COMPILED = "_orig_mod."  # before every name where torch.compile wrapped the model that was saved
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
IGNORED = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")  # not a decoder's
PIECE_WEIGHTS = 1 << 21  # weights quantised at a time
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
}
FOUR_NORMS = {
    "norm2": "pre_feedforward_layernorm.weight",
    "post_attention_norm": "post_attention_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}


class Checkpoint:
    """The tensors of a checkpoint under the store's names, each found, and of the shape that the config says."""

    def __init__(self, folder: Path) -> None:
        self.config = config = _read(folder)
        self.shapes: dict[str, tuple[int, ...]] = {**config.matrices(), **{name: (n,) for name, n in config.vectors().items()}}
        self._folder = folder
        self._files = _weight_map(folder)
        prefix = _prefix(self._files, folder)
        self._names = _names(config, prefix, _head_name(self._files, prefix))
        self._see: Callable[[bytes], object] = len
        for name, theirs in self._names.items():
            if theirs not in self._files:
                raise ModelError(f"{folder}: tensor {theirs} is missing: the checkpoint does not match its config.json ({name})")
        ours = set(self._names.values())
        for theirs in self._files:
            twice = config.tied and theirs.endswith(HEAD)
            if theirs not in ours and not twice and not _ignored(theirs) and not theirs.endswith("rotary_emb.inv_freq"):
                raise ModelError(f"{folder}: tensor {theirs} does not belong to a {config.family} model of this config.json")

    def stored(self, name: str) -> WeightFormat | None:
        """None: every matrix has to be quantised."""
        return None

    def type_name(self, name: str) -> str | None:
        """None: no matrix is quantised."""
        return None

    def frozen(self, name: str) -> Iterator[Frozen]:
        """Never asked for."""
        raise AssertionError(f"{name} is not quantised")

    def watch(self, see: Callable[[bytes], object]) -> None:
        """Show `see` every byte that is read."""
        self._see = see

    def rows(self, name: str) -> Iterator[Tensor]:
        """A tensor, some rows at a time."""
        theirs, shape = self._names[name], self.shapes[name]
        file = self._folder / self._files[theirs]
        step = max(1, PIECE_WEIGHTS // math.prod(shape[1:]))
        try:
            with safe_open(file, framework="pt") as opened:
                view = opened.get_slice(theirs)
                if tuple(view.get_shape()) != shape:
                    raise ModelError(
                        f"{file}: tensor {theirs} has shape {view.get_shape()}, its config.json asks for {list(shape)}"
                    )
                for start in range(0, shape[0], step):
                    piece = view[start : min(start + step, shape[0])]
                    self._require_weights(piece, theirs, file)
                    self._see(piece.contiguous().view(torch.uint8).numpy().data)
                    yield piece
        except SafetensorError as error:
            raise ModelError(f"cannot read tensor {theirs} of {file}: {error}: copy the checkpoint again") from None

    def _require_weights(self, piece: Tensor, theirs: str, file: Path) -> None:
        if piece.dtype not in FLOATS:
            raise ModelError(f"{file}: tensor {theirs} is {piece.dtype}: expected bfloat16, float16 or float32")
        if not bool(torch.isfinite(piece).all()):
            raise ModelError(f"{file}: tensor {theirs} holds values that are not finite: copy the checkpoint again")


def _read(folder: Path) -> ModelConfig:
    """The config of a checkpoint whose weights can be compressed; ModelError naming what it is where they cannot."""
    config = read_model(folder)
    quantised = quantisation_of(read_config(folder / CONFIG))
    if quantised:
        raise ModelError(
            f"{folder} is quantised already ({quantised}), which is not read: take the checkpoint that it was made from"
        )
    return config


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to the file that holds it, every file there."""
    index = folder / INDEX_FILE
    if not index.is_file():
        files = dict.fromkeys(_keys(folder / SINGLE_FILE), SINGLE_FILE)
        if not files:
            raise ModelError(f"{folder / SINGLE_FILE} holds no tensors: copy the checkpoint again")
        return files
    try:
        found = json.loads(read_text(index))["weight_map"]
        pairs = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{index} is not a checkpoint's index: expected an object with a weight_map") from None
    for file in sorted(set(pairs.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{index} points to {file!r}: expected the name of a .safetensors file in the same folder")
        present = set(_keys(folder / file))
        for name in (name for name, other in pairs.items() if other == file and name not in present):
            raise ModelError(f"{folder / file}: tensor {name} is missing, which {INDEX_FILE} says is there")
    return pairs


def _keys(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    if not file.is_file():
        raise ModelError(f"no {file.name} in {file.parent}: expected safetensors, whole ({SINGLE_FILE}) or with {INDEX_FILE}")
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {file}: {error}: copy the checkpoint again") from None


def _prefix(files: Mapping[str, str], folder: Path) -> str:
    """What stands before a decoder's tensor names: `model.`, or more where the decoder is part of a larger model."""
    found = [name.removesuffix(EMBEDDING) for name in files if name.endswith(EMBEDDING) and not _ignored(name)]
    if len(found) != 1:
        raise ModelError(f"{folder}: expected one tensor called ...{EMBEDDING}, found {len(found)}: not a checkpoint of a decoder")
    return found[0]


def _ignored(name: str) -> bool:
    """Whether a tensor is of a part that is no decoder."""
    return name.removeprefix(COMPILED).startswith(IGNORED)


def _head_name(files: Mapping[str, str], prefix: str) -> str:
    """The head's name: next to the decoder, whose names begin with `prefix`, or at the top."""
    return next((name for name in (f"{prefix.removesuffix('model.')}{HEAD}", f"{COMPILED}{HEAD}") if name in files), HEAD)


def _names(config: ModelConfig, prefix: str, head: str) -> dict[str, str]:
    """The store's names to the checkpoint's."""
    vectors = NORMS | FOUR_NORMS if config.norms == "both" else NORMS
    found = {"embedding": f"{prefix}{EMBEDDING}", "head": head, "final_norm": f"{prefix}norm.weight"}
    for name in (*config.matrices(), *config.vectors()):
        layer, _, part = name.partition(".")
        if part:
            theirs = f"{LINEARS[part]}.weight" if part in LINEARS else vectors[part]
            found[name] = f"{prefix}layers.{layer}.{theirs}"
    wanted = {**config.matrices(), **config.vectors()}
    return {name: theirs for name, theirs in found.items() if name in wanted}
