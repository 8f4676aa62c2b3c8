"""LoRA pairs as the executor trains them: fp32 matrices, what the optimizer remembers of them, and gradients that wait for an
update.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mebp.models.graph import Graph


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


def new_adapters(graph: Graph, *, seed: int = 0, device: str = "cpu") -> dict[str, Adapter]:
    """Fresh LoRA pairs as PEFT makes them: A uniform (Kaiming, a = sqrt 5), B zero, fp32; with AdamW, its states."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, (a_shape, b_shape) in graph.adapters.items():
        bound = a_shape[1] ** -0.5
        A = torch.empty(a_shape).uniform_(-bound, bound, generator=generator).to(device)
        B = torch.zeros(b_shape, device=device)
        states = [torch.zeros_like(t) for t in (A, A, B, B)] if graph.workload.optimizer_states else []
        deferred = [torch.zeros_like(t) for t in (A, B)] if graph.workload.defers_gradients else []
        adapters[name] = Adapter(A=A, B=B, states=states, deferred=deferred)
    return adapters
