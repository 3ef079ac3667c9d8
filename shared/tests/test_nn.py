from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vsuite.core.nn import (
    Mlp,
    attend,
    depthwise_conv3d,
    fold_batch_norm,
    initialise_transformer,
    map_to_tokens,
    perceptron,
    resize_linear,
    tokens_to_map,
)
from vsuite.core.nn.mlp import PIECE


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("bias_shape", [None, (5, 7), (4, 5, 7), (2, 1, 5, 7)])
def test_attend_is_softmax_attention(scale: float | None, bias_shape: tuple[int, ...] | None) -> None:
    query, key, value = seeded(2, 5, 12, seed=1), seeded(2, 7, 12, seed=2), seeded(2, 7, 12, seed=3)
    bias = None if bias_shape is None else seeded(*bias_shape, seed=4)
    got = attend(query, key, value, 4, scale=scale, bias=bias)
    for batch in range(2):
        for head in range(4):
            part = slice(3 * head, 3 * head + 3)
            scores = query[batch, :, part] @ key[batch, :, part].T * (scale or 3**-0.5)
            if bias is not None:
                scores = scores + bias.expand(2, 4, 5, 7)[batch, head]
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            torch.testing.assert_close(got[batch, :, part], weights @ value[batch, :, part])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_tokens_are_the_grid_in_row_major_order(grid: list[int], batch: int, channels: int) -> None:
    image = seeded(batch, channels, *grid)
    tokens = map_to_tokens(image)
    assert tokens.shape == (batch, math.prod(grid), channels)
    last = tuple(side - 1 for side in grid)
    assert torch.equal(tokens[:, -1], image[(slice(None), slice(None), *last)])
    assert torch.equal(tokens_to_map(tokens, tuple(grid)), image)


def test_tokens_become_a_channels_last_view() -> None:
    for batch in (1, 2):
        tokens = seeded(batch, 24, 5)
        volume = tokens_to_map(tokens, (2, 3, 4))
        assert volume.data_ptr() == tokens.data_ptr()
        assert volume.is_contiguous(memory_format=torch.channels_last_3d)
        assert map_to_tokens(volume).data_ptr() == tokens.data_ptr()


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 13)), min_size=2, max_size=3),
    st.integers(1, 2),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_resize_linear_is_interpolation(sides: list[tuple[int, int]], batch: int, channels: int) -> None:
    before, after = [side for side, _ in sides], [side for _, side in sides]
    x = seeded(batch, *before, channels).requires_grad_()
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    want = F.interpolate(x.movedim(-1, 1), size=after, mode=mode, align_corners=False).movedim(1, -1)
    got = resize_linear(x, after)
    torch.testing.assert_close(got, want)
    direction = seeded(*want.shape, seed=9)
    torch.testing.assert_close(*(torch.autograd.grad((out * direction).sum(), x)[0] for out in (got, want)))
    base = seeded(*want.shape, seed=10)
    torch.testing.assert_close(resize_linear(x.detach(), after, add_to=base.clone()), base + want.detach())


def test_resize_linear_serves_training_after_inference() -> None:
    x = seeded(1, 3, 5, 2)
    with torch.inference_mode():
        resize_linear(x, (6, 10))
    x.requires_grad_()
    resize_linear(x, (6, 10)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(120.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 6, 6)),
        (nn.Conv3d(4, 4, 3, groups=4, bias=False), nn.BatchNorm3d(4), (2, 4, 5, 5, 5)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (6, 3)),
    ],
)
def test_fold_batch_norm(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    layer, norm = layer.double(), norm.double()
    for i, tensor in enumerate([norm.weight, norm.bias, norm.running_mean]):
        tensor.data = seeded(4, seed=i)
    norm.running_var = seeded(4, seed=3) ** 2 + 0.1
    x = seeded(*shape)
    want = norm.eval()(layer(x))
    fold_batch_norm(layer, norm)
    torch.testing.assert_close(layer(x), want)


@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3, 5]))
@settings(deadline=None, max_examples=25)
def test_depthwise_convolution_and_its_gradients(sides: list[int], batch: int, channels: int, kernel: int) -> None:
    tensors = [seeded(batch, channels, *sides, seed=1), seeded(channels, 1, kernel, kernel, kernel, seed=2), seeded(channels, seed=3)]
    ours, plain = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    got = depthwise_conv3d(*ours)
    wanted = F.conv3d(*plain, padding=kernel // 2, groups=channels)
    torch.testing.assert_close(got, wanted)
    upstream = seeded(*wanted.shape, seed=4)
    for a, b in zip(torch.autograd.grad(got, ours, upstream), torch.autograd.grad(wanted, plain, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_initialisation() -> None:
    torch.manual_seed(0)
    linear, conv, norm = nn.Linear(300, 300), nn.Conv3d(16, 64, 3, groups=2), nn.LayerNorm(8)
    nn.init.constant_(norm.weight, 5.0)
    for module in (linear, conv, norm):
        initialise_transformer(module)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert linear.weight.abs().max() <= 2.0
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (27 * 64 / 2)), rel=0.03)
    assert torch.equal(norm.weight, torch.ones(8))
    assert not linear.bias.any()
    assert not conv.bias.any()


@pytest.mark.parametrize("shape", [(4 * PIECE + 3, 8), (2, 40, 40, 8), (5, 8), (0, 8)])
def test_perceptron_in_pieces_is_the_whole_one(shape: tuple[int, ...]) -> None:
    mlp = Mlp(8, 12).double()
    x = seeded(*shape).transpose(0, -2)  # rows need not lie in memory as they are counted
    expected = mlp(x)  # with gradients: all rows at once
    with torch.inference_mode():
        calls: list[int] = []
        mlp.fc1.register_forward_hook(lambda layer, args, out: calls.append(len(out)))
        torch.testing.assert_close(mlp(x), expected)
    rows = math.prod(shape[:-1])
    assert calls == ([PIECE] * (rows // PIECE) + [rows % PIECE] if rows > PIECE else [x.shape[0]])


def test_perceptron_calls_foreign_layers_once() -> None:
    class Whole(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    x = seeded(4 * PIECE, 2)
    with torch.inference_mode():
        torch.testing.assert_close(perceptron(x, Whole(), nn.Identity(), torch.clone), x - x.mean(0))
