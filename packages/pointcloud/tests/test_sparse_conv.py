"""Sparse convolution against dense convolution, and what must hold whatever the cells."""

from __future__ import annotations

import copy
import math
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import optimize_for_inference
from vsuite.core.errors import InputError
from vsuite.pointcloud.nn import sparse_conv, sparse_layers, spconv_backend
from vsuite.pointcloud.nn.neighbours import Table
from vsuite.pointcloud.nn.sparse_conv import SparseConv3d, SparseInverseConv3d, SubMConv3d
from vsuite.pointcloud.nn.sparse_layers import (
    SparseAvgPool3d,
    SparseBatchNorm,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseMaxPool3d,
    SparseSequential,
)
from vsuite.pointcloud.nn.sparse_tensor import SparseTensor

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
SHAPES = {1: (23,), 2: (9, 11), 3: (5, 7, 6)}
few = settings(max_examples=12, deadline=None)


def random_tensor(shape: tuple[int, ...], batch_size: int = 2, channels: int = 3, density: float = 0.2, seed: int = 0) -> SparseTensor:
    """Random cells in float64, at least one."""
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(batch_size, *shape, generator=generator) < density
    occupied.view(-1)[-1] = True
    coordinates = occupied.nonzero()
    features = torch.randn(len(coordinates), channels, generator=generator, dtype=torch.float64)
    return SparseTensor(features, coordinates, shape, batch_size)


def at(dense: Tensor, x: SparseTensor) -> Tensor:
    """The values of a dense map (B, C, ...) at the cells of x: N, C."""
    return dense.movedim(1, -1)[tuple(x.coordinates.T)]


