"""Leaky integrate-and-fire neurons with a surrogate gradient. The time axis is the first.

    v' = v + (x[t] - v) / tau         charge
    s[t] = 1 where v' >= threshold    fire
    v = 0 where it fired, else v'     reset, through which no gradient flows

The loop over time is one operator for autograd and for `torch.compile`: it works in buffers that stay in the cache, and its
backward pass is a loop of its own, not a graph of a thousand nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError

SLOPE = 4.0  # of the sigmoid whose derivative stands for that of the step


def _run(x: Tensor, threshold: float, tau: float, potentials: Tensor | None) -> Tensor:
    """Spikes; where `potentials` is given, those before each reset are kept in it."""
    spikes = torch.empty_like(x, memory_format=torch.contiguous_format)
    v = x.new_zeros(x.shape[1:])
    change = torch.empty_like(v)
    for t, (given, fired) in enumerate(zip(x.unbind(0), spikes.unbind(0), strict=True)):
        torch.sub(given, v, out=change)
        v.add_(change, alpha=1 / tau)
        if potentials is not None:
            potentials[t] = v
        torch.ge(v, threshold, out=fired)
        v.addcmul_(v, fired, value=-1)
    return spikes


@torch.library.custom_op("vsuite::lif_spikes", mutates_args=())
def lif_spikes(x: Tensor, threshold: float, tau: float) -> Tensor:
    """Spikes of neurons that begin with v = 0, without what a gradient needs. x: T, ... -> the same shape."""
    return _run(x, threshold, tau, None)


@torch.library.custom_op("vsuite::lif", mutates_args=())
def lif(x: Tensor, threshold: float, tau: float) -> tuple[Tensor, Tensor]:
    """Spikes of neurons that begin with v = 0, and their potentials before each reset. x: T, ... -> twice the same shape."""
    potentials = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _run(x, threshold, tau, potentials), potentials


@torch.library.custom_op("vsuite::lif_backward", mutates_args=())
def lif_backward(gradient: Tensor, potentials: Tensor, threshold: float, tau: float) -> Tensor:
    """The gradient of x from that of the spikes, back through time."""
    found = torch.empty_like(potentials)
    total = torch.zeros_like(potentials[0])
    rising, silent = torch.empty_like(total), torch.empty_like(total)
    for t in reversed(range(len(potentials))):
        torch.lt(potentials[t], threshold, out=silent)
        total.mul_(silent).mul_(1 - 1 / tau)
        torch.sub(potentials[t], threshold, out=rising).mul_(SLOPE).sigmoid_()
        total.add_(torch.ops.aten.sigmoid_backward(gradient[t], rising), alpha=SLOPE)
        torch.mul(total, 1 / tau, out=found[t])
    return found


@lif_spikes.register_fake
def _(x: Tensor, threshold: float, tau: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@lif.register_fake
def _(x: Tensor, threshold: float, tau: float) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))  # type: ignore[return-value]


@lif_backward.register_fake
def _(gradient: Tensor, potentials: Tensor, threshold: float, tau: float) -> Tensor:
    return torch.empty_like(potentials)


def _save(ctx: Any, inputs: tuple[Tensor, float, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    _, ctx.threshold, ctx.tau = inputs


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    (potentials,) = ctx.saved_tensors
    return lif_backward(gradient, potentials, ctx.threshold, ctx.tau), None, None


lif.register_autograd(_backward, setup_context=_save)


class LIF(nn.Module):
    """Neurons without learnt parameters. Every call starts from v = 0, so nothing is carried from one batch to the next.

    Args:
        threshold: above 0.
        tau: time constant in samples, 1 or more.
    """

    def __init__(self, threshold: float = 1.0, tau: float = 2.0) -> None:
        super().__init__()
        if threshold <= 0 or tau < 1:
            raise InputError(f"a neuron's threshold must be above 0 and its tau 1 or more; got {threshold:g} and {tau:g}")
        self.threshold = threshold
        self.tau = tau

    def forward(self, x: Tensor) -> Tensor:
        """x: T, ... -> spikes, 0 or 1, of the same shape and type. Potentials are float32 or better, also under autocast."""
        given = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        if torch.compiler.is_exporting():
            return self._scan(given).to(x.dtype)
        if torch.is_grad_enabled() and given.requires_grad:
            return lif(given, self.threshold, self.tau)[0].to(x.dtype)
        return lif_spikes(given, self.threshold, self.tau).to(x.dtype)

    def step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """One sample. x and the potentials before, of any shape (None: all 0) -> spikes, the potentials after."""
        charged = x / self.tau if v is None else v + (x - v) / self.tau
        fired = charged >= self.threshold
        return fired.to(x.dtype), charged.masked_fill(fired, 0)

    def _scan(self, x: Tensor) -> Tensor:
        """The same as an operator that ONNX has."""
        from torch._higher_order_ops.scan import scan

        def step(v: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
            charged = v + (given - v) / self.tau
            fired = (charged >= self.threshold).to(v.dtype)
            return charged * (1 - fired), fired

        return scan(step, torch.zeros_like(x[0]), x, dim=0)[1]

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}, tau={self.tau:g}"
