"""TransUNet: properties that hold whatever the weights are."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model, optimize_for_inference
from vsuite.medical.bench.plain.transunet import build as build_plain
from vsuite.medical.bench.plain.transunet import predict_slices as predict_one_by_one
from vsuite.medical.inference.slices import predict_slices, zoom_slice
from vsuite.medical.losses import transunet_dice_ce
from vsuite.medical.models.resnet_v2 import StandardisedConv2d
from vsuite.medical.models.transunet import TransUNet

TINY: dict[str, Any] = {
    "num_classes": 3,
    "image_size": 32,
    "embed_dim": 16,
    "mlp_dim": 24,
    "num_heads": 2,
    "depth": 2,
    "resnet_depths": (1, 2, 1),
    "resnet_width": 32,
    "decoder_channels": (16, 12, 8, 4),
    "dropout": 0.0,
}
NO_RESNET = {"resnet_depths": (), "num_skips": 0}


def randomised(model: nn.Module) -> nn.Module:
    """Weights, norms and running statistics far from where they start, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif name.endswith("position_embeddings"):
            value.copy_(noise)
        elif value.ndim > 1:
            mean = 0.1 if "hybrid_model" in name else 0.0  # what standardising takes away
            value.copy_(noise / math.sqrt(value[0].numel()) + mean)
        else:
            value.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


def tiny(**options: Any) -> TransUNet:
    model = randomised(TransUNet(**TINY | options))
    assert isinstance(model, TransUNet)
    return model


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# What it computes


@given(
    side=st.integers(2, 5),
    batch=st.integers(1, 2),
    channels=st.sampled_from([1, 2, 3]),
    num_skips=st.integers(0, 3),
    has_resnet=st.booleans(),
    patch_size=st.sampled_from([8, 16, 32]),
)
@settings(deadline=None, max_examples=15)
def test_it_equals_the_plain_form(side: int, batch: int, channels: int, num_skips: int, has_resnet: bool, patch_size: int) -> None:
    patch_size = 16 if has_resnet else patch_size
    config = TINY | {"image_size": patch_size * side, "in_channels": channels, "patch_size": patch_size}
    config |= {"num_skips": num_skips} if has_resnet else NO_RESNET
    fast, plain = randomised(TransUNet(**config)).double(), build_plain(**config).double().eval()
    plain.load_state_dict(fast.state_dict())
    x = image(batch, channels, patch_size * side, patch_size * side, dtype=torch.float64)
    before = x.clone()
    with torch.inference_mode():
        want = plain(x)
        assert want.shape == (batch, 3, 16 * side, 16 * side)
        torch.testing.assert_close(fast(x), want)
        torch.testing.assert_close(optimize_for_inference(fast)(x), want)
    assert torch.equal(x, before)


def test_gradients_equal_those_of_the_plain_form() -> None:
    fast, plain = tiny(image_size=48).double(), build_plain(**TINY | {"image_size": 48}).double()
    plain.load_state_dict(fast.state_dict())
    x, direction = image(2, 1, 48, 48, dtype=torch.float64), image(2, 3, 48, 48, dtype=torch.float64)
    for model in (fast.train(), plain.train()):
        (model(x) * direction).sum().backward()
    for (name, ours), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