def dense_weight(layer: nn.Module) -> Tensor:
    """(out, kernel, in) as (out, in, kernel)."""
    return layer.weight.movedim(-1, 1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def reached(x: SparseTensor, layer: nn.Module, **geometry: object) -> Tensor:
    """Cells (B, ...) that dense convolution with ones of the occupied cells reaches."""
    occupied = x.replace_feature(torch.ones(len(x.sites), 1, dtype=torch.float64)).dense()
    ones = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    convolve = (CONV_TRANSPOSE if "output_padding" in geometry else CONV)[layer.dimensions]
    return convolve(occupied, ones, **geometry)[:, 0] > 0.5


sizes = st.integers(0, 2**16)
dimensions = st.sampled_from([1, 2, 3])


@few
@given(dimensions=dimensions, side=st.sampled_from([1, 3, 5]), dilation=st.integers(1, 3), bias=st.booleans(), seed=sizes)
def test_submanifold_equals_dense(dimensions: int, side: int, dilation: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = random_tensor(SHAPES[dimensions], seed=seed)
    layer = getattr(sparse_conv, f"SubMConv{dimensions}d")(3, 4, side, dilation=dilation, bias=bias).double()
    y = layer(x)
    assert y.sites is x.sites
    dense = CONV[dimensions](x.dense(), dense_weight(layer), layer.bias, padding=side // 2 * dilation, dilation=dilation)
    close(y.features, at(dense, x))


def test_submanifold_with_a_kernel_of_unequal_sides_and_steps() -> None:
    x = random_tensor((5, 7, 6))
    layer = SubMConv3d(3, 2, (3, 1, 5), dilation=(2, 1, 1)).double()
    dense = F.conv3d(x.dense(), dense_weight(layer), layer.bias, padding=(2, 0, 2), dilation=(2, 1, 1))
    close(layer(x).features, at(dense, x))


@few
@given(
    dimensions=dimensions,
    side=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    seed=sizes,
)
def test_strided_equals_dense(dimensions: int, side: int, stride: int, padding: int, dilation: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = random_tensor((12,) if dimensions == 1 else (8,) * dimensions, density=0.1, seed=seed)
    layer = getattr(sparse_conv, f"SparseConv{dimensions}d")(3, 4, side, stride, padding, dilation=dilation, bias=bias).double()
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    y = layer(x)
    dense = CONV[dimensions](x.dense(), dense_weight(layer), layer.bias, **geometry)
    assert y.spatial_shape == tuple(dense.shape[2:])
    assert torch.equal(y.coordinates, reached(x, layer, **geometry).nonzero())
    close(y.features, at(dense, y))


@few
@given(
    dimensions=dimensions,
    side=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    more=st.booleans(),
    seed=sizes,
)
def test_transposed_equals_dense(dimensions: int, side: int, stride: int, padding: int, dilation: int, more: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = random_tensor((4,) * dimensions, density=0.15, seed=seed)
    output_padding = int(more and max(stride, dilation) > 1)
    layer = getattr(sparse_conv, f"SparseConvTranspose{dimensions}d")(
        3, 4, side, stride, padding, output_padding, dilation=dilation
    ).double()
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
    y = layer(x)
    dense = CONV_TRANSPOSE[dimensions](x.dense(), layer.weight.movedim(-1, 0), layer.bias, **geometry)
    assert y.spatial_shape == tuple(dense.shape[2:])
    assert torch.equal(y.coordinates, reached(x, layer, **geometry).nonzero())
    close(y.features, at(dense, y))


@few
@given(side=st.sampled_from([2, 3]), padding=st.integers(0, 1), seed=sizes)
def test_inverse_is_the_transposed_convolution_at_the_cells_before(side: int, padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = random_tensor((7, 8, 7), seed=seed)
    down = SparseConv3d(3, 5, side, 2, padding, indice_key="down").double()
    up = SparseInverseConv3d(5, 2, side, "down").double()
    small = down(x)
    y = up(small.replace_feature(small.features.relu()))
    assert y.sites is x.sites
    missing = [size - ((n - 1) * 2 - 2 * padding + side) for size, n in zip(x.spatial_shape, small.spatial_shape, strict=True)]
    dense = F.conv_transpose3d(small.dense().relu(), up.weight.movedim(-1, 0), up.bias, 2, padding, output_padding=missing)
    close(y.features, at(dense, x))


@few
@given(dimensions=dimensions, side=st.integers(2, 3), stride=st.integers(1, 3), padding=st.integers(0, 1), seed=sizes)
def test_pooling_counts_occupied_cells_only(dimensions: int, side: int, stride: int, padding: int, seed: int) -> None:
    x = random_tensor((8,) * dimensions, density=0.15, seed=seed)
    x = x.replace_feature(x.features - 5)  # negative maxima must stay negative
    largest = getattr(sparse_layers, f"SparseMaxPool{dimensions}d")(side, stride, padding)(x)
    mean = getattr(sparse_layers, f"SparseAvgPool{dimensions}d")(side, stride, padding)(x)
    occupied = x.replace_feature(torch.ones_like(x.features)).dense()
    dense = x.dense().masked_fill(occupied == 0, -math.inf)
    want = MAX_POOL[dimensions](dense, side, stride, padding)
    assert torch.equal(largest.coordinates, want[:, 0].isfinite().nonzero())
    close(largest.features, at(want, largest))
    ones = torch.ones(3, 1, *(side,) * dimensions, dtype=torch.float64)
    total, count = (CONV[dimensions](values, ones, stride=stride, padding=padding, groups=3) for values in (x.dense(), occupied))
    close(mean.features, at(total / count, mean))


def test_global_pooling_with_an_empty_sample() -> None:
    x = SparseTensor(torch.tensor([[1.0], [-3.0], [-5.0]]), torch.tensor([[0, 0], [0, 4], [2, 1]]), (5,), 3)
    assert SparseGlobalMaxPool()(x).tolist() == [[1], [0], [-5]]
    assert SparseGlobalAvgPool()(x).tolist() == [[-1], [0], [-5]]


@pytest.mark.parametrize("kind", ["submanifold", "strided", "transposed", "inverse"])
def test_gradients(kind: str) -> None:
    torch.manual_seed(0)
    x = random_tensor((4, 4, 3), channels=2)
    first = SparseConv3d(2, 2, 3, 2, 1, indice_key="a").double()
    if kind == "inverse":
        x = first(x)
    layer = {
        "submanifold": SubMConv3d(2, 3),
        "strided": SparseConv3d(2, 3, 3, 2, 1),
        "transposed": sparse_conv.SparseConvTranspose3d(2, 3, 2, 2),
        "inverse": SparseInverseConv3d(2, 3, 3, "a"),
    }[kind].double()

    def run(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x.replace_feature(features),)).features

    inputs = [t.detach().clone().requires_grad_() for t in (x.features, layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("pool", [SparseMaxPool3d(3, 2, 1), SparseAvgPool3d(3, 2, 1), SparseGlobalMaxPool(), SparseGlobalAvgPool()])
def test_gradients_of_pooling(pool: nn.Module) -> None:
    x = random_tensor((4, 4, 3), channels=2)

    def run(features: Tensor) -> Tensor:
        y = pool(x.replace_feature(features))
        return y if isinstance(y, Tensor) else y.features

    assert torch.autograd.gradcheck(run, [x.features.clone().requires_grad_()])


@pytest.fixture
def strict() -> Iterator[None]:
    """torch's strict determinism; threads and mode are put back afterwards."""
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


def sheet(rows: int = 4000, channels: int = 16) -> SparseTensor:
    """Cells of a wavy surface, as a lidar sees the ground, in float32."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randperm(120 * 120, generator=generator)[:rows]
    y, x = place // 120, place % 120
    z = (4 + 2 * torch.sin(x / 20) + 2 * torch.cos(y / 15)).long()
    coordinates = torch.stack([torch.zeros_like(z), z, y, x], dim=1)
    return SparseTensor(torch.randn(rows, channels, generator=generator), coordinates, (10, 120, 120), 1)


def results(x: SparseTensor, network: nn.Module) -> list[Tensor]:
    features = x.features.clone().requires_grad_()
    y = network(x.replace_feature(features))
    network.zero_grad()
    y.features.square().sum().backward()
    return [y.features.detach(), features.grad, *(p.grad for p in network.parameters())]


def small_network() -> SparseSequential:
    torch.manual_seed(0)
    return SparseSequential(
        SubMConv3d(16, 32, bias=False),
        SparseBatchNorm(32),
        nn.ReLU(),
        SparseConv3d(32, 64, 3, 2, 1, indice_key="down"),
        nn.ReLU(),
        SubMConv3d(64, 64),
        SparseInverseConv3d(64, 8, 3, "down"),
    )


def without_norms() -> SparseSequential:
    """The gradients of torch's own norms differ in the last bit between numbers of threads."""
    return SparseSequential(*(layer for layer in small_network() if not isinstance(layer, nn.BatchNorm1d)))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("rows", [60, 2500])  # few rows: products that MKL sums differently on several threads
def test_one_and_two_threads_agree_bit_for_bit(rows: int) -> None:
    network, x = without_norms(), sheet(rows)
    torch.set_num_threads(1)
    one = results(x, network)
    torch.set_num_threads(2)
    two = results(x, network)
    assert torch.get_num_threads() == 2
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.usefixtures("strict")
def test_two_threads_repeat_bit_for_bit_and_do_not_race() -> None:
    torch.use_deterministic_algorithms(False)
    network, x = without_norms(), sheet(2500)
    torch.set_num_threads(1)
    one = results(x, network)
    torch.set_num_threads(2)
    first = results(x, network)
    for a, b in zip(one, first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, results(x, network), strict=True))


def test_order_of_the_rows_changes_nothing() -> None:
    x, network = sheet(500), small_network().eval()
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    shuffled = SparseTensor(x.features[order], x.coordinates[order].int(), x.spatial_shape, 1)
    assert torch.equal(shuffled.coordinates, x.coordinates)
    assert torch.equal(network(shuffled).features, network(x).features)


def test_a_batch_equals_its_samples_alone() -> None:
    network = small_network().double().eval()
    x = random_tensor((6, 8, 8), batch_size=3, channels=16)
    x = SparseTensor(x.features[x.coordinates[:, 0] != 1], x.coordinates[x.coordinates[:, 0] != 1], x.spatial_shape, 3)  # one is empty
    together = network(x).dense()
    for b in (0, 1, 2):
        mine = x.coordinates[:, 0] == b
        alone = SparseTensor(x.features[mine], x.coordinates[mine] * torch.tensor([0, 1, 1, 1]), x.spatial_shape, 1)
        close(network(alone).dense()[0], together[b])


@pytest.mark.parametrize("rows", [0, 1])
def test_no_cell_and_one_cell(rows: int) -> None:
    x = SparseTensor(torch.ones(rows, 16), torch.tensor([[1, 2, 3, 4]])[:rows], (4, 6, 8), 2)
    network = small_network()
    got = results(x, network)
    assert got[0].shape == (rows, 8)
    assert all(bool(value.isfinite().all()) for value in got)
    pooled = SparseAvgPool3d(2)(SparseMaxPool3d(2)(x))
    assert len(pooled.features) == rows
    assert pooled.dense().shape == (2, 16, 1, 1, 2)


def test_tables_are_made_once_a_geometry() -> None:
    x = sheet(300)
    first, second = SubMConv3d(16, 16), SubMConv3d(16, 16)
    y = first(x)
    assert first.table(x) is second.table(y)
    assert SparseConv3d(16, 4, 3, 2, 1).table(x) is SparseConv3d(16, 8, 3, 2, 1).table(y)
    assert SubMConv3d(16, 16, dilation=2).table(x) is not first.table(x)


def test_tables_of_prediction_serve_training() -> None:
    x, layer = sheet(300), SubMConv3d(16, 16)
    with torch.inference_mode():
        layer(x)
    assert layer(x).features.requires_grad
    layer(x).features.sum().backward()


def test_names_and_shapes_are_those_of_spconv() -> None:
    assert {name: tuple(value.shape) for name, value in SubMConv3d(5, 16, (3, 1, 5)).state_dict().items()} == {
        "weight": (16, 3, 1, 5, 5),
        "bias": (16,),
    }


def test_folding_keeps_the_result() -> None:
    network = small_network().train()
    network(sheet())  # running statistics that matter
    network.eval()
    fast = optimize_for_inference(copy.deepcopy(network))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in fast.modules())
    torch.testing.assert_close(fast(sheet()).features, network(sheet()).features, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast() -> None:
    x, network = sheet(), small_network().eval()
    want = network(x).features
    with torch.autocast("cpu", torch.bfloat16):
        got = network(x).features
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.05 * float(want.detach().abs().max()))
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        network(x).features.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize(
    ("features", "coordinates", "shape", "batch_size", "message"),
    [
        (2, [[0, 1, 1], [0, 1, 1]], (4, 4), 1, r"1 of 2 coordinates are duplicates; the first is sample 0, cell \(1, 1\)"),
        (2, [[0, 1, 1], [0, 4, 1]], (4, 4), 1, r"1 of 2 coordinates lie outside .* the first is sample 0, cell \(4, 1\)"),
        (1, [[0, -1, 1]], (4, 4), 1, "outside"),
        (1, [[2, 1, 1]], (4, 4), 2, "sample 2"),
        (1, [[0, 1, 1, 1]], (4, 4), 1, "rows of 3"),
        (3, [[0, 1, 1]], (4, 4), 1, "features are N, C for N = 1"),
        (1, [[0.0, 1.0, 1.0]], (4, 4), 1, "integers"),
        (1, [[0, 1, 1]], (4, 0), 1, "1 or more"),
        (1, [[0, 1, 1]], (4, 4), 0, "1 or more"),
        (1, [[0, 1, 1]], (2**40, 2**40), 1, "too many cells"),
    ],
)
def test_wrong_coordinates(features: int, coordinates: list[list[int]], shape: tuple[int, ...], batch_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseTensor(torch.zeros(features, 2), torch.tensor(coordinates), shape, batch_size)


def test_wrong_layers() -> None:
    x = random_tensor((4, 4, 3))
    with pytest.raises(InputError, match="odd sides"):
        SubMConv3d(3, 3, 2)
    with pytest.raises(InputError, match="kernel_size is one integer of 1 or more, or 3 of them"):
        SubMConv3d(3, 3, (3, 3))
    with pytest.raises(InputError, match="takes 4 channels"):
        SubMConv3d(4, 3)(x)
    with pytest.raises(InputError, match="grids of 2 axes"):
        sparse_conv.SubMConv2d(3, 3)(x)
    with pytest.raises(InputError, match="leaves nothing"):
        SparseConv3d(3, 3, 5).double()(x)
    with pytest.raises(InputError, match="unknown indice_key"):
        SparseInverseConv3d(3, 3, 3, "down")(x)
    y = SparseConv3d(3, 3, 3, 2, 1, indice_key="down").double()(x)
    with pytest.raises(InputError, match="cannot invert"):
        SparseInverseConv3d(3, 3, 2, "down").double()(y)
    with pytest.raises(InputError, match="not of the cells"):
        SparseInverseConv3d(3, 3, 3, "down").double()(SparseConv3d(3, 3, 1).double()(y))
    with pytest.raises(InputError, match="rows of features"):
        x.replace_feature(torch.zeros(1, 3))


@pytest.fixture
def fake_spconv(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A spconv whose one function is the definition of sparse convolution, on any device."""
    calls = types.SimpleNamespace(count=0, cpu_only=False)

    def indice_conv(features: Tensor, weight: Tensor, pairs: Tensor, counts: Tensor, rows: int, algorithm: str) -> Tensor:
        calls.count += 1
        assert (pairs.dtype, counts.dtype, algorithm) == (torch.int32, torch.int32, "native")
        out = features.new_zeros(rows, weight.shape[0])
        for k, n in enumerate(counts.tolist()):
            assert bool((pairs[:, k, n:] == -1).all())
            inputs, outputs = pairs[:, k, :n].long()
            out = out.index_add(0, outputs, features[inputs] @ weight.flatten(1, -2)[:, k].T)
        return out

    parts = {
        "spconv": {},
        "spconv.cppconstants": {"CPU_ONLY_BUILD": False},
        "spconv.core": {"ConvAlgo": types.SimpleNamespace(Native="native")},
        "spconv.pytorch": {},
        "spconv.pytorch.functional": {"indice_conv": indice_conv},
    }
    for name, contents in parts.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    spconv_backend.why_unavailable.cache_clear()
    yield calls
    spconv_backend.why_unavailable.cache_clear()


def test_spconv_is_chosen_on_cuda_only(fake_spconv: types.SimpleNamespace) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert spconv_backend.use_spconv("auto", cuda)
    assert spconv_backend.use_spconv("spconv", cuda)
    assert not spconv_backend.use_spconv("torch", cuda)
    assert not spconv_backend.use_spconv("auto", cpu)
    assert not spconv_backend.use_spconv("auto", cuda, torch.bfloat16)
    with pytest.raises(InputError, match="not compute in bfloat16"):
        spconv_backend.use_spconv("spconv", cuda, torch.bfloat16)
    with pytest.raises(InputError, match="on CPU its threads race"):
        spconv_backend.use_spconv("spconv", cpu)
    with pytest.raises(InputError, match="did you mean 'spconv'"):
        SubMConv3d(1, 1, backend="spconvv")  # type: ignore[arg-type]


def test_the_cpu_build_of_spconv_is_refused(fake_spconv: types.SimpleNamespace) -> None:
    sys.modules["spconv.cppconstants"].CPU_ONLY_BUILD = True  # type: ignore[attr-defined]
    assert not spconv_backend.use_spconv("auto", torch.device("cuda"))
    with pytest.raises(InputError, match="CPU build, which is refused: its threads race"):
        spconv_backend.use_spconv("spconv", torch.device("cuda"))


def test_without_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.cppconstants", None)
    spconv_backend.why_unavailable.cache_clear()
    assert not spconv_backend.use_spconv("auto", torch.device("cuda"))
    with pytest.raises(InputError, match=r"vsuite-pointcloud\[cuda\]"):
        SubMConv3d(3, 3, backend="spconv")(random_tensor((4, 4, 4)))
    spconv_backend.why_unavailable.cache_clear()


def test_spconv_gets_the_same_pairs(fake_spconv: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    x, network = sheet(400), small_network().eval()
    want = network(x).features
    monkeypatch.setattr(spconv_backend, "use_spconv", lambda *arguments: True)
    torch.testing.assert_close(network(x).features, want, rtol=1e-4, atol=1e-5)
    assert fake_spconv.count == 4


def test_pairs_of_a_table_are_distinct_and_ascend() -> None:
    table: Table = SubMConv3d(16, 16).table(sheet(400))
    assert sum(table.counts) == len(table.inputs)
    for _, inputs, outputs in table.groups:
        assert bool((outputs[1:] > outputs[:-1]).all())
        assert len(inputs.unique()) == len(inputs)
