"""A Hugging Face checkpoint as a source of weights: safetensors with a config.json, quantised by another tool or not."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mebp.errors import ModelError
from mebp.kernel.weight import Frozen
from mebp.models.config import Family, LinearName, ModelConfig
from mebp.models.format import WeightFormat
from mebp.models.huggingface import CONFIG, plain_config, read_config, read_model
from mebp.store.codec import unpack_whole
from mebp.store.location import Location, locations
from mebp.store.packing import packing_of
from mebp.store.tensor_folder import TensorFolder
from mebp.store.tokenizer import Files, of_folder

EMBEDDING, HEAD = "embed_tokens", "lm_head"
COMPILED = "_orig_mod."  # before every name where torch.compile wrapped the model that was saved
OTHER_PARTS = tuple(  # of a larger model, which are no decoder's
    f"{prefix}{part}."
    for part in ("vision_tower", "multi_modal_projector", "visual", "vision_model", "audio_tower")
    for prefix in ("", "model.")
)
PIECE_WEIGHTS = 1 << 21  # weights read at a time
LINEARS: dict[LinearName, str] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
FUSED: dict[str, tuple[LinearName, ...]] = {
    "self_attn.qkv_proj": ("q", "k", "v"),
    "mlp.gate_up_proj": ("gate", "up"),
}  # of Phi-3, rows one behind the other
NORMS = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
NORM_BEFORE_FFN = "pre_feedforward_layernorm"  # norm2 of families that have norms after the blocks too


class Checkpoint:
    """The tensors of a checkpoint under the store's names, each found, and of the shape that the config says."""

    def __init__(self, folder: Path) -> None:
        self.config = config = read_model(folder)
        self.shapes = config.shapes()
        packing = packing_of(read_config(folder / CONFIG), folder)
        self._tensors = TensorFolder(folder)
        self._packing = None if packing is None else packing(self._tensors)
        prefix = _prefix(self._tensors)
        self._locations = checkpoint_locations(config, prefix, _head_module(self._tensors, prefix))
        self._formats: dict[str, WeightFormat] = {}
        for name, location in self._locations.items():
            parts = self._parts(name) or (location.tensor,)
            for part in parts:
                self._tensors.require(part, f"the checkpoint does not match its config.json ({name})")
            if len(parts) == 1:
                self._tensors.require_shape(location.tensor, (location.total, *self.shapes[name][1:]))
            else:
                assert self._packing is not None
                self._formats[name] = self._packing.format(location.module, location.total, self.shapes[name][1])
        self._refuse_others()

    def stored(self, name: str) -> WeightFormat | None:
        """The format that a matrix is in already; None where it has to be quantised."""
        return self._formats.get(name)

    def type_name(self, name: str) -> str | None:
        """What quantised a matrix; None where it is not quantised."""
        return self._packing.name if self._packing is not None and name in self._formats else None

    def frozen(self, name: str) -> Iterator[Frozen]:
        """A matrix as it is stored, some rows at a time."""
        assert self._packing is not None
        location, cols = self._locations[name], self.shapes[name][1]
        for rows in self._pieces(name, self._packing.rows_at_a_time):
            yield self._packing.frozen(location.module, rows, cols, self._formats[name])

    def tokenizer(self) -> Files:
        """The files of the tokenizer in the folder."""
        return of_folder(self._tensors.folder)

    def float_type(self, name: str) -> torch.dtype:
        """The type of a tensor that is not quantised; bf16 of one that is."""
        if name in self._formats:
            return torch.bfloat16
        return self._tensors.float_type(self._locations[name].tensor)

    def hf_config(self) -> Mapping[str, object]:
        """A config.json of the same decoder, not quantised."""
        return plain_config(read_config(self._tensors.folder / CONFIG), self.config)

    def watch(self, see: Callable[[memoryview], object]) -> None:
        """Show `see` every byte that is read."""
        self._tensors.watch(see)

    def rows(self, name: str) -> Iterator[Tensor]:
        """A tensor in floating point, some rows at a time."""
        if name in self._formats:
            yield from (unpack_whole(piece, torch.float32) for piece in self.frozen(name))
            return
        for rows in self._pieces(name, 1):
            yield self._tensors.read_floats(self._locations[name].tensor, rows)

    def _pieces(self, name: str, multiple: int) -> Iterator[slice]:
        shape, first = self.shapes[name], self._locations[name].first
        step = max(1, PIECE_WEIGHTS // math.prod(shape[1:]) // multiple) * multiple
        for start in range(0, shape[0], step):
            yield slice(first + start, first + min(start + step, shape[0]))

    def _parts(self, name: str) -> tuple[str, ...]:
        """The tensors of a quantised matrix."""
        quantised = self._packing is not None and len(self.shapes[name]) == 2
        return self._packing.parts(self._locations[name].module) if quantised and self._packing else ()

    def _refuse_others(self) -> None:
        """Refuse a tensor that belongs to another model. Zero biases of what has none are only ballast of some tools."""
        ours = {location.tensor for location in self._locations.values()}
        ours |= {part for name in self._locations for part in self._parts(name)}
        head = tuple(f"{HEAD}.{part}" for part in ("weight", "scales", "biases", "qweight", "qzeros", "g_idx"))
        for theirs in self._tensors.names:
            twice = self.config.tied and theirs.endswith(head)
            if theirs in ours or twice or _other_part(theirs) or theirs.endswith(("rotary_emb.inv_freq", ".g_idx")):
                continue
            if self._formats and theirs.endswith(".bias") and not self._tensors.read(theirs).any():
                continue
            folder = self._tensors.folder
            raise ModelError(f"{folder}: tensor {theirs} does not belong to a {self.config.family} model of this config.json")


def checkpoint_locations(config: ModelConfig, prefix: str = "model.", head: str = HEAD) -> dict[str, Location]:
    """The store's names to where transformers keeps the tensors of a family."""
    outer = {"embedding": f"{prefix}{EMBEDDING}", "head": head, "final_norm": f"{prefix}norm"}
    norms = NORMS | ({"norm2": NORM_BEFORE_FFN} if config.norms == "both" else {})
    return locations(config, outer, f"{prefix}layers.{{}}.", LINEARS, norms, FUSED if config.family is Family.PHI3 else {})


def _prefix(tensors: TensorFolder) -> str:
    """What stands before a decoder's tensor names: `model.`, or more where the decoder is part of a larger model."""
    whole = f"{EMBEDDING}.weight"
    found = [name.removesuffix(whole) for name in tensors.names if name.endswith(whole) and not _other_part(name)]
    if len(found) != 1:
        raise ModelError(
            f"{tensors.folder}: expected one tensor called ...{whole}, found {len(found)}: not a checkpoint of a decoder"
        )
    return found[0]


def _other_part(name: str) -> bool:
    """Whether a tensor is of a part that is no decoder."""
    return name.removeprefix(COMPILED).startswith(OTHER_PARTS)


def _head_module(tensors: TensorFolder, prefix: str) -> str:
    """The head's name: next to the decoder, whose names begin with `prefix`, or at the top."""
    inner = prefix.removesuffix("model.").removesuffix("language_model.")
    candidates = (f"{prefix.removesuffix('model.')}{HEAD}", f"{inner}{HEAD}", f"{COMPILED}{HEAD}")
    present = set(tensors.names)
    return next((name for name in candidates if {f"{name}.weight", f"{name}.qweight"} & present), HEAD)
