"""What must hold of FlatFormer's encoder whatever its sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, optimize_for_inference
from vsuite.pointcloud.bench.plain import flatformer as plain
from vsuite.pointcloud.models.flatformer import ORDERS, FlatFormer, FlatFormerLayer, group_indices, inverse_orders, window_orders
from vsuite.pointcloud.models.flatformer_graph import EncoderGraph, export_encoder
from vsuite.pointcloud.models.vfe import DynamicVFE, voxel_max

GRID, WINDOW, SIZE, DIM = (24, 20), (4, 5), 12, 16
quick = settings(deadline=None, max_examples=15)
counts = st.lists(st.integers(0, 60), min_size=1, max_size=3)


def encoder(group_size: int = SIZE, num_blocks: int = 2) -> FlatFormer:
    torch.manual_seed(0)
    return FlatFormer(in_channels=DIM, num_heads=2, num_blocks=num_blocks, window=WINDOW, grid=GRID, group_size=group_size).eval()


def voxels(seed: int, lengths: list[int], grid: tuple[int, int] = GRID) -> tuple[Tensor, Tensor]:
    """Features and coordinates, sorted by (b, y, x)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i, length in enumerate(lengths):
        cells = torch.randperm(grid[0] * grid[1], generator=generator)[:length].sort()[0]
        rows.append(torch.stack([torch.full_like(cells, i), torch.zeros_like(cells), cells // grid[0], cells % grid[0]], dim=1))
    coordinates = torch.cat(rows)
    return torch.randn(len(coordinates), DIM, generator=generator), coordinates


@quick
@given(seed=st.integers(0, 999), lengths=counts, window=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_orders_are_the_published_ones_sample_by_sample(seed: int, lengths: list[int], window: tuple[int, int]) -> None:
    _, coordinates = voxels(seed, lengths)
    orders = window_orders(coordinates, window, GRID)
    start = 0
    for length in lengths:
        want = plain.orders(coordinates[start : start + length], window, GRID)
        assert torch.equal(orders[:, start : start + length], start + torch.stack([want[name] for name in ORDERS]))
        start += length


@quick
@given(seed=st.integers(0, 999), lengths=counts)
def test_inverse_orders(seed: int, lengths: list[int]) -> None:
    orders = window_orders(voxels(seed, lengths)[1], WINDOW, GRID)
    assert torch.equal(orders.gather(1, inverse_orders(orders)), torch.arange(sum(lengths)).expand(4, -1))


@quick
@given(seed=st.integers(0, 999), dx=st.integers(0, 2), dy=st.integers(0, 2))
def test_moving_by_an_even_number_of_windows_keeps_the_orders(seed: int, dx: int, dy: int) -> None:
    _, coordinates = voxels(seed, [50], (8, 10))
    moved = coordinates + torch.tensor([0, 0, 2 * dy * WINDOW[1], 2 * dx * WINDOW[0]])
    grid = (8 + 4 * WINDOW[0], 10 + 4 * WINDOW[1])
    assert torch.equal(window_orders(coordinates, WINDOW, grid), window_orders(moved, WINDOW, grid))


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), size=st.integers(1, 30))
def test_group_indices(lengths: list[int], size: int) -> None:
    win2flat, flat2win = group_indices(lengths, size)
    assert torch.equal(flat2win[win2flat], torch.arange(sum(lengths)))
    start = place = 0
    for length in lengths:
        own = max(1, min(size, length))
        padded = -(-length // own) * own
        groups = flat2win[place : place + padded].reshape(-1, own)
        assert groups.shape[0] == -(-length // own)
        for group in groups[:-1]:
            assert torch.equal(group, torch.arange(int(group[0]), int(group[0]) + own))
        if length:
            assert set(groups[-1].tolist()) == set(range(start + length - own, start + length))
        start, place = start + length, place + padded


@quick
@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(SIZE, 60), min_size=1, max_size=3))
@torch.inference_mode()
def test_equal_to_the_plain_form(seed: int, lengths: list[int]) -> None:
    features, coordinates = voxels(seed, lengths)
    model = encoder()
    slow = plain.forward_voxels(model, features, coordinates, len(lengths))
    torch.testing.assert_close(model.forward_voxels(features, coordinates, len(lengths)), slow, atol=2e-5, rtol=0)


@quick
@given(seed=st.integers(0, 999), lengths=counts)
@torch.inference_mode()
def test_permuting_the_voxels_permutes_the_output(seed: int, lengths: list[int]) -> None:
    features, coordinates = voxels(seed, lengths)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    model = encoder()
    out = model.forward_voxels(features, coordinates, len(lengths))
    again = model.forward_voxels(features[order], coordinates[order], len(lengths))
    torch.testing.assert_close(again, out[order], atol=1e-5, rtol=0)


@quick
@given(seed=st.integers(0, 999), lengths=counts)
@torch.inference_mode()
def test_a_batch_equals_its_samples_alone(seed: int, lengths: list[int]) -> None:
    features, coordinates = voxels(seed, lengths)
    model = encoder()
    together = model(features, coordinates, len(lengths))
    for i in range(len(lengths)):
        mine = coordinates[:, 0] == i
        alone = model(features[mine], coordinates[mine] * torch.tensor([0, 1, 1, 1]), 1)
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=0)


@quick
@given(seed=st.integers(0, 999), length=st.integers(1, 40))
@torch.inference_mode()
def test_a_group_larger_than_the_sample_is_full_attention(seed: int, length: int) -> None:
    features, coordinates = voxels(seed, [length])
    model = encoder(group_size=64)
    position = model.position_embedding(coordinates)
    x = features
    for layer, _ in model.layers():
        out, _ = layer.attn.attn(x + position, x + position, x, need_weights=False)
        x = layer.norm1(x + out)
        x = layer.norm2(x + layer.fc2(F.gelu(layer.fc1(x))))
    torch.testing.assert_close(model.forward_voxels(features, coordinates, 1), x, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_without_voxels_the_map_is_zero() -> None:
    features, coordinates = voxels(0, [0, 0])
    assert torch.equal(encoder()(features, coordinates, 2), torch.zeros(2, DIM, GRID[1], GRID[0]))


def test_normalised_positions() -> None:
    model = FlatFormer(in_channels=22, num_heads=2, grid=GRID, normalize_pos=True)
    _, coordinates = voxels(0, [50])
    embedding = model.position_embedding(coordinates)
    torch.testing.assert_close(embedding, plain.position(coordinates, 22, GRID, 10000, True), atol=1e-5, rtol=0)
    assert torch.equal(embedding[:, 20:], torch.zeros(50, 2))


@pytest.mark.parametrize(
    "options",
    [{"in_channels": 15, "num_heads": 2}, {"group_size": 0}, {"window": (3,)}, {"grid": (0, 4)}, {"num_blocks": 0}, {"pos_temperature": 0}],
)
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        FlatFormer(**options)  # type: ignore[arg-type]


def test_gradients_reach_every_parameter() -> None:
    features, coordinates = voxels(0, [30, 5])
    model = encoder().train()
    features.requires_grad_()
    (model(features, coordinates, 2) * torch.randn(2, DIM, GRID[1], GRID[0])).sum().backward()
    for name, parameter in [*model.named_parameters(), ("features", features)]:
        assert parameter.grad is not None, name
        if not name.endswith("in_proj_bias"):
            assert float(parameter.grad.abs().max()) > 0, name


@torch.inference_mode()
def test_bfloat16() -> None:
    features, coordinates = voxels(0, [60])
    model = encoder()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(features, coordinates, 1)
    assert float((half.float() - model(features, coordinates, 1)).abs().max()) < 0.1


@pytest.mark.slow
@torch.inference_mode()
def test_compiled() -> None:
    model = encoder(num_blocks=1)
    features, coordinates = voxels(0, [31, 5])
    compiled = torch.compile(model, dynamic=False)  # one graph for each number of voxels
    torch.testing.assert_close(compiled(features, coordinates, 2), model(features, coordinates, 2), atol=1e-4, rtol=0)


@quick
@given(seed=st.integers(0, 999), length=st.integers(1, 60))
@torch.inference_mode()
def test_the_graph_for_export_is_the_encoder(seed: int, length: int) -> None:
    features, coordinates = voxels(seed, [length])
    model = encoder()
    torch.testing.assert_close(EncoderGraph(model)(features, coordinates), model(features, coordinates, 1), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "encoder.onnx"
    assert export_encoder(encoder(num_blocks=1), path) < 1e-4
    assert {node.domain for node in onnx.load(path).graph.node} == {""}  # no operator but ONNX's own


# Voxel features


@quick
@given(
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    layers=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
@torch.inference_mode()
def test_folded_voxel_features_are_the_plain_ones(seed: int, lengths: list[int], layers: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = DynamicVFE(in_channels=4, feat_channels=layers, voxel_size=(1, 1, 4), point_cloud_range=(-4, -4, -2, 4, 4, 2)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)
            module.weight.data.normal_(generator=generator)
    points = [torch.randn(length, 4, generator=generator) * 2 for length in lengths]
    want, where = model(points)
    got, same = optimize_for_inference(model)(points)
    assert torch.equal(where, same)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.voxel_features(model, points)[0], want, atol=1e-4, rtol=1e-4)


@quick
@given(seed=st.integers(0, 999))
def test_voxel_max_and_its_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.cat([torch.arange(5), torch.randint(0, 5, (15,), generator=generator)])
    want = torch.stack([x[index == i].amax(0) for i in range(5)])
    assert torch.equal(voxel_max(x, index, 5), want)
    assert torch.autograd.gradcheck(lambda values: voxel_max(values, index, 5), x)


@pytest.mark.parametrize("count", [0, 1])
def test_one_point_or_none_trains(count: int) -> None:
    model = DynamicVFE(in_channels=4, feat_channels=(4, 8), voxel_size=(1, 1, 4), point_cloud_range=(-4, -4, -2, 4, 4, 2)).train()
    features, coordinates = model([torch.zeros(count, 4)])
    assert features.shape == (count, 8)
    assert coordinates.shape == (count, 4)


def test_layers_take_their_own_widths() -> None:
    layer = FlatFormerLayer(DIM, 2, SIZE)
    assert layer.fc1.out_features == 2 * DIM
