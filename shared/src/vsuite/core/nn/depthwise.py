"""Depthwise 3D convolution whose backward pass is not slow on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise convolution with stride 1 that keeps the size.

    The general backward pass takes some five times the forward pass on a CPU. Here the gradient of the input is a
    forward convolution with the kernel mirrored, and that of the kernel one product and sum an offset.

    Args:
        x: B, C, D, H, W, best channels-last in memory.
        weight: C, 1, k, k, k with k odd.
        bias: C, or None.
    """
    trains_on_cpu = torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if trains_on_cpu and not torch.is_autocast_enabled("cpu") and not torch.onnx.is_in_onnx_export():
        return _DepthwiseConv3d.apply(x, weight, bias)
    return F.conv3d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


class _DepthwiseConv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = F.conv3d(grad, weight.flip(2, 3, 4), padding=weight.shape[-1] // 2, groups=len(weight))
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad, weight.shape)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3, 4))
        return grad_x, grad_weight, grad_bias


def _weight_gradient(x: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    kernel = shape[2:]
    margins = [k // 2 for k in reversed(kernel) for _ in (0, 1)]
    padded = F.pad(x.movedim(1, -1), [0, 0, *margins])  # B, D + k - 1, H + k - 1, W + k - 1, C
    grad = grad.movedim(1, -1)
    _, depth, height, width, _ = grad.shape
    result, product = grad.new_empty(shape), torch.empty_like(grad)  # a fresh product an offset would cost more than the arithmetic
    for i, j, k in itertools.product(*map(range, kernel)):
        torch.mul(padded[:, i : i + depth, j : j + height, k : k + width], grad, out=product)
        result[:, 0, i, j, k] = product.sum((0, 1, 2, 3))
    return result
