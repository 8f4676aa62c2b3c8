"""LoRA pairs as the executor trains them: fp32 matrices, what the optimizer remembers of them, and gradients that wait for an
update.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mebp.errors import InputError
from mebp.executor.mapped import map_unlinked
from mebp.models.graph import Graph
from mebp.models.tensor import FLOAT_BYTES


@dataclass(slots=True, kw_only=True)
class Adapter:
    """One LoRA pair in fp32: A (rank, in), B (out, rank); `states` are the optimizer's, two per matrix, or none; `deferred` are the
    gradients of A and B that wait for an update, or none.
    """

    A: Tensor
    B: Tensor
    states: list[Tensor] = field(default_factory=list)
    deferred: list[Tensor] = field(default_factory=list)

    def copy_to(self, device: str | torch.device) -> "Adapter":
        """The same pair on a device, sharing nothing with this one."""
        states, deferred = ([t.to(device, copy=True) for t in tensors] for tensors in (self.states, self.deferred))
        return Adapter(A=self.A.to(device, copy=True), B=self.B.to(device, copy=True), states=states, deferred=deferred)


def new_adapters(graph: Graph, *, seed: int = 0, device: str = "cpu", spill_dir: Path | None = None) -> dict[str, Adapter]:
    """Fresh LoRA pairs as PEFT makes them: A uniform (Kaiming, a = sqrt 5), B zero, fp32; with AdamW, its states, where the
    workload says so in a mapped file in `spill_dir`.
    """
    generator = torch.Generator().manual_seed(seed)
    workload, adapters = graph.workload, {}
    states = _states(graph, device, spill_dir) if workload.optimizer_states else iter(())
    for name, (a_shape, b_shape) in graph.adapters.items():
        bound = a_shape[1] ** -0.5
        A = torch.empty(a_shape).uniform_(-bound, bound, generator=generator).to(device)
        B = torch.zeros(b_shape, device=device)
        own = [next(states).view(t.shape) for t in (A, A, B, B)] if workload.optimizer_states else []
        deferred = [torch.zeros_like(t) for t in (A, B)] if workload.defers_gradients else []
        adapters[name] = Adapter(A=A, B=B, states=own, deferred=deferred)
    return adapters


def _states(graph: Graph, device: str, spill_dir: Path | None) -> Iterator[Tensor]:
    """Zeros for the optimizer, two for each matrix, in the order of the adapters."""
    sizes = [rows * cols for shapes in graph.adapters.values() for rows, cols in shapes for _ in range(2)]
    if not graph.workload.states_in_file:
        yield from (torch.zeros(size, device=device) for size in sizes)
        return
    if device != "cpu":
        raise InputError(f"`states_in_file` is for the processor's memory, not for {device}: leave it out")
    mapped = torch.frombuffer(map_unlinked(sum(sizes) * FLOAT_BYTES, spill_dir, "the optimizer state"), dtype=torch.float32)
    yield from torch.split(mapped, sizes)
