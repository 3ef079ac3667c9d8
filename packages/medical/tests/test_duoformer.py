"""DuoFormer: properties that hold whatever the weights are."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, create_model, optimize_for_inference
from vsuite.medical.bench.plain.duoformer import build as build_plain
from vsuite.medical.models.duoformer import DuoFormer, gather_region_tokens

TINY: dict[str, Any] = {"backbone": "resnet18", "image_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
FORMS: list[dict[str, Any]] = [
    {"num_scales": 1},
    {"num_scales": 2, "image_size": 96},
    {"num_scales": 3, "depth": 1},
    {"num_scales": 4, "scale_token": "channel"},
    {"num_scales": 3, "scale_token": "first"},
    {"num_scales": 3, "scale_token": "avg", "patch_residual": True},
    {"num_scales": 2, "patch_attention": False},
    {"num_scales": 2, "qk_norm": True, "num_heads": 4, "mlp_ratio": 1.5},
]
FORM_NAMES = [", ".join(f"{key}={value}" for key, value in form.items()) for form in FORMS]


def randomised(model: Any) -> Any:
    """Weights, norms, tables and running statistics far from where they start, so that nothing cancels."""
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


def tiny(**options: Any) -> Any:
    return randomised(DuoFormer(**TINY | options))


def image(side: int = 64, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


# What it computes


@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
@torch.inference_mode()
def test_all_forms_equal_the_plain_one(form: dict[str, Any]) -> None:
    """Also folded; the plain form computes every token of every block."""
    fast = tiny(**form).double()
    plain = build_plain(**TINY | form).double().eval()
    plain.load_state_dict(fast.state_dict())
    folded = optimize_for_inference(fast)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = image(form.get("image_size", 64), dtype=torch.float64)
    before = x.clone()
    want = plain(x)
    assert want.shape == (2, 3)
    assert want.std() > 1e-3
    torch.testing.assert_close(fast(x), want)
    torch.testing.assert_close(folded(x), want)
    torch.testing.assert_close(torch.cat([fast(sample[None]) for sample in x]), want)  # a sample does not see its batch
    assert torch.equal(x, before)


@pytest.mark.parametrize("form", [FORMS[3], FORMS[5]], ids=[FORM_NAMES[3], FORM_NAMES[5]])
def test_gradients_equal_those_of_the_plain_form(form: dict[str, Any]) -> None:
    form = form | {"num_scales": 3}
    fast = tiny(**form).double().train()
    plain = build_plain(**TINY | form).double().train()
    plain.load_state_dict(fast.state_dict())
    x, direction = image(dtype=torch.float64), torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]], dtype=torch.float64)
    for model in (fast, plain):
        (model(x) * direction).sum().backward()
    for (name, ours), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    for (name, ours), other in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("scale_token", "kept"), [("random", 1), ("channel", 1), ("first", 1), ("avg", 5)])
@torch.inference_mode()
def test_only_what_is_read_leaves_the_last_blocks(scale_token: str, kept: int) -> None:
    model = tiny(scale_token=scale_token)
    transformer = model.vision_transformer
    rows = []
    for module in (transformer.scaleBlocks[-1].mlp, transformer.scaleBlocks[-1].attn.proj, transformer.blocks[-1].attn.proj):
        module.register_forward_hook(lambda _, inputs, output: rows.append(inputs[0].shape[:2]))
    model(image())
    assert rows == [(2 * 4, kept), (2 * 4, kept), (2, 1)]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2))
@settings(deadline=None, max_examples=30)
def test_every_pixel_goes_to_its_region(height: int, width: int, num_scales: int, batch: int) -> None:
    maps, places = [], []
    for i in reversed(range(num_scales)):
        rows, columns = torch.meshgrid(torch.arange(height << i), torch.arange(width << i), indexing="ij")
        maps.append(torch.stack([torch.full_like(rows, i), rows, columns]).expand(batch, -1, -1, -1))
    tokens = gather_region_tokens(maps)
    assert tokens.shape == (batch, height * width, sum(4**i for i in range(num_scales)), 3)
    for i in range(num_scales):
        inside = [(r, c) for r in range(2**i) for c in range(2**i)]
        places += [(i, r, c) for r, c in (sorted(inside, key=lambda place: place[::-1]) if i == 1 else inside)]
    for region in range(height * width):
        row, column = divmod(region, width)
        want = [[i, (row << i) + r, (column << i) + c] for i, r, c in places]
        assert tokens[0, region].tolist() == tokens[-1, region].tolist() == want


@torch.inference_mode()
def test_regions_do_not_meet_in_the_scale_blocks() -> None:
    transformer = tiny(num_scales=3).double().vision_transformer
    tokens = torch.randn(2, 4, 22, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(transformer.mix_scales(tokens[:, order]), transformer.mix_scales(tokens)[:, order])


@torch.inference_mode()
def test_tokens_of_constant_maps_are_equal_within_each_scale() -> None:
    model = tiny(num_scales=4)
    maps = [torch.randn(1, channels, 1, 1).expand(-1, -1, side, side) for channels, side in ((64, 16), (128, 8), (256, 4), (512, 2))]
    tokens = model.tokens(maps)
    for part in tokens.split([1, 1, 4, 16, 64], 2):
        torch.testing.assert_close(part, part[:, :1, :1].expand_as(part))


@torch.inference_mode()
def test_kept_maps_give_the_same_logits() -> None:
    model, x = tiny(scale_token="channel"), image()
    torch.testing.assert_close(model.vision_transformer(model.tokens(model.features(x))), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [{}, {"qk_norm": True}, {"patch_residual": True}])
@torch.inference_mode()
def test_attention_maps(form: dict[str, Any]) -> None:
    model, x = tiny(**form).double(), image(dtype=torch.float64)
    maps = list(model.attention_maps(x))
    assert [tuple(weights.shape) for weights in maps] == [(2, 2, 5, 5)] * 2
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    with pytest.raises(InputError, match="patch_attention=False"):
        next(tiny(patch_attention=False).attention_maps(image()))


# Training


@pytest.mark.parametrize("form", [{"scale_token": "channel"}, {"patch_attention": False}])
def test_it_trains(form: dict[str, Any]) -> None:
    """Twelve steps bring the loss under half of its start, and every parameter gets a gradient."""
    torch.manual_seed(0)
    model: Any = DuoFormer(**TINY | {"embed_dim": 128} | form)  # the patch attentions let little of narrower tokens through at first
    x, target = image(batch=4), torch.tensor([0, 1, 2, 1])
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(12):
        loss = nn.functional.cross_entropy(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters() if step == 1 else ():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses


def test_how_the_backbone_trains() -> None:
    x = image()
    for kind, weights, statistics in (("all", True, True), ("statistics", False, True), ("none", False, False)):
        model: Any = DuoFormer(**TINY, backbone_training=kind)
        before = copy.deepcopy(model.resnet_projector.state_dict())
        assert model.eval().train() is model
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
        model(x).square().sum().backward()
        optimiser.step()
        after = model.resnet_projector.state_dict()
        assert torch.equal(before["0.weight"], after["0.weight"]) is not weights
        assert torch.equal(before["1.running_mean"], after["1.running_mean"]) is not statistics
        assert model.vision_transformer.head.weight.grad.any()
        assert model.projection.training


def test_published_initialisation() -> None:
    torch.manual_seed(0)
    model: Any = DuoFormer(**TINY | {"embed_dim": 256, "num_scales": 4, "scale_token": "channel"})
    transformer = model.vision_transformer
    for table in (transformer.pos_embed_for_scale, transformer.cls_token):
        assert table.std().item() == pytest.approx(0.036, rel=0.15)
    wide: Any = DuoFormer(**TINY | {"embed_dim": 768, "num_heads": 8})
    assert wide.channel_token.std().item() == pytest.approx(0.036, rel=0.15)
    for linear in (transformer.scaleBlocks[0].attn.qkv, transformer.blocks[1].attn.proj, transformer.scaleBlocks[1].mlp.fc1):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()
    for conv in (model.projection.proj_heads2, model.chann_proj1.conv2, model.chann_proj2.conv1):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / conv.weight[0].numel()), rel=0.05)
        assert conv.bias.abs().max() < 1e-5


# Other precisions, compilers and formats


@pytest.mark.parametrize("fold", [False, True])
@torch.inference_mode()
def test_bf16_autocast(fold: bool) -> None:
    model = tiny(scale_token="channel", num_scales=3)
    model, x = optimize_for_inference(model) if fold else model, image()
    want = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()


def test_bf16_autocast_trains() -> None:
    model: Any = DuoFormer(**TINY)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(image())
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


@torch.inference_mode()
def test_pure_half_precision() -> None:
    model, x = tiny(), image()
    want = model(x)
    got = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.15 * want.abs().max()


def test_shapes_may_be_found_without_computing() -> None:
    with torch.device("meta"):
        assert DuoFormer(**TINY | {"scale_token": "channel"}).eval()(torch.empty(5, 3, 64, 64)).shape == (5, 3)


def test_a_model_survives_pickling_and_copying() -> None:
    model, x = tiny(), image()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(buffer, weights_only=False)(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", [{"scale_token": "channel"}, {"qk_norm": True}, {"patch_attention": False}])
def test_onnx_of_any_batch(form: dict[str, Any], tmp_path: Path) -> None:
    import onnxruntime

    model, path = optimize_for_inference(tiny(**form)), tmp_path / "model.onnx"
    batch = {"x": {0: torch.export.Dim("batch")}}
    torch.onnx.export(model, (image(),), path, dynamo=True, input_names=["x"], output_names=["y"], dynamic_shapes=batch, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        for number in (2, 3):
            x = image(batch=number)
            (got,) = session.run(["y"], {"x": x.numpy()})
            torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled() -> None:
    model, x = tiny(depth=1), image()
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


# Errors


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64), r"takes B, 3, H, W; got 3, 64, 64"),
        (torch.zeros(1, 4, 64, 64), r"takes B, 3, H, W; got 1, 4, 64, 64"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"floating-point pixels; got torch\.uint8"),
        (torch.zeros(1, 3, 64, 96), r"built for 64 x 64 pixels; got 64 x 96"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny()(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "image_size must be a multiple of 32; got 100"),
        ({"image_size": 0}, "image_size must be a multiple of 32; got 0"),
        ({"backbone": "resnet101"}, "backbone is 'resnet18' or 'resnet50'; got 'resnet101'"),
        ({"scale_token": "mean"}, "scale_token is 'random' or 'channel' or 'first' or 'avg'; got 'mean'"),
        ({"backbone_training": "no"}, "backbone_training is"),
        ({"num_scales": 5}, "num_scales must be 1 to 4; got 5"),
        ({"num_scales": 0}, "num_scales must be 1 to 4; got 0"),
        ({"num_heads": 5}, "embed_dim must be divisible by num_heads; 16 is not by 5"),
        ({"num_heads": 0}, "num_heads must be 1 or more; got 0"),
        ({"depth": 0}, "depth must be 1 or more; got 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more; got 0"),
        ({"in_channels": 0}, "in_channels must be 1 or more; got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0; got 0.0"),
        ({"scale_tokens": "avg"}, "scale_token"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("duoformer_r50_2scale", **TINY | options)
