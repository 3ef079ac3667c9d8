"""The two-layer perceptron of transformer blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 512  # rows; of 96 to 256 channels, the fastest of 256 to 2048
WIDEST = 1024  # hidden channels


def perceptron(x: Tensor, fc1: nn.Module, fc2: nn.Module, activation: Callable[[Tensor], Tensor] = F.gelu) -> Tensor:
    """fc2(activation(fc1(x))); inference on a CPU goes through many narrow rows piece by piece.

    So the wide hidden rows stay in the cache and their memory is used again: tens of megabytes at a time would be mapped
    afresh by each call, which takes as long as computing them. Wide layers gain nothing, as their weights fill the cache.

    Args:
        x: ..., C.
        fc1, fc2: act on the last axis. Anything but `nn.Linear` is called once, with all of x.
    """
    if not _in_pieces(x, fc1, fc2):
        return fc2(activation(fc1(x)))
    pieces = x.flatten(0, -2).split(PIECE)
    return torch.cat([fc2(activation(fc1(piece))) for piece in pieces]).unflatten(0, x.shape[:-1])


def may_go_in_pieces(x: Tensor) -> bool:
    """Whether work on `x` may be cut for the sake of the cache: at inference on a CPU, and not while a graph is made."""
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def _in_pieces(x: Tensor, fc1: nn.Module, fc2: nn.Module) -> bool:
    if not may_go_in_pieces(x):
        return False
    narrow = isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear) and fc1.out_features <= WIDEST
    return narrow and x.numel() >= 4 * PIECE * x.shape[-1]


class Mlp(nn.Module):
    """Linear, activation, linear on the last axis.

    Args:
        dim: width of input and output.
        hidden_dim: width between.
        activation: applied between; exact GELU by default.
        dropout: after the activation and after the second layer, in [0, 1).
    """

    def __init__(self, dim: int, hidden_dim: int, activation: Callable[[Tensor], Tensor] = F.gelu, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = activation
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: ..., dim -> ..., dim."""
        return self._drop(perceptron(x, self.fc1, self.fc2, lambda hidden: self._drop(self.activation(hidden))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
