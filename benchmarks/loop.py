"""The plain loop that plain_loop.py compares with, in a process of its own: python benchmarks/loop.py STORE kept|recomputed STEPS

What one would write first: autograd over each layer, every weight unpacked to bf16 in cache-sized blocks for each use, a head that
walks the vocabulary twice, no arena, no overlap. Qwen2 and Llama shapes. Prints peak anonymous bytes above the import, seconds of
each step and the loss as JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mebp.executor.measure.memory import Sampler, memory_now
from mebp.executor.rotary import rope_tables
from mebp.models.build import build_graph
from mebp.models.workload import Lora, Workload
from mebp.store.codec import unpack
from mebp.store.reader import Store, open_store

BLOCK = 1 << 20  # weights unpacked at a time
HEAD_ROWS = 1024


class Weights:
    """Frozen weights of a store, unpacked for each use."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows [start, end) in bf16."""
        frozen = self.store.matrix(name)[start:end]
        out = torch.empty(frozen.rows, frozen.cols, dtype=torch.bfloat16)
        unpack(frozen, out)
        return out

    def whole(self, name: str) -> Tensor:
        """All rows, a block after the other."""
        frozen = self.store.matrix(name)
        out = torch.empty(frozen.rows, frozen.cols, dtype=torch.bfloat16)
        block = max(16, BLOCK // frozen.cols)
        for start in range(0, frozen.rows, block):
            out[start : start + block] = self.rows(name, start, min(start + block, frozen.rows))
        return out


class Frozen(torch.autograd.Function):
    """y = x W^T with W unpacked in forward, and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Weights, name: str) -> Tensor:
        ctx.weights, ctx.name = weights, name
        return x @ weights.whole(name).T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy @ ctx.weights.whole(ctx.name), None, None


class Loop:
    """A decoder and its training step; `kept` keeps all activations, else every layer is recomputed from its input."""

    def __init__(self, store: Store, kept: bool) -> None:
        self.kept = kept
        self.store, self.weights, self.config = store, Weights(store), store.config
        workload = Workload(lora=Lora(), weights=store.formats)
        self.scale = workload.lora.scale
        graph = build_graph(self.config, workload)
        self.cos, self.sin = rope_tables(graph, torch.device("cpu"))[self.config.rope]
        self.adapters = {
            name: (torch.randn(a).mul_(0.02).requires_grad_(), torch.zeros(b).requires_grad_())
            for name, (a, b) in graph.adapters.items()
        }

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        A, B = self.adapters[f"{layer}.{name}"]
        y = Frozen.apply(x, self.weights, f"{layer}.{name}") + (x @ A.bfloat16().T @ B.bfloat16().T) * self.scale
        return y + self.store.vector(f"{layer}.{name}_bias") if name in self.config.biases else y

    def norm(self, x: Tensor, name: str) -> Tensor:
        x32 = x.float()
        r = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return (x32 * r * self.store.vector(name)).bfloat16()

    def heads(self, x: Tensor, count: int) -> Tensor:
        return x.view(-1, count, self.config.head_dim).transpose(0, 1)

    def rotate(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=2)
        return torch.cat((x1 * self.cos - x2 * self.sin, x2 * self.cos + x1 * self.sin), dim=2)

    def layer(self, x: Tensor, i: int) -> Tensor:
        c = self.config
        h = self.norm(x, f"{i}.norm1")
        q = self.rotate(self.heads(self.linear(h, i, "q"), c.num_heads))
        k = self.rotate(self.heads(self.linear(h, i, "k"), c.num_kv_heads))
        v = self.heads(self.linear(h, i, "v"), c.num_kv_heads)
        o = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
        x = x + self.linear(o.transpose(0, 1).flatten(1), i, "o")
        h = self.norm(x, f"{i}.norm2")
        return x + self.linear(F.silu(self.linear(h, i, "gate")) * self.linear(h, i, "up"), i, "down")

    def head(self, x: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Loss and dx, in two passes over the vocabulary."""
        name = "embedding" if self.config.tied else "head"
        normed = self.norm(x, "final_norm")
        y, valid, vocab = normed.detach(), labels >= 0, self.config.vocab
        total, picked = torch.full((len(x),), float("-inf")), torch.zeros(len(x))
        for start in range(0, vocab, HEAD_ROWS):
            logits = (y @ self.weights.rows(name, start, min(start + HEAD_ROWS, vocab)).T).float()
            total = torch.logaddexp(total, logits.logsumexp(1))
            inside = (labels >= start) & (labels < start + logits.shape[1])
            picked[inside] = logits[inside, labels[inside] - start]
        dx = torch.zeros_like(y, dtype=torch.float32)
        for start in range(0, vocab, HEAD_ROWS):
            weight = self.weights.rows(name, start, min(start + HEAD_ROWS, vocab))
            p = ((y @ weight.T).float() - total[:, None]).exp()
            inside = (labels >= start) & (labels < start + len(weight))
            p[inside, labels[inside] - start] -= 1
            dx += p.bfloat16() @ weight
        dx *= valid[:, None] / int(valid.sum())
        return float((total - picked)[valid].mean()), torch.autograd.grad(normed, x, dx.bfloat16())[0]

    def step(self, ids: Tensor, labels: Tensor) -> float:
        """Forward, backward, SGD."""
        x = torch.empty(len(ids), self.config.hidden, dtype=torch.bfloat16)
        unpack(self.store.matrix("embedding").each(lambda part: part[ids]), x)
        inputs = [x.requires_grad_()]
        with torch.set_grad_enabled(self.kept):
            for i in range(self.config.num_layers):
                inputs.append(self.layer(inputs[-1], i))
        last = inputs[-1] if self.kept else inputs[-1].detach().requires_grad_()
        loss, dy = self.head(last, labels)
        if self.kept:
            torch.autograd.backward(inputs[-1], dy)
        else:
            self._recompute_backward(inputs, dy)
        for pair in self.adapters.values():
            for parameter in pair:
                assert parameter.grad is not None
                parameter.data.add_(parameter.grad, alpha=-1e-4)
                parameter.grad = None
        return loss

    def _recompute_backward(self, inputs: list[Tensor], dy: Tensor) -> None:
        for i in reversed(range(self.config.num_layers)):
            inputs.pop()
            x = inputs[-1].detach().requires_grad_()
            torch.autograd.backward(self.layer(x, i), dy)
            assert x.grad is not None
            dy = x.grad


def main() -> None:
    """Run and print JSON."""
    torch.mm(torch.zeros(64, 64, dtype=torch.bfloat16), torch.zeros(64, 64, dtype=torch.bfloat16))
    baseline = memory_now()[0]
    loop = Loop(open_store(Path(sys.argv[1])), kept=sys.argv[2] == "kept")
    ids = torch.randint(0, loop.config.vocab, (256,), generator=torch.Generator().manual_seed(0))
    labels = torch.cat((ids[1:], torch.tensor([-100])))
    seconds = []
    with Sampler() as sampler:
        for _ in range(int(sys.argv[3]) + 1):
            begin = time.perf_counter()
            loss = loop.step(ids, labels)
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"peak": sampler.anonymous - baseline, "seconds": seconds[1:], "loss": loss}))


if __name__ == "__main__":
    main()
