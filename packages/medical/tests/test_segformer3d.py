"""SegFormer3D: properties that hold whatever the weights are."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, create_model, optimize_for_inference
from vsuite.medical.bench.plain.segformer3d import build as build_plain
from vsuite.medical.models.segformer3d import SegFormer3D

TINY: dict[str, Any] = {
    "in_channels": 2,
    "embed_dims": (8, 8, 12, 16),
    "num_heads": (1, 2, 3, 4),
    "depths": (1, 2, 1, 1),
    "mlp_ratios": (2, 2, 2, 2),
    "decoder_head_embedding_dim": 16,
    "num_classes": 3,
}
SIDES = st.tuples(*[st.integers(13, 40)] * 3)


def randomised(model: nn.Module) -> nn.Module:
    """Weights, norms and running statistics far from where they start, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif value.ndim > 1:
            value.copy_(noise / math.sqrt(value[0].numel()))
        else:
            value.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


def tiny(**options: Any) -> nn.Module:
    return randomised(SegFormer3D(**TINY | options))


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# What it computes


@pytest.fixture(scope="module")
def three_forms() -> tuple[nn.Module, nn.Module, nn.Module]:
    fast, plain = tiny().double(), randomised(build_plain(**TINY)).double()
    plain.load_state_dict(fast.state_dict())
    return fast, plain, optimize_for_inference(fast)


@given(SIDES, st.integers(1, 2))
@settings(deadline=None, max_examples=25)
def test_any_side_equals_the_plain_form(three_forms: tuple[nn.Module, nn.Module, nn.Module], sides: tuple[int, ...], batch: int) -> None:
    fast, plain, folded = three_forms
    x = image(batch, 2, *sides, dtype=torch.float64)
    before = x.clone()
    with torch.inference_mode():
        want = plain(x)
        assert want.shape == (batch, 3, *(4 * math.ceil(side / 4) for side in sides))
        torch.testing.assert_close(fast(x), want)
        torch.testing.assert_close(folded(x), want)
    assert torch.equal(x, before)


@pytest.mark.parametrize("scale", ["num_heads", "head_dim"])
def test_gradients_equal_those_of_the_plain_form(scale: str) -> None:
    fast, plain = tiny(attention_scale=scale).double(), build_plain(**TINY, attention_scale=scale).double()
    plain.load_state_dict(fast.state_dict())
    x = image(2, 2, 21, 34, 40, dtype=torch.float64)
    direction = image(2, 3, 24, 36, 40, dtype=torch.float64)
    for model in (fast.train(), plain.train()):
        (model(x) * direction).sum().backward()
    for (name, ours), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, ours), other in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
@torch.inference_mode()
def test_permuting_axes_permutes_the_output(order: tuple[int, ...]) -> None:
    model, turned = tiny().double(), tiny().double()
    axes = (0, 1, *(axis + 2 for axis in order))
    turned.load_state_dict({name: value.permute(axes) if value.ndim == 5 else value for name, value in model.state_dict().items()})
    x = image(1, 2, 16, 24, 37, dtype=torch.float64)
    torch.testing.assert_close(turned(x.permute(axes)), model(x).permute(axes))


@torch.inference_mode()
def test_a_sample_does_not_see_its_batch() -> None:
    model = tiny().double()
    x = image(3, 2, 17, 20, 33, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([model(sample[None]) for sample in x]), model(x))


@torch.inference_mode()
def test_the_memory_layout_of_the_input_does_not_matter() -> None:
    model = tiny().double()
    x = image(2, 2, 20, 24, 28, dtype=torch.float64)
    want = model(x)
    for other in (
        x.to(memory_format=torch.channels_last_3d),
        x.transpose(2, 4).contiguous().transpose(2, 4),
        x.repeat(1, 1, 1, 1, 2)[..., :28],
    ):
        torch.testing.assert_close(model(other), want)


