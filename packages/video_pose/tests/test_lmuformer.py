"""LMUFormer: the memory, the neurons, streams, training, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, create_model, load_published, save_weights
from vsuite.core.bench import forms
from vsuite.core.optimize import optimize_for_inference
from vsuite.video_pose.bench.plain.lmuformer import plain_memory, plain_neurons
from vsuite.video_pose.models.lmuformer import LIF, LMUCell, LMUFormer, PermutedMNIST, memory

STREAMING = ("lmu", "spiking", "spiking_post")
ALL = (*STREAMING, "spiking_attention")


def awake(model: nn.Module) -> nn.Module:
    """Norms that let neurons fire: fresh ones leave whole layers silent, and a silent network streams too easily."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for value, low, high in ((module.weight, 3, 5), (module.bias, 0, 1), (module.running_mean, -0.1, 0.1)):
                value.data.uniform_(low, high, generator=generator)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
    return model.double().eval()


def small(form: str = "lmu", **options) -> LMUFormer:
    torch.manual_seed(0)
    sizes = {"in_channels": 6, "num_classes": 5, "embed_dim": 16, "mlp_ratio": 2, "theta": 12.0, "num_heads": 4}
    return LMUFormer(**(sizes | {"form": form} | options))


def samples(batch: int, length: int, channels: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15)
@given(st.integers(1, 40), st.floats(1.5, 60), st.integers(1, 80), st.integers(1, 3))
def test_the_memory_is_one_in_three_forms(size: int, theta: float, length: int, batch: int) -> None:
    cell = LMUCell(2, 3, size, theta)
    u = torch.rand(length, batch)
    want = plain_memory(cell, u)
    torch.testing.assert_close(cell.memory(u), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cell.memory(2 * u), 2 * cell.memory(u))
    longest, memory.LONGEST_MATRIX = memory.LONGEST_MATRIX, 0  # by Fourier transform
    try:
        torch.testing.assert_close(cell.memory(u), want, rtol=1e-4, atol=1e-5)
    finally:
        memory.LONGEST_MATRIX = longest


@pytest.mark.parametrize("length", [10, 128, 600])
def test_the_folded_cell_is_the_plain_one(length: int) -> None:
    torch.manual_seed(0)
    cell, x = LMUCell(5, 7, 32, 64.0), torch.randn(length, 2, 5)
    with torch.no_grad():
        m = plain_memory(cell, torch.relu(cell.W_u(x)).squeeze(-1))
        want = torch.relu(cell.W_h(torch.cat([m, x], -1)))
        torch.testing.assert_close(cell(x), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(optimize_for_inference(cell)(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "theta"), [(256, 128.0), (468, 784.0), (24, 40.0), (64, 7.5), (8, 4.0)])
def test_the_window_can_be_read_from_the_state_space(size: int, theta: float) -> None:
    assert memory.theta_of(*memory.state_space(size, theta)) == pytest.approx(theta, rel=1e-4)


def test_the_memory_holds_the_window() -> None:
    """Legendre polynomials of what it remembers give back the signal, here a slow sine, one window back in time."""
    a, b = memory.state_space(16, 50.0)
    signal = torch.sin(torch.arange(200) / 15)
    m = memory.causal_convolution(signal[:, None], memory.impulse_response(a, b, 200))[-1, 0].double()
    for back in (0, 10, 25, 49):
        value = np.polynomial.legendre.legval(2 * (back + 0.5) / 50 - 1, m.numpy())
        assert value == pytest.approx(float(np.sin((199 - back) / 15)), abs=0.06)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([0.5, 1.0]), st.sampled_from([1.0, 2.0, 3.5]))
