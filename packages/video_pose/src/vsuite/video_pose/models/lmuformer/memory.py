"""The Legendre Memory Unit: a fixed linear state space that keeps a sliding window of one signal (Voelker et al., 2019).

    u[t] = relu(W_u x[t])              one number a sample
    m[t] = A m[t-1] + B u[t]           the memory: the last `theta` samples of u in Legendre polynomials
    h[t] = relu(W_h [m[t] ; x[t]])

No h returns into the loop, so all m follow from all u by a convolution with the impulse response H[:, t] = A^t B: that is
the parallel form. The stream steps through the recurrence. Samples are T, B, C here: time first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import fold_batch_norm, memoise
from vsuite.video_pose.models.lmuformer.spiking import LIF
from vsuite.video_pose.models.lmuformer.streaming import Fire, Stage

# Up to this length a product with the Toeplitz matrix of the input beats the Fourier transform (measured on one CPU core).
LONGEST_MATRIX = 512


@memoise
def state_space(memory_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """A (d, d) and B (d, 1) of the memory for one sample a step: zero-order hold, computed in float64, returned in float32.

    Args:
        memory_size: d, the number of Legendre polynomials.
        theta: length of the window in samples.
    """
    order = torch.arange(memory_size, dtype=torch.float64, device="cpu")
    scale = (2 * order + 1)[:, None] / theta
    sign = 1 - 2 * (order % 2)  # (-1) ** i
    a = scale * torch.where(order[:, None] < order, -1.0, -sign[:, None] * sign)
    block = torch.zeros(memory_size + 1, memory_size + 1, dtype=torch.float64, device="cpu")
    block[:-1] = torch.cat([a, scale * sign[:, None]], 1)
    discrete = torch.linalg.matrix_exp(block)[:-1]
    return discrete[:, :-1].float(), discrete[:, -1:].float()


@memoise
def _published_impulse(memory_size: int, theta: float, length: int) -> Tensor:
    return impulse_response(*state_space(memory_size, theta), length)


def impulse_response(a: Tensor, b: Tensor, length: int) -> Tensor:
    """H (d, length): column t is A^t B. Powers are multiplied, never taken by eigenvalues: A is far from normal.

    Args:
        a, b: see `state_space`.
    """
    power, found = a.double(), b.double()
    while found.shape[1] < length:  # twice as many columns each time
        found = torch.cat([found, power @ found], 1)
        power = power @ power
    return found[:, :length].to(a.dtype)


def theta_of(a: Tensor, b: Tensor) -> float:
    """The length of the window, in samples, that discrete A (d, d) and B (d, 1) were made for.

    The first polynomial is the mean of the window, so the centre of its impulse response is, to a first guess, that of the
    window; the guess is moved until its own state space has the same centre.
    """
    wanted = _centre(a, b)
    theta = float(f"{2 * wanted + 1:.4g}")
    for _ in range(20):
        step = 2 * (wanted - _centre(*state_space(len(a), theta)))
        if not abs(step) > 1e-5 * theta:
            break
        theta += step
    return float(f"{theta:.5g}")


def _centre(a: Tensor, b: Tensor) -> float:
    """The sum over t of t H[0, t] for an endless H; that of H[0, t] is 1."""
    a, b = a.double(), b.double().reshape(-1, 1)
    gap = torch.eye(len(a), dtype=a.dtype, device=a.device) - a
    return (a @ torch.linalg.solve(gap, torch.linalg.solve(gap, b)))[0].item()


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """Each row of a kernel against one signal: y[t] = sum over s <= t of kernel[:, s] u[t - s], in float32 or better.

    Args:
        u: T, B.
        kernel: R, T.

    Returns:
        T, B, R.
    """
    length, batch = u.shape
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.promote_types(u.dtype, torch.float32)
        u, kernel = u.to(dtype), kernel.to(dtype)
        if length <= LONGEST_MATRIX or torch.compiler.is_exporting():  # one product: every ONNX runtime has it
            windows = F.pad(u, (0, 0, length - 1, 0)).unfold(0, length, 1)  # T, B, T: u[t - T + 1], ..., u[t]
            return (windows.reshape(length * batch, length) @ kernel.flip(1).t()).view(length, batch, -1)
        spectrum = torch.fft.rfft(u.t(), 2 * length)[:, None] * torch.fft.rfft(kernel, 2 * length)  # B, R, T + 1
        return torch.fft.irfft(spectrum, 2 * length)[..., :length].permute(2, 0, 1)


class LMUCell(nn.Module):
    """The memory unit as LMUFormer trains it.

    In the parallel form the memory is folded into the hidden layer: with W_h = [W_m | W_x], the response of the hidden
    values to u is G = W_m H, so that no value of the memory is ever made.

    Args:
        in_channels: C of a sample.
        hidden_size: of h.
        memory_size: d of m.
        theta: length of the window in samples. It belongs to trained weights, not to the length of a clip.
    """

    A: Tensor
    B: Tensor
    H: Tensor
    G: Tensor | None

    def __init__(self, in_channels: int, hidden_size: int, memory_size: int, theta: float) -> None:
        super().__init__()
        if min(in_channels, hidden_size, memory_size) < 1 or not 0 < theta < 1e6:
            raise InputError(
                "in_channels, hidden_size and memory_size must be 1 or more and theta in (0, 1e6); got "
                f"{in_channels}, {hidden_size}, {memory_size} and {theta:g}"
            )
        self.memory_size = memory_size
        self.W_u = nn.Linear(in_channels, 1)
        self.W_h = nn.Linear(memory_size + in_channels, hidden_size)
        a, b = state_space(memory_size, float(theta))
        # What follows from sizes is no part of a checkpoint.
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b, persistent=False)
        self.register_buffer("H", _published_impulse(memory_size, float(theta), max(1, round(theta))), persistent=False)
        self.register_buffer("G", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, in_channels -> h: T, B, hidden_size."""
        w_m, w_x = self.W_h.weight.split([self.memory_size, x.shape[-1]], dim=1)
        u = F.relu(self.W_u(x)).squeeze(-1)
        if self.G is not None and len(x) <= self.G.shape[1]:
            response = self.G[:, : len(x)]
        else:
            with torch.autocast(x.device.type, enabled=False):
                response = w_m @ self.impulse(len(x))
        return F.relu(causal_convolution(u, response) + F.linear(x, w_x, self.W_h.bias))

    def memory(self, u: Tensor) -> Tensor:
        """All values of the memory. u: T, B -> m: T, B, d."""
        return causal_convolution(u, self.impulse(len(u)))

    def impulse(self, length: int) -> Tensor:
        """H (d, length); for clips longer than any before it is computed once."""
        if length <= self.H.shape[1]:
            return self.H[:, :length]
        found = impulse_response(self.A, self.B, length)
        if not torch.compiler.is_compiling():
            self.H = found
        return found

    @torch.no_grad()
    def fold(self) -> None:
        """Keeps G (see `optimize_for_inference`)."""
        self.G = self.W_h.weight[:, : self.memory_size] @ self.H

    def stages(self) -> list[Stage]:
        """This unit, sample by sample."""
        return [RecurrentMemory(self)]


