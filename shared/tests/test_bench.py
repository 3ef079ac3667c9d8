"""Counts against hand-computed ones, and measurements whose size is known beforehand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError
from vsuite.core.bench import (
    Conditions,
    Subject,
    compare,
    count_macs,
    count_parameters,
    forms,
    measure,
    peak_memory,
    print_results,
    write_results,
)
from vsuite.core.bench.measurement import tensors
from vsuite.core.bench.memory import process_memory
from vsuite.core.bench.report import three_digits
from vsuite.core.bench.timing import MIN_REPEATS, Spread, time_in_turn

MIB = 2**20


def total(model: nn.Module, *inputs: Any) -> int:
    return sum(count_macs(model, *inputs).values())


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Linear(8, 5), (3, 8), 3 * 8 * 5),
        (nn.Linear(8, 5, bias=False), (2, 3, 8), 2 * 3 * 8 * 5),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 10, 12), 2 * 10 * 12 * 4 * 6 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 10, 12), 5 * 6 * 4 * 6 * 9),
        (nn.Conv3d(8, 8, 3, padding=1, groups=8), (1, 8, 4, 5, 6), 4 * 5 * 6 * 8 * 27),
        (nn.Conv2d(4, 8, 1, groups=2), (1, 4, 5, 5), 25 * 4 * 8 // 2),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 7), 5 * 7 * 4 * 6 * 4),
        (nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(2)), (1, 4, 8, 8), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_hand_computed_macs(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert total(model.eval(), torch.zeros(shape)) == macs


class Attention(nn.Module):
    def __init__(self, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)


class PlainAttention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1)).softmax(-1) @ value


@given(st.tuples(*[st.integers(1, 5)] * 5))
def test_attention_counts_both_products_however_it_is_written(sizes: tuple[int, ...]) -> None:
    batch, heads, queries, keys, dim = sizes
    inputs = torch.zeros(batch, heads, queries, dim), torch.zeros(batch, heads, keys, dim), torch.zeros(batch, heads, keys, dim)
    expected = 2 * batch * heads * queries * keys * dim
    assert total(Attention(), *inputs) == expected
    assert total(Attention(torch.zeros(queries, keys)), *inputs) == expected
    assert total(PlainAttention(), *inputs) == expected


def test_attention_counts_under_autocast() -> None:
    query = torch.zeros(1, 2, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert total(Attention(), query.bfloat16(), query.bfloat16(), query.bfloat16()) == 2 * 2 * 16 * 16 * 8


def test_fused_transformer_layer_is_counted() -> None:
    tokens, dim, hidden = 6, 8, 16
    layer = nn.TransformerEncoderLayer(dim, 2, hidden, batch_first=True).eval()
    expected = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    assert total(layer, torch.zeros(1, tokens, dim)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_shared_parameters_count_once_and_buffers_not() -> None:
    first = nn.Linear(4, 3)
    assert count_parameters(nn.Sequential(first, first, nn.BatchNorm1d(3))) == 4 * 3 + 3 + 2 * 3


def segformer3d_macs(side: int) -> tuple[int, int]:
    """The published structure by hand, layer by layer, at side**3 voxels: convolutions and linear layers; attention."""
    linear = attention = 0
    in_dim, width, finest = 4, 256, (side // 4) ** 3
    for stage, (dim, kernel, reduction) in enumerate(zip((32, 64, 160, 256), (7, 3, 3, 3), (4, 2, 1, 1), strict=True)):
        tokens = (side // 4 // 2**stage) ** 3
        keys = (side // 4 // 2**stage // reduction) ** 3
        linear += tokens * dim * in_dim * kernel**3  # patch embedding
        reducing = keys * dim * dim * reduction**3 if reduction > 1 else 0
        projections = 2 * tokens * dim * dim + keys * dim * 2 * dim
        mlp = 2 * tokens * dim * 4 * dim + tokens * 4 * dim * 27
        linear += 2 * (reducing + projections + mlp)  # two blocks
        attention += 2 * (2 * tokens * keys * dim)
        linear += tokens * dim * width  # decoder
        in_dim = dim
    return linear + finest * 4 * width * width + finest * width * 3, attention


def test_segformer3d_costs_what_its_page_says() -> None:
    linear, attention = segformer3d_macs(128)
    assert linear / 1e9 == pytest.approx(12.7, abs=0.05)
    assert (linear + attention) / 1e9 == pytest.approx(15.6, abs=0.1)
    pytest.importorskip("vsuite.medical")
    plain, fast = (subject.build() for subject in forms("segformer3d", plain=True))
    assert count_parameters(fast) == count_parameters(plain) == 4_525_251
    for side in (32, 64):
        volume = torch.zeros(1, 4, side, side, side)
        assert total(plain, volume) == sum(segformer3d_macs(side))
    assert total(fast, volume) < total(plain, volume)


def test_spread() -> None:
    spread = Spread.of([float(value) for value in range(100, -1, -1)])
    assert spread == Spread(50.0, 10.0, 90.0, 101)


def test_calls_take_turns_and_are_told_apart() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    slow, fast = time_in_turn([lambda: call("A", 0.02), lambda: call("B", 0.002)], seconds=0.0)
    assert len(slow) == len(fast) == MIN_REPEATS
    assert order[-2 * MIN_REPEATS :] == ["A", "B"] * MIN_REPEATS
    assert min(slow) >= 0.02 > 0.002 <= min(fast)


def test_measure_a_model_of_ones_own() -> None:
    found = measure(nn.Linear(64, 32), torch.zeros(4, 64), seconds=0.05, threads=1)
    assert found.parameters == 64 * 32 + 32
    assert found.total_macs == 4 * 64 * 32
    assert found.flops == 2 * found.total_macs
    assert found.latency.p10 <= found.latency.median <= found.latency.p90
    assert found.throughput == pytest.approx(4 / found.latency.median)
    assert found.memory is None


def test_conditions_put_threads_back_and_check_themselves() -> None:
    before = torch.get_num_threads()
    with Conditions((1,), threads=before + 1, precision="bf16").applied():
        assert torch.get_num_threads() == before + 1
        assert (torch.zeros(2, 2) @ torch.zeros(2, 2)).dtype == torch.bfloat16
    assert torch.get_num_threads() == before
    for wrong in (
        {"size": ()},
        {"size": (0, 3)},
        {"size": (1,), "batch_size": 0},
        {"size": (1,), "threads": 0},
        {"size": (1,), "precision": "fp8"},
    ):
        with pytest.raises(InputError):
            Conditions(**wrong)


def test_memory_is_the_models_alone_whatever_this_process_holds() -> None:
    ballast = torch.ones(600 * MIB // 4)  # a fresh process must not inherit this peak
    assert process_memory()[1] > 600 * MIB
    subject = Subject("linear", "fast", "torch.nn:Linear", {"in_features": 4096, "out_features": 16384, "bias": False})
    found = peak_memory(subject, Conditions((4096,)))
    del ballast
    assert 256 * MIB <= found < 400 * MIB


def test_memory_of_a_model_that_cannot_be_built() -> None:
    with pytest.raises(InputError, match="process of its own failed"):
        peak_memory(Subject("linear", "fast", "torch.nn:Linear", {"in_features": -1, "out_features": 2}), Conditions((3,)))


def test_tensors_of_nested_outputs() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [len(tensor) for tensor in tensors({"x": a, "y": [b, (c, None, "text")]})] == [1, 2, 3]


def test_three_digits() -> None:
    assert [three_digits(value) for value in (0.0123, 1.2345, 12.345, 123.45, 12345.6)] == ["0.012", "1.23", "12.3", "123", "12346"]


def test_forms_check_their_names() -> None:
    pytest.importorskip("vsuite.medical")
    with pytest.raises(InputError, match="did you mean 'segformer3d'"):
        forms("segformer3")
    with pytest.raises(InputError, match="did you mean 'num_classes'"):
        forms("segformer3d", {"num_clases": 2})
    assert [subject.form for subject in forms("segformer3d", plain=True, optimized=True, compiled=True)] == [
        "plain",
        "fast",
        "optimized",
        "compiled",
    ]


def test_forms_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vsuite.medical")
    memory = {"plain": 400 * MIB, "fast": 100 * MIB, "optimized": 50 * MIB}
    monkeypatch.setattr("vsuite.core.bench.comparison.peak_memory", lambda subject, _: memory[subject.form])
    conditions = Conditions((2, 16, 16, 16), threads=1, seconds=0.0)
    subjects = forms("segformer3d", {"in_channels": 2}, plain=True, optimized=True)
    results = compare(subjects, conditions)
    plain, fast, optimized = results
    assert plain.comparison is None
    for result in (fast, optimized):
        assert result.comparison is not None
        assert result.comparison.baseline == "segformer3d, plain"
        assert 0 < result.comparison.relative_difference < 1e-4
        assert result.comparison.speed_up.median > 0
        assert result.comparison.memory_ratio == memory[result.subject.form] / memory["plain"]
    print_results([(conditions, result) for result in results])
    out = capsys.readouterr().out
    assert "input 1x2x16x16x16, fp32" in out
    assert [line.split()[0] for line in out.splitlines() if line].count("segformer3d,") == 3  # plain, optimized, optimized compared
    write_results(tmp_path / "bench.json", [(conditions, result) for result in results])
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [entry["form"] for entry in content] == ["plain", "fast", "optimized"]
    assert content[1]["flops"] == 2 * content[1]["total_macs"] == 2 * sum(content[1]["macs"].values())
    assert content[1]["conditions"]["size"] == [2, 16, 16, 16]


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="linear does not run on an input of 1x3 on cpu"):
        compare([Subject("linear", "fast", "torch.nn:Linear", {"in_features": 4, "out_features": 2})], Conditions((3,)))
    with pytest.raises(InputError, match="linear does not run on an input of 1x1000000000x1000000000 on cpu"):
        compare([Subject("linear", "fast", "torch.nn:Linear", {"in_features": 4, "out_features": 2})], Conditions((10**9, 10**9)))


@pytest.mark.slow
def test_compiled_form() -> None:
    pytest.importorskip("vsuite.medical")
    results = compare(forms("segformer3d", compiled=True), Conditions((4, 16, 16, 16), threads=1, seconds=0.0))
    assert results[1].comparison is not None
    assert results[1].comparison.relative_difference < 1e-4
    assert results[1].measurement.total_macs == results[0].measurement.total_macs
