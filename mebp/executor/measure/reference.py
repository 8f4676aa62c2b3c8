"""Plain autograd on the same decompressed weights: the loss and gradients that a plan must reproduce.

Written as a textbook decoder, one checkpointed layer at a time, sharing no op with the executor. Tests compare it, and the
executor, with transformers + PEFT; `compare_gradients` compares a plan with it on the model at hand.
"""

from dataclasses import replace
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mebp.executor.adapter import Adapter, new_adapters
from mebp.executor.env import dtype_of
from mebp.executor.executor import Executor, next_tokens
from mebp.executor.measure.job import GRADIENT_ERROR, GradientCheck, Job
from mebp.executor.rotary import rope_tables
from mebp.models.config import LinearName, ModelConfig
from mebp.models.graph import Graph
from mebp.models.optimizer import Optimizer
from mebp.plan import Plan
from mebp.store.codec import unpack_whole
from mebp.store.reader import Store


def compare_gradients(plan: Plan, graph: Graph, store: Store, batch: tuple[Tensor, Tensor], job: Job) -> GradientCheck:
    """Run one step of `plan` with random adapters on ids and labels, and compare every adapter gradient with autograd's, in the
    plan's precision.
    """
    adapters = new_adapters(graph, seed=job.seed)
    generator = torch.Generator().manual_seed(job.seed + 1)
    for adapter in adapters.values():
        adapter.B.normal_(std=0.02, generator=generator)
    _, expected = reference_gradients(graph, store, adapters, *batch)
    ours: dict[str, Tensor] = {}
    moved = {name: adapter.copy_to(job.device) for name, adapter in adapters.items()}
    executor = Executor(plan, graph, store, moved, device=job.device, spill_dir=job.spill_dir, optimizer=Optimizer(rate=0.0))
    executor.step(*batch, on_gradient=lambda name, gradient: ours.update({name: gradient.cpu().clone()}))
    errors = {name: _relative_error(ours[name], gradient) for name, gradient in expected.items()}
    flat, flat_expected = (torch.cat([found[name].flatten() for name in expected]).double() for found in (ours, expected))
    doubtful = [name for name, error in errors.items() if error > GRADIENT_ERROR] if graph.workload.precision == "fp32" else []
    return GradientCheck(
        max_relative_error=max(errors.values()),
        cosine=float(F.cosine_similarity(flat, flat_expected, dim=0)),
        times_reference=_times_reference(graph, store, adapters, batch, ours, expected, doubtful) if doubtful else None,
    )


def _times_reference(
    graph: Graph,
    store: Store,
    adapters: dict[str, Adapter],
    batch: tuple[Tensor, Tensor],
    ours: dict[str, Tensor],
    expected: dict[str, Tensor],
    doubtful: list[str],
) -> float:
    """How many times as far from autograd in double precision ours is as autograd in single precision: relative errors of the
    doubtful gradients, root mean square. One gradient's rounding may be several times another's; one that is wrong outweighs them.
    """
    _, exact = reference_gradients(graph, store, adapters, *batch, torch.float64)
    own, theirs = (sum(_relative_error(found[name].double(), exact[name]) ** 2 for name in doubtful) for found in (ours, expected))
    return sqrt(own / max(theirs, torch.finfo(torch.float32).tiny))


def _relative_error(ours: Tensor, expected: Tensor) -> float:
    """In the 2-norm; where nothing is expected (a lone token's q and k), none if there is nothing."""
    return float((ours - expected).norm()) / max(float(expected.norm()), torch.finfo(torch.float32).tiny)