@pytest.mark.parametrize(("stride", "side", "out"), [(1, 9, 9), (2, 21, 22), (3, 22, 24), (4, 30, 32)])
@torch.inference_mode()
def test_the_first_stride_sets_the_size_of_the_output(stride: int, side: int, out: int) -> None:
    options = TINY | {"patch_stride": (stride, 2, 2, 2)}
    model, plain = tiny(patch_stride=(stride, 2, 2, 2)), build_plain(**options).eval()
    plain.load_state_dict(model.state_dict())
    x = image(1, 2, side, side, side + 1)
    assert model(x).shape[2:4] == (out, out)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_fewer_stages() -> None:
    options = {key: value[:2] if isinstance(value, tuple) else value for key, value in TINY.items()}
    pairs = {"sr_ratios": (2, 1), "patch_kernel_size": (3, 3), "patch_stride": (2, 2), "patch_padding": (1, 1)}
    model, plain = tiny(**options, **pairs), build_plain(**options, **pairs).eval()
    plain.load_state_dict(model.state_dict())
    x = image(1, 2, 11, 12, 13)
    assert model(x).shape == (1, 3, 12, 12, 14)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


# The smallest side


def test_smallest_side_as_published() -> None:
    assert create_model("segformer3d").min_side == 13
    model = tiny()
    assert model(image(1, 2, 13, 13, 13)).shape == (1, 3, 16, 16, 16)
    with pytest.raises(InputError, match="takes sides from 13 voxels up; got 16 x 12 x 16"):
        model(image(1, 2, 16, 12, 16))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 5]), st.integers(1, 4)), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=25)
def test_the_smallest_side_is_the_smallest(stages: list[tuple[int, int, int]]) -> None:
    strides, kernels, reductions = zip(*stages, strict=True)
    count = len(stages)
    model = SegFormer3D(
        in_channels=1,
        embed_dims=[2] * count,
        num_heads=[1] * count,
        depths=[1] * count,
        mlp_ratios=[1] * count,
        sr_ratios=reductions,
        patch_stride=strides,
        patch_kernel_size=kernels,
        patch_padding=[kernel // 2 for kernel in kernels],
        decoder_head_embedding_dim=2,
        num_classes=1,
    ).eval()
    model(torch.zeros(1, 1, *[model.min_side] * 3))
    if model.min_side > 1:
        model.min_side, too_small = 1, model.min_side - 1  # past the check, the operators themselves refuse
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 1, *[too_small] * 3))


# Training


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - ((2 * (p * target).sum((2, 3, 4)) + 1e-5) / ((p + target).sum((2, 3, 4)) + 1e-5)).mean()


