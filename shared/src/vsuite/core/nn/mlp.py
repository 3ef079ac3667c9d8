"""The two-layer perceptron of transformer blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


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
        x = self.fc2(self._drop(self.activation(self.fc1(x))))
        return self._drop(x)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