def reference_gradients(
    graph: Graph,
    store: Store,
    adapters: dict[str, Adapter],
    ids: Tensor,
    labels: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Loss and the gradient of every adapter (`3.q.dA`), by autograd, in `dtype` (default: the graph's). ids and labels (batch,
    seq); labels default to the ids.
    """
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    leaves = {
        name: (adapter.A.to(wide, copy=True).requires_grad_(), adapter.B.to(wide, copy=True).requires_grad_())
        for name, adapter in adapters.items()
    }
    decoder = _Decoder(graph, store, leaves, dtype or dtype_of(graph), wide)
    loss = decoder.loss(ids, ids if labels is None else labels)
    loss.backward()  # type: ignore[no-untyped-call]
    found: dict[str, Tensor] = {}
    for name, (A, B) in leaves.items():
        assert A.grad is not None
        assert B.grad is not None
        found |= {f"{name}.dA": A.grad, f"{name}.dB": B.grad}
    return float(loss.detach()), found


def _capped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap) if cap else x


class _Decoder:
    """`dtype` is that of weights and activations, `wide` that of sums."""

    def __init__(
        self, graph: Graph, store: Store, leaves: dict[str, tuple[Tensor, Tensor]], dtype: torch.dtype, wide: torch.dtype
    ) -> None:
        self.config: ModelConfig = graph.config
        self.workload = graph.workload
        self.store = store
        self.leaves = leaves
        self.dtype = dtype
        self.wide = wide
        tables = rope_tables(graph, torch.device("cpu"))
        self.tables = {rope: (cos.to(dtype), sin.to(dtype)) for rope, (cos, sin) in tables.items()}

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        c = self.config
        x = F.embedding(ids, self.matrix("embedding")) * c.embedding_scale  # (B, T, d)
        for layer in range(c.num_layers):
            x = checkpoint(self.layer, x, layer, use_reentrant=False)
        logits = F.linear(self.norm(x, "final_norm"), self.matrix("embedding" if c.tied else "head")).to(self.wide)
        logits = _capped(logits * c.logit_scale, c.logit_cap)
        return F.cross_entropy(logits.flatten(0, 1), next_tokens(labels).flatten(), ignore_index=-100)

    def layer(self, x: Tensor, layer: int) -> Tensor:
        c = self.config
        before, after = c.norms != "after", c.norms != "before"
        attended = self.attention(self.norm(x, f"{layer}.norm1") if before else x, layer)
        attended = self.linear(attended, layer, "o")
        x = x + (self.norm(attended, f"{layer}.post_attention_norm") if after else attended) * c.residual_scale
        normed = self.norm(x, f"{layer}.norm2") if before else x
        gate = self.linear(normed, layer, "gate")
        act = F.silu(gate) if c.activation == "silu" else F.gelu(gate, approximate="tanh")
        out = self.linear(act * self.linear(normed, layer, "up"), layer, "down")
        return x + (self.norm(out, f"{layer}.post_ffn_norm") if after else out) * c.residual_scale

    def attention(self, x: Tensor, layer: int) -> Tensor:
        c = self.config
        q = self.rotate(self.heads(x, layer, "q", c.num_heads), layer, "q")
        k = self.rotate(self.heads(x, layer, "k", c.num_kv_heads), layer, "k")
        v = self.heads(x, layer, "v", c.num_kv_heads)
        group = c.num_heads // c.num_kv_heads
        k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))  # (B, H, T, D)
        scores = _capped((q @ k.transpose(2, 3)).to(self.wide) * c.attention_scale, c.attention_cap)
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])[None]
        hidden = distance < 0
        if c.windows[layer]:
            hidden = hidden | (distance >= c.windows[layer])
        p = scores.masked_fill(hidden, float("-inf")).softmax(dim=3).to(self.dtype)
        return (p @ v).transpose(1, 2).flatten(2)  # (B, T, H x D)

    def heads(self, x: Tensor, layer: int, name: LinearName, count: int) -> Tensor:
        y = self.linear(x, layer, name)
        width = self.config.qk_norm_width(name) if name != "v" else 0
        if width:
            y = self.norm(y.view(*x.shape[:2], -1, width), f"{layer}.{name}_norm")
        return y.view(*x.shape[:2], count, self.config.head_dim).transpose(1, 2)  # (B, heads, T, D)

    def rotate(self, x: Tensor, layer: int, name: LinearName) -> Tensor:
        rope = self.config.rope_of(layer)
        if rope is None:
            return x
        cos, sin = self.tables[rope if name == "q" else replace(rope, query_growth=0.0)]
        x1, x2, rest = x.tensor_split((cos.shape[1], 2 * cos.shape[1]), dim=3)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=3)

    def linear(self, x: Tensor, layer: int, name: LinearName) -> Tensor:
        y = F.linear(x, self.matrix(f"{layer}.{name}"))
        if name in self.config.biases:
            y = y + self.store.vector(f"{layer}.{name}_bias").to(self.dtype)
        if f"{layer}.{name}" in self.leaves:
            A, B = (leaf.to(self.dtype) for leaf in self.leaves[f"{layer}.{name}"])
            y = y + F.linear(F.linear(x, A), B) * self.workload.lora.scale
        return y

    def norm(self, x: Tensor, name: str) -> Tensor:
        x_wide = x.to(self.wide)
        normed = x_wide * torch.rsqrt(x_wide.pow(2).mean(dim=-1, keepdim=True) + self.config.norm_eps)
        return (normed * (self.store.vector(name).to(self.wide) + self.config.norm_offset)).to(self.dtype)

    def matrix(self, name: str) -> Tensor:
        return unpack_whole(self.store.matrix(name), self.dtype)