def test_neurons_and_their_gradient(seed: int, length: int, threshold: float, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(length, 2, 3, dtype=torch.float64, generator=generator) + 0.3).requires_grad_()
    g = torch.randn(length, 2, 3, dtype=torch.float64, generator=generator)
    neurons = LIF(threshold, tau)
    spikes = neurons(x)
    assert torch.equal(spikes.detach(), plain_neurons(x.detach(), threshold, tau))
    with torch.no_grad():
        assert torch.equal(neurons(x), spikes)
    v, total = torch.zeros(2, 3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for now, weight in zip(x, g, strict=True):  # the same with a smooth step whose value is never used
        v = v + (now - v) / tau
        total = total + (torch.sigmoid(4 * (v - threshold)) * weight).sum()
        v = v * (v < threshold)
    torch.testing.assert_close(torch.autograd.grad((spikes * g).sum(), x)[0], torch.autograd.grad(total, x)[0])


def test_neurons_step_by_step() -> None:
    neurons, x, v = LIF(), 2 * samples(20, 3).transpose(0, 1), None
    for now, want in zip(x, neurons(x), strict=True):
        spikes, v = neurons.step(now, v)
        assert torch.equal(spikes, want)
    assert neurons(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(InputError, match="threshold must be above 0"):
        LIF(0.0)


@pytest.mark.parametrize("form", STREAMING)
@pytest.mark.parametrize("length", [1, 3, 5, 6, 40])
@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_streams_are_exact(form: str, length: int, chunk: int) -> None:
    model, x = awake(small(form, depth=2)), samples(2, length)
    with torch.no_grad():
        want = model.running_logits(x)
        torch.testing.assert_close(want[:, -1], model(x))
    stream = model.stream()
    for _ in range(2):  # a finished stream begins anew
        answers = [stream.push_chunk(part) for part in x.split(chunk, 1)]
        assert sum(0 if answer is None else answer.shape[1] for answer in answers) == max(0, length - stream.delay)
        got = torch.cat([answer for answer in (*answers, stream.finish()) if answer is not None], 1)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    if length == 40:
        assert want.std(1).min() > 1e-4  # the network says something


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(0, 1000), st.sampled_from(STREAMING))
def test_streams_of_any_input(length: int, seed: int, form: str) -> None:
    model, x = awake(small(form)), samples(1, length, seed=seed)
    stream = model.stream()
    late = [stream.push(frame) for frame in x.unbind(1)]
    assert [answer is None for answer in late] == [t < 5 for t in range(length)]
    with torch.no_grad():
        torch.testing.assert_close(stream.finish()[:, -1], model(x), rtol=1e-5, atol=1e-6)


def held(thing: object, seen: set[int]) -> int:
    """Numbers in the tensors that an object holds, at any depth."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return thing.untyped_storage().nbytes() // thing.element_size()
    if isinstance(thing, dict):
        return sum(held(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple) or type(thing).__name__ == "deque":
        return sum(held(value, seen) for value in thing)
    return held(vars(thing), seen) if hasattr(thing, "__dict__") and not isinstance(thing, type) else 0


@pytest.mark.parametrize("form", STREAMING)
@pytest.mark.parametrize("window", [None, 4])
def test_streams_take_constant_memory(form: str, window: int | None) -> None:
    stream = awake(small(form)).stream(window=window)
    stream.push_chunk(samples(1, 20))
    before = held(stream, set())
    stream.push_chunk(samples(1, 200))
    assert held(stream, set()) == before


def test_a_stream_with_a_window() -> None:
    model, x = awake(small()), samples(1, 30)
    with torch.no_grad():
        features = model.forward_features(x)
        want = [model.head(features[..., max(0, t - 3) : t + 1].mean(-1)) for t in range(30)]
    stream = model.stream(window=4)
    got = torch.cat([stream.push_chunk(x), stream.finish()], 1)
    torch.testing.assert_close(got, torch.stack(want, 1), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="window of a stream must be 1 or more"):
        model.stream(window=0)


def test_a_stream_keeps_nothing_of_the_callers_buffer() -> None:
    model, x = awake(small()), samples(1, 12)
    stream, buffer = model.stream(), torch.empty(1, 6, dtype=torch.float64)
    for frame in x.unbind(1):
        stream.push(buffer.copy_(frame))
    buffer.zero_()
    with torch.no_grad():
        torch.testing.assert_close(stream.finish()[:, -1], model(x), rtol=1e-5, atol=1e-6)


def test_what_a_stream_refuses() -> None:
    with pytest.raises(InputError, match=r"does not stream: its self-attention is not causal"):
        small("spiking_attention").stream()
    stream = awake(small()).stream()
    assert stream.finish() is None
    stream.push(torch.zeros(2, 6, dtype=torch.float64))
    for frame in (torch.zeros(1, 6), torch.zeros(2, 5), torch.zeros(6), torch.zeros(2, 3, 3), torch.zeros(0, 6)):
        with pytest.raises(InputError, match="the stream takes frames of 2, 6"):
            stream.push(frame)
    with pytest.raises(InputError, match="finite"):
        stream.push(torch.full((2, 6), float("nan")))


@pytest.mark.parametrize("form", STREAMING)
def test_nothing_looks_further_ahead_than_five_samples(form: str) -> None:
    model, x = awake(small(form)), samples(1, 30)
    changed = x.clone()
    changed[:, 20] += 3
    with torch.no_grad():
        first, second = model.forward_features(x), model.forward_features(changed)
    torch.testing.assert_close(first[..., :15], second[..., :15], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(first[..., 15:20], second[..., 15:20])


@pytest.mark.parametrize("form", ALL)
def test_sequences_do_not_depend_on_each_other(form: str) -> None:
    model, x = awake(small(form)), samples(3, 25)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(model(x[1:2]), want[1:2], rtol=1e-6, atol=1e-9)
        assert torch.equal(model(x), want)  # no potential is left over
        assert want.std(0).min() > 0
        torch.testing.assert_close(model(x.unflatten(2, (2, 3))), want)


@pytest.mark.parametrize("form", ALL)
def test_optimized_and_plain_forms(form: str) -> None:
    options = {"form": form, "in_channels": 6, "num_classes": 5, "embed_dim": 16, "mlp_ratio": 2.0, "theta": 12.0, "num_heads": 4}
    model, x = awake(LMUFormer(**options)), samples(2, 40)
    plain = awake(forms("lmuformer_speech", options, plain=True)[0].build())
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(plain(x), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimize_for_inference(model)(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spiking", [False, True])
def test_permuted_mnist(spiking: bool) -> None:
    torch.manual_seed(0)
    model = awake(PermutedMNIST(spiking=spiking, hidden_size=12, memory_size=20, theta=30.0))
    x = 3 * samples(2, 50, 1)
    plain = forms("lmuformer_psmnist", {"spiking": spiking, "hidden_size": 12, "memory_size": 20, "theta": 30.0}, plain=True)[0].build()
    plain.double().load_state_dict(model.state_dict())
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(plain(x), want, rtol=1e-5, atol=1e-6)
    stream = model.stream()
    assert stream.delay == 0
    torch.testing.assert_close(stream.push_chunk(x)[:, -1], want, rtol=1e-5, atol=1e-6)
    assert stream.finish() is None
    again = load_published({f"module.{name}": value.float() for name, value in model.state_dict().items()})
    assert again.built_from["options"] | {"spiking": spiking, "hidden_size": 12, "memory_size": 20} == again.built_from["options"]
    assert again.built_from["assumed"] == {"theta": 784.0}


def test_what_is_wrong_is_said() -> None:
    model = small()
    for shape in ((2, 10), (2, 10, 5), (2, 0, 6), (0, 4, 6), (2, 10, 2, 2), (2, 5, 6, 1, 1)):
        with pytest.raises(InputError, match="LMUFormer takes finite floating-point B, T, 6"):
            model(torch.zeros(shape))
    with pytest.raises(InputError, match=r"torch\.int64"):
        model(torch.zeros(1, 4, 6, dtype=torch.int64))
    with pytest.raises(InputError, match="NaN or infinite"):
        model(torch.full((1, 4, 6), float("inf")))
    for options, problem in (
        ({"form": "spikes"}, "did you mean 'spiking'"),
        ({"depth": 0}, "depth must be 1 or more"),
        ({"theta": 0.0}, "theta in"),
        ({"form": "spiking_attention", "num_heads": 3}, "num_heads must divide embed_dim 16"),
        ({"dropout": 1.0}, "dropout must lie in"),
    ):
        with pytest.raises(InputError, match=problem):
            small(**options)


@pytest.mark.parametrize("form", ALL)
def test_it_trains(form: str) -> None:
    model = small(form, drop_path_rate=0.05, dropout=0.05).train()
    target = torch.arange(15) % 5
    x = (0.5 * samples(15, 16) + 2 * samples(5, 1, seed=1)[target]).float()
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    losses, reached = [], set()
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
        losses.append(loss.item())
    assert reached == {name for name, _ in model.named_parameters()}
    assert np.mean(losses[-5:]) < (0.8 if form == "spiking_attention" else 0.7) * losses[0]


def test_weights_are_saved_and_found_again(tmp_path: Path) -> None:
    options = {"num_classes": 4, "in_channels": 51, "embed_dim": 16}
    model = create_model("lmuformer_pose", **options).eval()
    save_weights(model, tmp_path / "pose.safetensors")
    again = create_model("lmuformer_pose", weights=tmp_path / "pose.safetensors").eval()
    x = torch.randn(1, 20, 17, 3)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    again.reset_head(9)
    assert again(x).shape == (1, 9)


@pytest.mark.parametrize("form", ALL)
def test_autocast(form: str) -> None:
    model, x = awake(small(form)).float(), samples(2, 40).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert got.isfinite().all()
    if form == "lmu":  # a spike that flips changes the others by whole steps
        with torch.no_grad():
            want = model(x)
        assert (got - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("form", ALL)
def test_compiled(form: str) -> None:
    model, x = awake(small(form)).float(), samples(2, 16).float()
    model(x).square().sum().backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model)
    compiled(x).square().sum().backward()
    for p, gradient in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ALL)
def test_onnx(form: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = awake(small(form)).float(), samples(2, 16).float()
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        want = model(x)
    assert want.std() > 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
