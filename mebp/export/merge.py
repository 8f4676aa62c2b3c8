"""Adapters merged into their model: a checkpoint in transformers' form, written some rows of one matrix at a time."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mebp.errors import InputError
from mebp.export.folder import new_folder
from mebp.export.lora_set import LoraSet
from mebp.models.huggingface import CONFIG
from mebp.store.checkpoint import checkpoint_locations
from mebp.store.compress import Source
from mebp.store.reader import DTYPES, bytes_of
from mebp.store.tensor_folder import INDEX_FILE, SINGLE_FILE
from mebp.store.writer import reserve

SHARD_BYTES = 4 << 30  # of one file
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.float32: "F32"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A tensor of the merged checkpoint, made of a store's tensors one below the other."""

    name: str
    parts: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def merge(source: Source, adapters: LoraSet, target: Path, progress: Progress | None = None) -> Path:
    """Write the weights of `source` plus alpha / rank B A as a new folder, each sum in single precision, rounded once to the type
    that the source has it in (bf16 where it is quantised). InputError or StoreError where the folder cannot be written.
    """
    tensors = _tensors(source)
    total, done = sum(prod(tensor.shape) for tensor in tensors), 0
    with new_folder(target) as folder:
        config = json.dumps(dict(source.hf_config()), indent=2, ensure_ascii=False)
        for name, text in {**source.tokenizer(), CONFIG: config}.items():
            (folder / name).write_text(text, encoding="utf-8")
        shards = _shards(tensors)
        for name, shard in shards.items():
            for rows in _write(folder / name, shard, source, adapters):
                done += rows
                if progress:
                    progress(done, total)
        if len(shards) > 1:
            files = {tensor.name: name for name, shard in shards.items() for tensor in shard}
            index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": files}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return target


def _tensors(source: Source) -> list[_Written]:
    config, by_tensor = source.config, dict[str, list[str]]()
    locations = checkpoint_locations(config)
    for name, location in locations.items():
        by_tensor.setdefault(location.tensor, []).append(name)
    shapes = config.shapes()
    found = []
    for tensor, names in by_tensor.items():
        ordered = tuple(sorted(names, key=lambda name: locations[name].first))
        shape = (locations[names[0]].total, *shapes[names[0]][1:])
        found.append(_Written(name=tensor, parts=ordered, dtype=source.float_type(names[0]), shape=shape))
    return found


def _shards(tensors: list[_Written]) -> dict[str, list[_Written]]:
    """Files by name, each with its tensors."""
    groups: list[list[_Written]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(other.nbytes for other in groups[-1]) + tensor.nbytes > SHARD_BYTES:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{at:05d}-of-{len(groups):05d}.safetensors": group for at, group in enumerate(groups, 1)}


def _write(path: Path, tensors: list[_Written], source: Source, adapters: LoraSet) -> Iterator[int]:
    """One safetensors file; yields the number of weights in each piece written."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        entries[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        reserve(file.fileno(), 8 + len(text) + end)
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for part in tensor.parts:
                for rows in _merged(source, part, adapters, tensor.dtype):
                    file.write(bytes_of(rows))
                    yield rows.numel()
        file.flush()
        os.fsync(file.fileno())


def _merged(source: Source, name: str, adapters: LoraSet, dtype: torch.dtype) -> Iterator[Tensor]:
    start = 0
    for rows in source.rows(name):
        delta = adapters.delta(name, slice(start, start + len(rows)))
        made = rows.to(dtype) if delta is None else delta.add_(rows.float()).to(dtype)
        if not bool(torch.isfinite(made).all()):
            raise InputError(f"{name} with its adapter is too large for {dtype}: the adapter did not converge")
        yield made
        start += len(rows)
