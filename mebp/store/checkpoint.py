"""A Hugging Face checkpoint as a source of weights: a folder of safetensors with a config.json, quantised by another tool or not."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mebp.errors import ModelError
from mebp.kernel.weight import Frozen
from mebp.models.config import Family, LinearName, ModelConfig
from mebp.models.format import WeightFormat
from mebp.models.huggingface import CONFIG, read_config, read_model
from mebp.store.codec import unpack_whole
from mebp.store.packing import packing_of
from mebp.store.tensor_folder import TensorFolder

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
FUSED: dict[str, tuple[LinearName, ...]] = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}  # of Phi-3, rows one behind the other
NORMS = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
NORM_BEFORE_FFN = "pre_feedforward_layernorm"  # norm2 of families that have norms after the blocks too


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor is: rows from `first` on of the `total` that the tensor of a module has."""

    module: str
    part: str = "weight"
    first: int = 0
    total: int

    @property
    def tensor(self) -> str:
        return f"{self.module}.{self.part}"


class Checkpoint:
    """The tensors of a checkpoint under the store's names, each found, and of the shape that the config says."""

    def __init__(self, folder: Path) -> None:
        self.config = config = read_model(folder)
        self.shapes: dict[str, tuple[int, ...]] = {**config.matrices(), **{name: (n,) for name, n in config.vectors().items()}}
        self._tensors = TensorFolder(folder)
        self._packing = packing_of(read_config(folder / CONFIG), self._tensors)
        prefix = _prefix(self._tensors)
        self._places = places(config, prefix, _head_module(self._tensors, prefix))
        self._formats: dict[str, WeightFormat] = {}
        for name, place in self._places.items():
            parts = self._parts(name) or (place.tensor,)
            for part in parts:
                self._tensors.require(part, f"the checkpoint does not match its config.json ({name})")
            if len(parts) == 1:
                self._tensors.require_shape(place.tensor, (place.total, *self.shapes[name][1:]))
            else:
                assert self._packing is not None
                self._formats[name] = self._packing.format(place.module, self.shapes[name][1])
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
        place, cols = self._places[name], self.shapes[name][1]
        for rows in self._pieces(name, self._packing.rows_at_a_time):
            yield self._packing.frozen(place.module, rows, cols, self._formats[name])

    def watch(self, see: Callable[[memoryview], object]) -> None:
        """Show `see` every byte that is read."""
        self._tensors.watch(see)

    def rows(self, name: str) -> Iterator[Tensor]:
        """A tensor in floating point, some rows at a time."""
        if name in self._formats:
            yield from (unpack_whole(piece, torch.float32) for piece in self.frozen(name))
            return
        for rows in self._pieces(name, 1):
            yield self._tensors.read_floats(self._places[name].tensor, rows)

    def _pieces(self, name: str, multiple: int) -> Iterator[slice]:
        shape, first = self.shapes[name], self._places[name].first
        step = max(1, PIECE_WEIGHTS // math.prod(shape[1:]) // multiple) * multiple
        for start in range(0, shape[0], step):
            yield slice(first + start, first + min(start + step, shape[0]))

    def _parts(self, name: str) -> tuple[str, ...]:
        """The tensors of a quantised matrix."""
        quantised = self._packing is not None and len(self.shapes[name]) == 2
        return self._packing.parts(self._places[name].module) if quantised and self._packing else ()

    def _refuse_others(self) -> None:
        """Refuse a tensor that belongs to another model. Zero biases of what has none are only ballast of some tools."""
        ours = {place.tensor for place in self._places.values()} | {part for name in self._places for part in self._parts(name)}
        head = tuple(f"{HEAD}.{part}" for part in ("weight", "scales", "biases", "qweight", "qzeros", "g_idx"))
        for theirs in self._tensors.names:
            twice = self.config.tied and theirs.endswith(head)
            if theirs in ours or twice or _other_part(theirs) or theirs.endswith(("rotary_emb.inv_freq", ".g_idx")):
                continue
            if self._formats and theirs.endswith(".bias") and not self._tensors.read(theirs).any():
                continue
            folder = self._tensors.folder
            raise ModelError(f"{folder}: tensor {theirs} does not belong to a {self.config.family} model of this config.json")


def places(config: ModelConfig, prefix: str = "model.", head: str = HEAD) -> dict[str, Place]:
    """The store's names to where transformers keeps the tensors of a family."""
    d, vocab = config.hidden, config.vocab
    found = {"embedding": Place(module=f"{prefix}{EMBEDDING}", total=vocab), "head": Place(module=head, total=vocab)}
    found["final_norm"] = Place(module=f"{prefix}norm", total=d)
    norms = NORMS | ({"norm2": NORM_BEFORE_FFN} if config.norms == "both" else {})
    linears = _linears(config)
    wanted = {**config.matrices(), **{name: (length,) for name, length in config.vectors().items()}}
    for name, shape in wanted.items():
        layer, _, part = name.partition(".")
        within = f"{prefix}layers.{layer}."
        linear = next((linear for linear in linears if part in (linear, f"{linear}_bias")), None)
        if linear is not None:
            module, first, total = linears[linear]
            kind = "weight" if linear == part else "bias"
            found[name] = Place(module=within + module, part=kind, first=first, total=total)
        elif part:
            found[name] = Place(module=within + norms[part], total=shape[0])
    return {name: found[name] for name in wanted}


def _linears(config: ModelConfig) -> Mapping[LinearName, tuple[str, int, int]]:
    """The module of each linear, its first row there, and how many the module has."""
    rows = {name: shape[0] for name, shape in config.linear_shapes().items()}
    found = {name: (module, 0, rows[name]) for name, module in LINEARS.items()}
    if config.family is Family.PHI3:
        for module, parts in FUSED.items():
            first, total = 0, sum(rows[part] for part in parts)
            for part in parts:
                found[part] = (module, first, total)
                first += rows[part]
    return found


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
