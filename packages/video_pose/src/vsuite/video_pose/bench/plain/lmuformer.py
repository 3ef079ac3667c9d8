"""The plain form of LMUFormer: the memory by its recurrence, neurons as a loop of expressions, spiking attention as T x T scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vsuite.video_pose.models.lmuformer import LIF, LMUCell, LMUFormer, PermutedMNIST, SpikingLMUCell
from vsuite.video_pose.models.lmuformer.layers import SpikingAttention, pointwise
from vsuite.video_pose.models.lmuformer.memory import normalise


def plain_memory(cell: LMUCell, u: Tensor) -> Tensor:
    """u: T, B -> m: T, B, d."""
    m = u.new_zeros(u.shape[1], cell.memory_size)
    found = []
    for now in u.unbind(0):
        m = m @ cell.A.t() + now[:, None] @ cell.B.t()
        found.append(m)
    return torch.stack(found)


def plain_neurons(x: Tensor, threshold: float, tau: float) -> Tensor:
    """x: T, ... -> spikes."""
    v = torch.zeros_like(x[0])
    found = []
    for now in x.unbind(0):
        v = v + (now - v) / tau
        fired = (v - threshold >= 0).to(x.dtype)
        v = (1 - fired) * v
        found.append(fired)
    return torch.stack(found)


def _cell(self: LMUCell, x: Tensor) -> Tensor:
    m = plain_memory(self, torch.relu(self.W_u(x)).squeeze(-1))
    return torch.relu(self.W_h(torch.cat([m, x], -1)))


def _spiking_cell(self: SpikingLMUCell, x: Tensor) -> Tensor:
    m = plain_memory(self, self.f_u(normalise(self.bn_u, self.W_u(x))).squeeze(-1))
    m = self.f_m(normalise(self.bn_m, m))
    return self.f_h(normalise(self.bn_h, self.W_h(torch.cat([m, x], -1))))


def _neurons(self: LIF, x: Tensor) -> Tensor:
    return plain_neurons(x, self.threshold, self.tau)


def _attention(self: SpikingAttention, x: Tensor) -> Tensor:
    x = self.lif(normalise(self.pre_bn, x))
    q, k, v = (self._spikes(name, x) for name in "qkv")
    seen = (q @ k.transpose(-2, -1)) @ v * 0.25
    spikes = self.attn_lif(seen.permute(2, 0, 1, 3).flatten(2)).to(x.dtype)
    return normalise(self.proj_bn, pointwise(self.proj_conv, spikes))


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model: nn.Module = PermutedMNIST(**options) if "hidden_size" in options else LMUFormer(**options)
    forwards: dict[type, Any] = {LMUCell: _cell, SpikingLMUCell: _spiking_cell, LIF: _neurons, SpikingAttention: _attention}
    for module in model.modules():
        if type(module) in forwards:
            module.forward = forwards[type(module)].__get__(module)
    return model
