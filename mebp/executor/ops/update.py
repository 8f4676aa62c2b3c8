"""Updates of the adapters: SGD or AdamW right after a layer's backward, or of all at once; MeZO's perturbation and update."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mebp.errors import NotFinite
from mebp.executor.adapter import Adapter
from mebp.executor.env import Env, Io
from mebp.models.kind.update import PerturbParams, UpdateParams

CLIP_EPSILON = 1e-6


def update(io: Io) -> None:
    """Step every adapter of the layer along its gradient."""
    values = io.take("values")
    for name, index, gradient in _gradients(io):
        _step(io.env, io.env.adapters[name], index, gradient, values)


def accumulate(io: Io) -> None:
    """Add the step's share of the layer's gradients to the deferred ones."""
    for name, index, gradient in _gradients(io):
        io.env.adapters[name].deferred[index].add_(gradient, alpha=io.env.share.part)


def apply(io: Io) -> None:
    """After an update's last step: clip what is deferred by its 2-norm (as torch's clip_grad_norm_ does), step, begin again."""
    values, env, clip_norm = io.take("values"), io.env, io.params(UpdateParams).clip_norm
    if not env.share.last:
        return
    adapters = [env.adapters[name] for name in io.op.adapters]
    norm = math.hypot(*(float(torch.linalg.vector_norm(t)) for adapter in adapters for t in adapter.deferred))
    if not math.isfinite(norm):
        raise NotFinite("the norm of the gradient is not finite")
    env.gradient_norm = norm
    scale = min(1.0, clip_norm / (norm + CLIP_EPSILON)) if clip_norm else 1.0
    for adapter in adapters:
        for index, deferred in enumerate(adapter.deferred):
            _step(env, adapter, index, deferred.mul_(scale), values)
            deferred.zero_()


def _gradients(io: Io) -> list[tuple[str, int, Tensor]]:
    """Every gradient of the op's adapters: whose, of A (0) or B (1), and the tensor, shown to the callback; all of them finite."""
    found = [(name, index, io[f"{name}.{slot}"]) for name in io.op.adapters for index, slot in enumerate(("dA", "dB"))]
    for name, index, gradient in found:
        slot = f"{name}.{('dA', 'dB')[index]}"
        if io.env.on_gradient:
            io.env.on_gradient(slot, gradient)
        for extreme in torch.aminmax(gradient):
            if not math.isfinite(extreme):
                raise NotFinite(f"the gradient {slot} is not finite")
    return found


def _step(env: Env, adapter: Adapter, index: int, gradient: Tensor, values: Tensor) -> None:
    """Step one matrix of a pair: the update that comes next."""
    parameter, decay = (adapter.A, adapter.B)[index], env.rate * env.optimizer.weight_decay
    if decay:
        parameter.mul_(1 - decay)
    if adapter.states:
        _adamw(env, parameter, gradient, adapter.states[2 * index : 2 * index + 2], values)
    else:
        parameter.add_(gradient, alpha=-env.rate)


def _adamw(env: Env, parameter: Tensor, gradient: Tensor, states: list[Tensor], values: Tensor) -> None:
    """Kingma & Ba, 2015, with bias correction."""
    (first, second), (beta1, beta2), updates = states, env.optimizer.betas, env.clock.updates + 1
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = values[: parameter.numel()].view(parameter.shape)
    torch.sqrt(second, out=denominator).div_((1 - beta2**updates) ** 0.5).add_(env.optimizer.epsilon)
    parameter.addcdiv_(first, denominator, value=-env.rate / (1 - beta1**updates))


def perturb(io: Io) -> None:
    """adapter += sign x epsilon x z, with z drawn again from the step's seed each time."""
    amount = io.params(PerturbParams).sign * io.env.optimizer.perturbation
    _along_noise(io.env, io.op.adapters, amount, io.take("values"))
    io.env.displaced += amount


def mezo_update(io: Io) -> None:
    """Take the perturbation back and step along z: -lr (loss+ - loss-) / (2 epsilon) z (Malladi et al., 2023)."""
    plus, minus = (io.env.losses[io.op.reads[slot]] for slot in ("plus", "minus"))
    epsilon = io.env.optimizer.perturbation
    slope = (plus - minus) / (2 * epsilon)
    _along_noise(io.env, io.op.adapters, epsilon - io.env.rate * slope, io.take("values"))
    io.env.displaced = 0.0


def take_back(env: Env) -> None:
    """Undo the perturbation of a step that was abandoned."""
    if env.displaced:
        most = max(parameter.numel() for adapter in env.adapters.values() for parameter in _parameters(adapter))
        _along_noise(env, env.adapters, -env.displaced, torch.empty(most, device=env.device))
        env.displaced = 0.0


def _along_noise(env: Env, adapters: Iterable[str], amount: float, values: Tensor) -> None:
    generator = torch.Generator(env.device).manual_seed(env.seed * 1_000_003 + env.clock.step)
    for name in adapters:
        for parameter in _parameters(env.adapters[name]):
            noise = values[: parameter.numel()].view(parameter.shape).normal_(generator=generator)
            parameter.add_(noise, alpha=amount)


def _parameters(adapter: Adapter) -> tuple[Tensor, Tensor]:
    return adapter.A, adapter.B
