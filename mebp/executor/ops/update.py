"""Updates of the adapters: SGD or AdamW right after a layer's backward, or of all at once; MeZO's perturbation and update."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mebp.executor.env import Adapter, Env, Io

BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8
CLIP_EPSILON = 1e-6


def update(io: Io) -> None:
    """Step every adapter of the layer along its gradient (no weight decay: adapters start at zero effect)."""
    scratch = io.take(io.dims.cols, dtype=torch.float32)
    for name, index, gradient in _gradients(io):
        _step(io.env, io.env.adapters[name], index, gradient, scratch)


def accumulate(io: Io) -> None:
    """Add the layer's gradients to those that are held: their mean over the steps until the next update."""
    for name, index, gradient in _gradients(io):
        io.env.adapters[name].held[index].add_(gradient, alpha=1 / io.env.graph.workload.accumulate)


def apply(io: Io) -> None:
    """After every `accumulate` steps: clip what is held by its 2-norm (as torch's clip_grad_norm_ does), step, begin again."""
    scratch = io.take(io.dims.cols, dtype=torch.float32)
    workload = io.env.graph.workload
    if (io.env.step + 1) % workload.accumulate:
        return
    adapters = [io.env.adapters[name] for name in io.op.adapters]
    if workload.clip_norm:
        norm = math.hypot(*(float(torch.linalg.vector_norm(held)) for adapter in adapters for held in adapter.held))
        scale = min(1.0, workload.clip_norm / (norm + CLIP_EPSILON))
    else:
        scale = 1.0
    for adapter in adapters:
        for index, held in enumerate(adapter.held):
            _step(io.env, adapter, index, held.mul_(scale), scratch)
            held.zero_()


def _gradients(io: Io) -> Iterator[tuple[str, int, Tensor]]:
    """Every gradient of the op's adapters: whose, of A (0) or B (1), and the tensor, shown to who asked for it."""
    for name in io.op.adapters:
        linear = name.partition(".")[2]
        for index, slot in enumerate(("dA", "dB")):
            gradient = io[f"{linear}.{slot}"]
            if io.env.on_gradient:
                io.env.on_gradient(f"{name}.{slot}", gradient)
            yield name, index, gradient


def _step(env: Env, adapter: Adapter, index: int, gradient: Tensor, scratch: Tensor) -> None:
    parameter = (adapter.A, adapter.B)[index]
    if adapter.states:
        _adamw(env, parameter, gradient, adapter.states[2 * index : 2 * index + 2], scratch)
    else:
        parameter.add_(gradient, alpha=-env.learning_rate)


def _adamw(env: Env, parameter: Tensor, gradient: Tensor, states: list[Tensor], scratch: Tensor) -> None:
    """Kingma & Ba, 2015, with bias correction."""
    first, second = states
    step = (env.step + 1) // env.graph.workload.accumulate
    first.lerp_(gradient, 1 - BETA1)
    second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    denominator = scratch[: parameter.numel()].view(parameter.shape)
    torch.sqrt(second, out=denominator).div_((1 - BETA2**step) ** 0.5).add_(ADAM_EPSILON)
    parameter.addcdiv_(first, denominator, value=-env.learning_rate / (1 - BETA1**step))


def perturb(io: Io) -> None:
    """adapter += sign x epsilon x z, with z drawn again from the step's seed each time."""
    _along_noise(io, io.op.sign * io.env.epsilon)


def mezo_update(io: Io) -> None:
    """Take the perturbation back and step along z: -lr (loss+ - loss-) / (2 epsilon) z (Malladi et al., 2023)."""
    losses = io.env.losses
    slope = (losses["+"] - losses["-"]) / (2 * io.env.epsilon)
    losses[""] = (losses["+"] + losses["-"]) / 2
    losses["slope"] = slope
    _along_noise(io, io.env.epsilon - io.env.learning_rate * slope)


def _along_noise(io: Io, amount: float) -> None:
    scratch = io.take(io.dims.cols, dtype=torch.float32)
    generator = torch.Generator(io.env.device).manual_seed(io.env.seed * 1_000_003 + io.env.step)
    for name in io.op.adapters:
        for parameter in _parameters(io.env.adapters[name]):
            noise = scratch[: parameter.numel()].view(parameter.shape).normal_(generator=generator)
            parameter.add_(noise, alpha=amount)


def _parameters(adapter: Adapter) -> tuple[Tensor, Tensor]:
    return adapter.A, adapter.B