def spheres(batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Images of a noisy ball and its three nested regions."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, side)
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    target = torch.stack([(radius < r).float() for r in (0.9, 0.7, 0.5)]).expand(batch, -1, -1, -1, -1)
    noise = torch.randn(batch, 2, side, side, side, generator=generator)
    return 1 - radius + 0.1 * noise, target


def test_it_trains() -> None:
    """Thirty steps bring the Dice loss under half of its start, and every parameter gets a gradient."""
    torch.manual_seed(0)
    model = SegFormer3D(**TINY)
    x, target = spheres(2, 40)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(30):
        loss = dice_loss(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses


def test_dropout_works_in_training_only() -> None:
    model = tiny(decoder_dropout=0.5)
    x = image(1, 2, 16, 16, 16)
    assert torch.equal(model(x), model(x))
    model.segformer_decoder.dropout.train()
    assert not torch.equal(model(x), model(x))


def test_training_and_inference_may_alternate() -> None:
    """What is cached in one mode must serve the other."""
    model = tiny()
    x = image(1, 2, 19, 22, 25)
    with torch.inference_mode():
        want = model(x).clone()
    model(x).sum().backward()
    with torch.no_grad():
        assert torch.equal(model(x), want)
    copy = SegFormer3D(**TINY)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.eval()(x), want)


def test_the_initialisation_follows_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(SegFormer3D(**TINY).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Other precisions, compilers and formats


@pytest.mark.parametrize("fold", [False, True])
def test_bf16_autocast(fold: bool) -> None:
    model = optimize_for_inference(tiny()) if fold else tiny()
    x = image(1, 2, 21, 24, 32)
    with torch.inference_mode():
        want = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(x)
    assert (got.float() - want).abs().max() < 0.1 * want.std()


def test_bf16_autocast_trains() -> None:
    torch.manual_seed(0)
    model = SegFormer3D(**TINY)
    x, target = spheres(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    dice_loss(logits.float(), target).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


@torch.inference_mode()
def test_pure_half_precision() -> None:
    model, x = tiny(), image(1, 2, 16, 20, 24)
    want = model(x)
    got = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.15 * want.std()


def test_tracing_keeps_the_outputs() -> None:
    model, x = tiny(), image(1, 2, 21, 24, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), model(x))
        torch.testing.assert_close(traced(2 * x), model(2 * x))


def test_shapes_may_be_found_without_computing() -> None:
    """On the meta device and under fake tensors; a real call afterwards is untouched by it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert SegFormer3D(**TINY).eval().to("meta")(torch.empty(1, 2, 23, 26, 29, device="meta")).shape == (1, 3, 24, 28, 32)
    model = tiny()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.empty(1, 2, 23, 26, 29)).shape == (1, 3, 24, 28, 32)
    assert type(model(image(1, 2, 23, 26, 29)).detach()) is Tensor


@pytest.mark.parametrize("fold", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnx(fold: bool, tmp_path: Path) -> None:
    import onnxruntime

    model = optimize_for_inference(tiny()) if fold else tiny()
    x = image(1, 2, 21, 24, 32)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = torch.rand_like(x)
    with torch.inference_mode():
        for sample in (x, other):
            (got,) = session.run(["logits"], {"image": sample.numpy()})
            torch.testing.assert_close(torch.from_numpy(got), model(sample), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled() -> None:
    """Two stages are enough: they hold every operator."""
    options = {key: value[:2] if isinstance(value, tuple) else value for key, value in TINY.items()} | {"depths": (1, 1)}
    options |= {"sr_ratios": (2, 1), "patch_kernel_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    model, x = tiny(**options), image(1, 2, 21, 24, 32)
    compiled = torch.compile(model, fullgraph=True)
    grads = []
    for form in (model, compiled):
        model.zero_grad()
        form(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for ours, other in zip(*grads, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-2, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)


def test_a_model_survives_pickling_and_copying() -> None:
    model, x = tiny(), image(1, 2, 16, 16, 16)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))


# Errors


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 32, 32, 32), r"takes B, 2, D, H, W; got 2, 32, 32, 32"),
        (torch.zeros(1, 4, 32, 32, 32), r"takes B, 2, D, H, W; got 1, 4, 32, 32, 32"),
        (torch.zeros(1, 2, 32, 32), r"takes B, 2, D, H, W"),
        (torch.zeros(1, 2, 32, 32, 32, dtype=torch.int16), r"floating-point voxels; got torch\.int16"),
        (torch.zeros(1, 2, 32, 32, 8), r"sides from 13 voxels up; got 32 x 32 x 8"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny()(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dims": (8, 8, 12)}, "has 4 entries, embed_dims 3"),
        ({"num_heads": (1, 2, 5, 8)}, "12 is not by 5"),
        ({"depths": (1, 0, 1, 1)}, r"depths must be 1 or more; got \[1, 0, 1, 1\]"),
        ({"patch_padding": (3, -1, 1, 1)}, "patch_padding must be 0 or more"),
        ({"in_channels": 0}, "in_channels must be 1 or more; got 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more; got 0"),
        ({"decoder_dropout": 1.0}, r"decoder_dropout must lie in \[0, 1\); got 1\.0"),
        ({"attention_scale": "heads"}, "attention_scale is 'num_heads' or 'head_dim'; got 'heads'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("segformer3d", **TINY | options)


def test_a_misspelt_option() -> None:
    with pytest.raises(InputError, match="unknown option of segformer3d 'embed_dim'; did you mean 'embed_dims'"):
        create_model("segformer3d", embed_dim=(8, 8, 12, 16))