class SpikingLMUCell(LMUCell):
    """The memory unit with spikes: u = LIF(bn_u(W_u x)), s = LIF(bn_m(m)), h = LIF(bn_h(W_h [s ; x])). m itself is real-valued.

    Args:
        norm: with batch norms and spikes of the memory. Without, u and h come from neurons alone and W_h sees m itself
            (the models for permuted sequential MNIST).
    """

    def __init__(self, in_channels: int, hidden_size: int, memory_size: int, theta: float, *, norm: bool = True) -> None:
        super().__init__(in_channels, hidden_size, memory_size, theta)
        self.bn_u: nn.Module = nn.BatchNorm1d(1) if norm else nn.Identity()
        self.bn_m: nn.Module = nn.BatchNorm1d(memory_size) if norm else nn.Identity()
        self.bn_h: nn.Module = nn.BatchNorm1d(hidden_size) if norm else nn.Identity()
        self.f_u, self.f_h = LIF(), LIF()
        self.f_m: nn.Module = LIF() if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, in_channels -> spikes T, B, hidden_size."""
        u = self.f_u(normalise(self.bn_u, self.W_u(x))).squeeze(-1)
        m = self.f_m(normalise(self.bn_m, self.memory(u)))
        return self.f_h(normalise(self.bn_h, self.W_h(torch.cat([m.to(x.dtype), x], -1))))

    @torch.no_grad()
    def fold(self) -> None:
        """Folds the batch norms that follow a linear layer into it."""
        self.bn_u, self.bn_h = folded(self.W_u, self.bn_u), folded(self.W_h, self.bn_h)

    def stages(self) -> list[Stage]:
        """This unit, sample by sample."""
        return [SpikingRecurrentMemory(self)]


class RecurrentMemory(Stage):
    """`LMUCell` a sample at a time: [m ; W_m m] comes from the memory before by one product with [A ; W_m A]."""

    def __init__(self, cell: LMUCell) -> None:
        w_m, self.w_x = cell.W_h.weight.split([cell.memory_size, cell.W_u.in_features], dim=1)
        self.w_u, self.w_h = cell.W_u, cell.W_h
        self.size = cell.memory_size
        self.from_memory = torch.cat([cell.A, (w_m.double() @ cell.A.double()).to(w_m.dtype)]).t().contiguous()  # d, d + hidden
        self.from_input = torch.cat([cell.B, w_m @ cell.B]).t()  # 1, d + hidden
        self.reset()

    def reset(self) -> None:
        self.m: Tensor | None = None

    def push(self, x: Tensor) -> Tensor:
        both = F.relu(self.w_u(x)) * self.from_input
        if self.m is not None:
            both = torch.addmm(both, self.m, self.from_memory)
        self.m = both[:, : self.size]
        return F.relu(both[:, self.size :] + F.linear(x, self.w_x, self.w_h.bias))


class SpikingRecurrentMemory(Stage):
    """`SpikingLMUCell` a sample at a time."""

    def __init__(self, cell: SpikingLMUCell) -> None:
        self.cell = cell
        self.u, self.h = Fire(cell.f_u), Fire(cell.f_h)
        self.memory = Fire(cell.f_m) if isinstance(cell.f_m, LIF) else None
        self.reset()

    def reset(self) -> None:
        self.m: Tensor | None = None
        for neurons in (self.u, self.h, self.memory):
            if neurons is not None:
                neurons.reset()

    def push(self, x: Tensor) -> Tensor:
        cell = self.cell
        m = self.u.push(cell.bn_u(cell.W_u(x))) * cell.B.t()
        self.m = m if self.m is None else torch.addmm(m, self.m, cell.A.t())
        seen = cell.bn_m(self.m)
        seen = seen if self.memory is None else self.memory.push(seen)
        return self.h.push(cell.bn_h(cell.W_h(torch.cat([seen, x], 1))))


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """A batch norm over all samples. x: T, B, C -> the same shape."""
    return x if isinstance(norm, nn.Identity) else norm(x.flatten(0, 1)).view(x.shape)


def folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Folds a norm into the layer before it; what is left of the norm."""
    if isinstance(norm, nn.BatchNorm1d):
        fold_batch_norm(layer, norm)  # type: ignore[arg-type]  # it reads weight and bias, which Conv1d has too
    return nn.Identity()
