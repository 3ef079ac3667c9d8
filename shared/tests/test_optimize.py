from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import create_model, optimize_for_inference
from vsuite.core.bench.count import count_macs, count_parameters
from vsuite.core.nn import fold_batch_norm


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm: nn.Module = nn.BatchNorm2d(5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(x))

    def fold(self) -> None:
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_batch_norm(self.conv, self.norm)
            self.norm = nn.Identity()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), nn.Dropout(0.5))
    model(torch.randn(4, 3, 8, 8))  # moves the running statistics away from their start
    return model


def test_outputs_are_equal_and_the_model_is_left_as_it_is(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    fast = optimize_for_inference(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(fast[0].norm, nn.Identity)
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    torch.testing.assert_close(fast(x), model.eval()(x))


def test_folding_twice_changes_nothing(model: nn.Module) -> None:
    once = optimize_for_inference(model)
    twice = optimize_for_inference(once)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_the_example_is_run_once(model: nn.Module) -> None:
    calls = model[0].calls
    x = torch.randn(1, 3, 8, 8)
    assert optimize_for_inference(model, x)[0].calls == calls + 1
    assert optimize_for_inference(model, (x,))[0].calls == calls + 1
    assert model[0].calls == calls


@pytest.mark.slow
def test_compiled(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    fast = optimize_for_inference(model, x, compile=True)
    torch.testing.assert_close(fast(x), model.eval()(x))


@pytest.mark.slow
@pytest.mark.parametrize("inference", [True, False])
def test_a_compiled_graph_has_weights_of_its_own(inference: bool) -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3)), torch.randn(2, 3)
    fast = optimize_for_inference(model, compile=True)
    with torch.inference_mode(inference):
        before = fast(x)
        for weight in fast.parameters():
            weight.zero_()
        assert torch.equal(fast(x), before)
    torch.testing.assert_close(before, model(x))


def test_weights_of_linear_layers_are_turned_in_memory_and_stay_shared() -> None:
    layer = nn.Linear(3, 5)
    twin = nn.Linear(3, 5)
    twin.weight = layer.weight
    fast = optimize_for_inference(nn.Sequential(layer, nn.Linear(5, 3), twin))
    assert fast[0].weight.shape == (5, 3)
    assert fast[0].weight.t().is_contiguous()
    assert fast[2].weight.data_ptr() == fast[0].weight.data_ptr()
    assert torch.equal(fast[0].weight, layer.weight)
    assert layer.weight.is_contiguous()
    assert optimize_for_inference(layer, precision="bf16").weight.is_contiguous()  # type: ignore[operator]


@pytest.fixture
def large() -> tuple[nn.Linear, nn.Linear]:
    """A layer whose weight is large enough to be packed, and what is made of it by a call of enough work."""
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1024)
    fast = optimize_for_inference(layer, torch.randn(2, 20, 1024))
    assert isinstance(fast, nn.Linear)
    return layer, fast


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(2, 20, 1024), (1, 1024), (0, 1024), (1024,)])
def test_packed_layers_return_the_same(large: tuple[nn.Linear, nn.Linear], shape: tuple[int, ...]) -> None:
    layer, fast = large
    assert next(fast.parameters()).is_mkldnn
    x = torch.randn(shape)
    for inference in (True, False):
        with torch.inference_mode(inference):
            torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)
    assert next(fast.parameters()).is_mkldnn


@needs_onednn
@pytest.mark.parametrize(
    ("side", "rows", "packed"), [(1024, 15, False), (1024, 16, True), (384, 113, False), (384, 114, True), (256, 1024, False)]
)
def test_layers_are_packed_if_large_by_calls_of_much_work(side: int, rows: int, packed: bool) -> None:
    fast = optimize_for_inference(nn.Linear(side, side), torch.randn(rows, side))
    assert next(fast.parameters()).is_mkldnn == packed


@needs_onednn
def test_packed_layers_leave_autocast_its_precision(large: tuple[nn.Linear, nn.Linear]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert large[1](torch.randn(20, 1024)).dtype == torch.bfloat16


@needs_onednn
def test_copies_of_packed_layers_can_be_compiled(large: tuple[nn.Linear, nn.Linear]) -> None:
    layer, fast = large
    x = torch.randn(20, 1024)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(copy.deepcopy(fast), backend="eager")(x), layer(x))


@needs_onednn
def test_copies_and_state_of_packed_layers_are_those_of_plain_ones(large: tuple[nn.Linear, nn.Linear]) -> None:
    layer, fast = large
    x = torch.randn(3, 20, 1024)
    expected = fast(x)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), optimize_for_inference(fast)):
        torch.testing.assert_close(other(x), expected)
    fast(x)
    assert torch.equal(fast.state_dict()["weight"], layer.weight)
    fast(x)
    fast.load_state_dict({"weight": layer.weight / 2, "bias": layer.bias / 2})
    torch.testing.assert_close(fast(x), expected / 2)
    fast.load_state_dict(layer.state_dict())
    fast(x)
    torch.testing.assert_close(fast.double()(x.double()), layer.double()(x.double()))


@needs_onednn
def test_packed_layers_have_gradients_of_their_input(large: tuple[nn.Linear, nn.Linear]) -> None:
    layer, fast = large
    x = torch.randn(20, 1024, requires_grad=True)
    ours, theirs = (torch.autograd.grad(model(x).square().sum(), x)[0] for model in (fast, layer))
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(torch.randn(20, 1000))


@needs_onednn
def test_packed_layers_can_be_traced() -> None:
    layer, x = nn.Linear(1024, 1024), torch.randn(20, 1024)
    fast = optimize_for_inference(layer)
    torch.testing.assert_close(torch.jit.trace(fast, x)(x), layer(x))
    fast(x)
    torch.testing.assert_close(torch.jit.trace(copy.deepcopy(fast), x)(x), layer(x))


@needs_onednn
def test_packed_layers_are_counted(large: tuple[nn.Linear, nn.Linear]) -> None:
    x = torch.randn(20, 1024)
    for model in large:
        assert sum(count_macs(model, x).values()) == 20 * 1024 * 1024
        assert count_parameters(model) == 1024 * 1025


@needs_onednn
def test_whoever_reads_the_weight_of_a_packed_layer_gets_the_usual_form(large: tuple[nn.Linear, nn.Linear]) -> None:
    layer, fast = large
    assert torch.equal(fast.weight[:3], layer.weight[:3])
    x = torch.randn(20, 1024)
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_vit_classifies_after_its_maps_were_read() -> None:
    """Its last block multiplies with parts of a weight that the maps need whole."""
    torch.manual_seed(0)
    model, x = create_model("vit_base_patch16", depth=1, pool="token").eval(), torch.randn(1, 3, 224, 224)
    fast = optimize_for_inference(model)
    with torch.inference_mode():
        for ours, theirs in zip(fast.attention_maps(x), model.attention_maps(x), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