@given(st.integers(1, 5), st.sampled_from([1, 3, 7]), st.integers(1, 2), st.floats(0.1, 10), st.floats(-5, 5))
@settings(deadline=None, max_examples=20)
def test_standardised_weights_forget_scale_and_shift(channels: int, kernel: int, stride: int, scale: float, shift: float) -> None:
    if channels * kernel == 1:
        return  # one number has no variance
    conv = StandardisedConv2d(channels, 4, kernel, stride).double()
    x = image(1, channels, 9, 11, dtype=torch.float64)
    want, flat = conv(x), conv.standardised_weight().flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    conv.weight.data = conv.weight.data * 1e3  # far above the epsilon, where the rule is exact
    large = conv(x)
    conv.weight.data = conv.weight.data * scale + shift
    torch.testing.assert_close(conv(x), large, rtol=1e-4, atol=1e-4)
    assert want.shape == large.shape == (1, 4, -(-9 // stride), -(-11 // stride))


@torch.inference_mode()
def test_one_channel_is_three_equal_ones() -> None:
    model, x = tiny(), image(2, 1, 32, 32)
    torch.testing.assert_close(model(x), model(x.repeat(1, 3, 1, 1)))
    assert set(model.state_dict()) == set(tiny(in_channels=3).state_dict())


@torch.inference_mode()
def test_a_sample_does_not_see_its_batch() -> None:
    model = tiny().double()
    x = image(3, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([model(sample[None]) for sample in x]), model(x))


@torch.inference_mode()
def test_the_memory_layout_of_the_input_does_not_matter() -> None:
    model, x = tiny(in_channels=3), image(2, 3, 32, 32)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(model(other), model(x))


@torch.inference_mode()
def test_skips_and_their_padding() -> None:
    """The map at stride 4 lacks a row and a column, which are zero in the decoder's copy; the others are whole."""
    tokens, skips = tiny(image_size=64).forward_features(image(1, 1, 64, 64))
    assert tokens.shape == (1, 16, 16)
    assert [tuple(skip.shape[1:]) for skip in skips] == [(256, 8, 8), (128, 16, 16), (32, 32, 32)]
    assert not skips[1][:, :, -1].any()
    assert not skips[1][..., -1].any()
    assert skips[1][:, :, -2].any()
    assert skips[0][:, :, -1].any()


@torch.inference_mode()
def test_every_skip_matters_and_only_those_asked_for() -> None:
    for count in range(4):
        model = tiny(num_skips=count)
        tokens, skips = model.forward_features(image(1, 1, 32, 32))
        want = model.decoder(tokens, skips)
        for i in range(3):
            changed = [skip + (i == j) for j, skip in enumerate(skips)]
            assert torch.equal(model.decoder(tokens, changed), want) == (i >= count)


def test_the_key_bias_changes_nothing() -> None:
    model, x = tiny().double(), image(1, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        model.transformer.encoder.layer[0].attn.key.bias.add_(3.0)
        torch.testing.assert_close(model(x), want)


def test_models_do_not_share_options() -> None:
    create_model("transunet_r50_vit_b16", **TINY | {"num_skips": 1})
    again = create_model("transunet_r50_vit_b16", **TINY)
    assert again.decoder.blocks[1].conv1[0].in_channels == 16 + 128


# Folding


@torch.inference_mode()
def test_folding_twice_is_folding_once() -> None:
    model, x = tiny(), image(1, 1, 32, 32)
    once = optimize_for_inference(model)
    twice = optimize_for_inference(once)
    torch.testing.assert_close(twice(x), once(x))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in once.modules())
    assert all(module.folded for module in once.modules() if isinstance(module, StandardisedConv2d))
    assert not any(module.folded for module in model.modules() if isinstance(module, StandardisedConv2d))


# Training


def discs(batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Noisy discs in rings, and their label maps."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, side)
    radius = (axis[:, None] ** 2 + axis**2).sqrt().expand(batch, -1, -1)
    radius = radius + 0.3 * torch.rand(batch, 1, 1, generator=generator)
    label = (radius < 0.9).long() + (radius < 0.5).long()
    return (1 - radius + 0.1 * torch.randn(batch, side, side, generator=generator))[:, None], label


def loss_of(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    terms = transunet_dice_ce(model(x), label)
    return terms["dice"] + terms["ce"]


@pytest.mark.parametrize("has_resnet", [True, False])
def test_it_trains(has_resnet: bool) -> None:
    """Thirty steps bring its loss under half of its start, and every parameter but the key's bias gets a gradient."""
    torch.manual_seed(0)
    model = TransUNet(**TINY | {"image_size": 64} | ({} if has_resnet else NO_RESNET))
    x, label = discs(4, 64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(30):
        loss = loss_of(model, x, label)
        optimiser.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any() or name.endswith("attn.key.bias"), name
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses


def test_dropout_works_in_training_only() -> None:
    model, x = tiny(dropout=0.5), image(2, 1, 32, 32)
    assert torch.equal(model(x), model(x))
    model.transformer.train()
    assert not torch.equal(model(x), model(x))


def test_the_initialisation() -> None:
    torch.manual_seed(3)
    model = TransUNet(**TINY)
    torch.manual_seed(3)
    again = TransUNet(**TINY).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert not model.transformer.embeddings.position_embeddings.any()
    fc1 = model.transformer.encoder.layer[0].ffn.fc1
    assert 0 < fc1.bias.abs().max() < 1e-5
    assert 0.8 * math.sqrt(6 / 40) < fc1.weight.abs().max() <= math.sqrt(6 / 40)


def test_the_loss_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    terms = transunet_dice_ce(logits, torch.tensor([[[0, 0]]]))
    assert terms["ce"].item() == pytest.approx(0.5 * math.log(2))
    of_classes = [1 - 2 / 2.5, 1 - 1e-5 / 0.5]  # background: sum(pg) 1, sum(p^2) 0.5, sum(g^2) 2
    assert terms["dice"].item() == pytest.approx(0.25 * sum(of_classes), abs=1e-4)
    with pytest.raises(InputError, match="class_weights must be one an output, 2; got 3"):
        transunet_dice_ce(logits, torch.tensor([[[0, 0]]]), class_weights=(1, 2, 3))
    with pytest.raises(InputError, match="needs a label map"):
        transunet_dice_ce(logits, torch.zeros(1, 2, 1, 2))


# Other precisions, compilers and formats


@pytest.mark.parametrize("fold", [False, True])
@torch.inference_mode()
def test_bf16_autocast(fold: bool) -> None:
    model = optimize_for_inference(tiny()) if fold else tiny()
    x = image(1, 1, 32, 32)
    want = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert (got.float() - want).abs().max() < 0.15 * want.std()


def test_bf16_autocast_trains() -> None:
    torch.manual_seed(0)
    model = TransUNet(**TINY)
    x, label = discs(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, x, label)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


@torch.inference_mode()
def test_pure_half_precision() -> None:
    model, x = tiny(), image(1, 1, 32, 32)
    want = model(x)
    got = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.2 * want.std()


@pytest.mark.parametrize("fold", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnx(fold: bool, tmp_path: Path) -> None:
    import onnxruntime

    model = optimize_for_inference(tiny()) if fold else tiny()
    x, path = image(1, 1, 32, 32), tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        for sample in (x, 1 - x):
            (got,) = session.run(["logits"], {"image": sample.numpy()})
            torch.testing.assert_close(torch.from_numpy(got), model(sample), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled() -> None:
    model, x = tiny(resnet_depths=(1, 1, 1), depth=1), image(1, 1, 32, 32)
    compiled = torch.compile(model, fullgraph=True)
    grads = []
    for form in (model, compiled):
        model.zero_grad()
        form(x).square().mean().backward()
        # the key's bias has no gradient but rounding
        grads.append([p.grad.clone() for name, p in model.named_parameters() if not name.endswith("key.bias")])
    for ours, other in zip(*grads, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-2, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fold", [False, True])
def test_a_model_survives_pickling(fold: bool) -> None:
    model, x = optimize_for_inference(tiny()) if fold else tiny(), image(1, 1, 32, 32)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))


# Volumes, slice by slice


def rings(x: Tensor) -> Tensor:
    """A stand-in for a network: four classes by grey value."""
    return torch.cat([-((x.mean(1, keepdim=True) - k / 3) ** 2) for k in range(4)], 1)


def smooth_volume(*shape: int) -> np.ndarray:
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, [0] * (len(shape) - 2) + [2, 2])
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@given(st.tuples(st.integers(1, 5), st.integers(2, 40), st.integers(2, 40)), st.integers(1, 4), st.integers(8, 40))
@settings(deadline=None, max_examples=30)
def test_batches_give_what_single_slices_give(shape: tuple[int, ...], batch_size: int, size: int) -> None:
    volume = smooth_volume(*shape)
    want = predict_one_by_one(rings, volume, size)
    got = predict_slices(rings, volume, size, batch_size=batch_size)
    assert got.dtype == np.uint8
    assert np.array_equal(got, want)


@given(st.integers(2, 50), st.integers(2, 50), st.integers(2, 50))
@settings(deadline=None, max_examples=30)
def test_zooming_by_matrices_is_the_same_spline(height: int, width: int, size: int) -> None:
    from vsuite.medical.inference.slices import _zoom_by_matrices

    volume = smooth_volume(2, height, width).astype(np.float64)
    got = _zoom_by_matrices(torch.from_numpy(volume)[:, None], (size, size))[:, 0].numpy()
    np.testing.assert_allclose(got, [zoom_slice(one, (size, size)) for one in volume], atol=1e-9)


def test_slices_of_the_right_size_are_left_alone() -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return rings(x)

    volume = smooth_volume(5, 16, 16)
    predict_slices(network, volume, 16, batch_size=2)
    assert [len(x) for x in seen] == [2, 2, 1]
    assert np.array_equal(torch.cat(seen)[:, 0].numpy(), volume)


@pytest.mark.parametrize("exact_zoom", [True, False])
def test_channels_and_a_network_of_half_the_size(exact_zoom: bool) -> None:
    def network(x: Tensor) -> Tensor:
        assert x.shape[1:] == (2, 24, 24)
        return rings(F.avg_pool2d(x, 2))

    labels = predict_slices(network, smooth_volume(2, 3, 30, 20), 24, exact_zoom=exact_zoom)
    assert labels.shape == (3, 30, 20)
    assert len(np.unique(labels)) > 2


@torch.inference_mode()
def test_a_volume_through_the_model() -> None:
    model, volume = optimize_for_inference(tiny()), smooth_volume(3, 40, 28)
    want = predict_one_by_one(model, volume, 32)
    assert (predict_slices(model, volume, 32) == want).mean() > 0.999
    assert (predict_slices(model, volume, 32, exact_zoom=False) == want).mean() > 0.999


@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (np.zeros((8, 8)), {}, r"D, H, W or C, D, H, W, none empty; got the shape \(8, 8\)"),
        (np.zeros((0, 8, 8)), {}, r"got the shape \(0, 8, 8\)"),
        (np.full((1, 8, 8), np.nan), {}, "NaN or infinite"),
        (np.zeros((1, 8, 8)), {"batch_size": 0}, "1 or more; got 0 and 2"),
    ],
)
def test_volumes_that_do_not_fit(volume: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict_slices(rings, volume, 8, **options)


# Errors


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 32, 32), "takes B, 1 or 3, H, W; got 1, 32, 32"),
        (torch.zeros(1, 2, 32, 32), "takes B, 1 or 3, H, W; got 1, 2, 32, 32"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.uint8), r"floating-point pixels; got torch\.uint8"),
        (torch.zeros(1, 1, 48, 48), "built for slices of 32 x 32; got 48 x 48"),
        (torch.zeros(1, 1, 32, 16), "built for slices of 32 x 32; got 32 x 16"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny()(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 40}, "image_size must be a multiple of 16, 32 or more; got 40"),
        ({"image_size": 16}, "image_size must be a multiple of 16, 32 or more; got 16"),
        ({"image_size": 40, **NO_RESNET}, "image_size must be a multiple of 16; got 40"),
        ({"patch_size": 32}, "patch_size must be 16 with a ResNet; got 32"),
        ({"num_skips": 4}, "num_skips must be from 0 to 3 with a ResNet; got 4"),
        ({"resnet_depths": ()}, "num_skips must be from 0 to 0 without a ResNet; got 3"),
        ({"resnet_depths": (3, 4)}, r"resnet_depths must be three numbers from 1 up; got \[3, 4\]"),
        ({"resnet_width": 48}, "resnet_width must be a multiple of 32; got 48"),
        ({"num_heads": 3}, "embed_dim must be divisible by num_heads; 16 is not by 3"),
        ({"decoder_channels": ()}, "each of decoder_channels must be 1 or more; got 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more; got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1\.0"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("transunet_r50_vit_b16", **TINY | options)
