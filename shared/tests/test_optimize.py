from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import optimize_for_inference
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
