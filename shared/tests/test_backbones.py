"""What every registered image backbone must do, whatever its system."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import InputError, create_model, list_models, load_published, model_info, optimize_for_inference, save_weights
from vsuite.core.nn import ImageBackbone

WINDOWS: dict[str, Any] = {"depths": (1, 2, 2), "embed_dim": 8, "num_heads": (2, 2, 2), "window_size": 3, "image_size": 96}
# One small model a system: options under which it is built in a blink and still has every part.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext_tiny", {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 24, 32), "layer_scale": 0.5}),
    "convnext_isotropic": ("convnext_isotropic_small", {"depth": 3, "embed_dim": 16, "layer_scale": 0.5}),
    "cswin": ("cswin_tiny", {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 2)}),
    "cvt": ("cvt_13", {"embed_dims": (8, 16, 32), "depths": (1, 1, 2), "num_heads": (1, 2, 4)}),
    "densenet": ("densenet121", {"depths": (1, 2, 1, 1), "embed_dim": 8, "growth_rate": 8, "bottleneck": 2}),
    "fdconv": ("fdconv_resnet50", {"embed_dim": 20, "depths": (1, 1, 1, 1), "kernel_num": 4}),
    "hornet": (
        "hornet_tiny_gf",
        {"embed_dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "filter_grids": (None, None, (6, 4), (3, 2)), "layer_scale": 0.5},
    ),
    "resnet": ("resnet50", {"embed_dim": 8, "depths": (1, 1, 1, 1)}),
    "swin": ("swin_tiny", WINDOWS),
    "swin_mlp": ("swin_mlp_tiny_c24", WINDOWS),
    "swin_v2": ("swin_v2_tiny", WINDOWS | {"pretrained_window_sizes": (0, 0, 2)}),
    "vit": ("vit_small_patch16", {"embed_dim": 16, "depth": 5, "num_heads": 2, "image_size": 96}),
}
SYSTEMS = sorted(TINY)
SIZES = [(96, 64), (71, 107)]
# Parameters that get no gradient: a constant added to all keys of a softmax, queries whose answers nothing reads, and a
# frequency band that the smallest map does not have.
WITHOUT_GRADIENT: dict[str, tuple[str, ...]] = {
    "cvt": (
        "attn.proj_k.bias",
        "attn.conv_proj_k.bn.bias",
        *(f"stage2.blocks.1.attn.conv_proj_q.{part}" for part in ("conv.weight", "bn.weight", "bn.bias")),
    ),
    "fdconv": ("freq_weight_conv_list.2.weight", "freq_weight_conv_list.2.bias"),
}


@functools.cache
def backbones() -> dict[str, Any]:
    """Every registered image backbone, without numbers."""
    with torch.device("meta"):
        models = {name: create_model(name) for name in list_models(task="classification")}
    return {name: model for name, model in models.items() if isinstance(model, ImageBackbone)}


def tiny(system: str, **options: Any) -> Any:
    torch.manual_seed(0)
    name, small = TINY[system]
    model = create_model(name, **{"num_classes": 5, **small, **options})
    for parameter in model.parameters():  # layer scales, zero-started norms and tables must count
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def image(size: tuple[int, int] = (96, 64), batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.square().mean().sqrt()))


def test_every_registered_backbone_is_tested_here() -> None:
    assert {model_info(name).system for name in backbones()} == set(TINY)


def test_facts_of_every_variant() -> None:
    for name, model in backbones().items():
        info = model_info(name)
        channels, height, width = info.input_size
        model.size_rule.check((height, width))
        assert model.in_channels == channels
        assert model.num_classes == info.options["num_classes"]
        assert [f.stride for f in model.feature_info] == sorted(f.stride for f in model.feature_info)
        assert model.num_features == model.feature_info[-1].channels
        assert info.summary
        assert "arXiv" in info.paper or "doi" in info.paper.lower() or "CVPR" in info.paper


@pytest.mark.parametrize("system", SYSTEMS)
def test_layers_cover_all_parameters_and_rise_with_depth(system: str) -> None:
    model = tiny(system)
    ids = [model.layer_id(name) for name, _ in model.named_parameters()]
    head = {model.layer_id(name) for name, _ in model.named_parameters() if name.startswith(f"{model.head_name}.")}
    assert min(ids) == 0
    assert head == {max(ids)}
    part_ids = [
        [model.layer_id(name) for name, p in model.named_parameters() if any(p is q for m in part for q in m.parameters())]
        for part in model.parts()
    ]
    for before, after in itertools.pairwise(part_ids):
        assert max(before) <= max(after)
        assert min(before) <= min(after)


@pytest.mark.parametrize("system", SYSTEMS)
@torch.inference_mode()
def test_features_are_as_announced(system: str) -> None:
    model = tiny(system)
    for size in SIZES:
        x = image(size)
        maps = model.features(x)
        for info, found in zip(model.feature_info, maps, strict=True):
            assert found.shape[:2] == (2, info.channels)
            for side, given in zip(found.shape[2:], size, strict=True):
                assert given / info.stride - 1 < side < given / info.stride + 1
            assert torch.isfinite(found).all()
        last = len(maps) - 1
        assert torch.equal(model.features(x, [0])[0], maps[0])
        assert torch.equal(model.forward_features(x), maps[last])
        single = [model.features(x[i : i + 1]) for i in range(2)]
        for i, found in enumerate(maps):
            close(torch.cat([single[0][i], single[1][i]]), found)


@pytest.mark.parametrize("system", SYSTEMS)
@torch.inference_mode()
def test_heads(system: str) -> None:
    model, x = tiny(system), image()
    assert model(x).shape == (2, 5)
    headless = copy.deepcopy(model)
    setattr(headless, model.head_name, nn.Identity())
    pooled = headless(x)
    assert tiny(system, num_classes=0)(x).shape == pooled.shape == (2, model.num_features)
    before = set(model.state_dict())
    model.reset_head(7)
    assert model(x).shape == (2, 7)
    assert set(model.state_dict()) == before
    model.reset_head(0)
    close(model(x), pooled)
    with pytest.raises(InputError, match="num_classes"):
        model.reset_head(-1)


@pytest.mark.parametrize("system", SYSTEMS)
def test_copies_and_files_give_the_same_model(system: str, tmp_path: Path) -> None:
    model, x = tiny(system), image()
    with torch.inference_mode():
        wanted = model(x)
        assert torch.equal(copy.deepcopy(model)(x), wanted)
        buffer = io.BytesIO()
        pickle.dump(model, buffer)
        assert torch.equal(pickle.loads(buffer.getvalue())(x), wanted)
        save_weights(model, tmp_path / "w.safetensors")
        assert torch.equal(load_published(tmp_path / "w.safetensors").eval()(x), wanted)
        name, _ = TINY[system]
        assert torch.equal(create_model(name, weights=tmp_path / "w.safetensors").eval()(x), wanted)
        model.features(x)
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_new_head_and_other_channels_on_given_weights(system: str, tmp_path: Path) -> None:
    model = tiny(system)
    save_weights(model, tmp_path / "w.pth")
    name, small = TINY[system]
    other: Any = create_model(name, weights=tmp_path / "w.pth", **{**small, "num_classes": 9, "in_channels": 1})
    grey = image(channels=1)
    with torch.inference_mode():
        close(other.eval().forward_features(grey), model.forward_features(grey.expand(-1, 3, -1, -1)))
        assert other(grey).shape == (2, 9)
    six: Any = create_model(name, weights=tmp_path / "w.pth", **{**small, "num_classes": 5, "in_channels": 6})
    x = image()
    with torch.inference_mode():
        close(six.eval()(x.repeat(1, 2, 1, 1)), model(x))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_new_head_is_saved_with_the_model(system: str, tmp_path: Path) -> None:
    model, x = tiny(system), image()
    model.reset_head(4)
    save_weights(model, tmp_path / "w.safetensors")
    save_weights(model, tmp_path / "w.pth")
    with torch.inference_mode():
        assert torch.equal(load_published(tmp_path / "w.safetensors").eval()(x), model(x))
    name, small = TINY[system]
    with pytest.raises(InputError, match="another number of classes"):
        create_model(name, weights=tmp_path / "w.pth", **small)


@pytest.mark.parametrize("system", SYSTEMS)
def test_wrong_inputs_are_named(system: str) -> None:
    model = tiny(system)
    with pytest.raises(InputError, match="B, 3, H, W; got 2, 4, 64, 64"):
        model(torch.zeros(2, 4, 64, 64))
    with pytest.raises(InputError, match="B, 3, H, W; got 3, 64, 64"):
        model(torch.zeros(3, 64, 64))
    with pytest.raises(InputError, match="floating-point pixels; got torch"):
        model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"weights of torch.float32; got pixels of torch.float64"):
        model(torch.zeros(2, 3, 64, 64, dtype=torch.float64))
    with pytest.raises(InputError, match="finite pixels; got NaN"):
        model(torch.full((2, 3, 64, 64), torch.nan))
    least = model.size_rule.minimum
    with torch.inference_mode():
        assert torch.isfinite(model(image((least, least)))).all()
    if least > 1:
        with pytest.raises(InputError, match=f"from {least} pixels up; got {least - 1} x 64"):
            model(torch.zeros(1, 3, least - 1, 64))
    with pytest.raises(InputError, match="stages must be some of"):
        model.features(image(), [9])
    with pytest.raises(InputError, match="drop_path_rat"):
        create_model(TINY[system][0], drop_path_rat=0.1)


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_reach_every_parameter_also_with_checkpointing(system: str) -> None:
    gradients, statistics = [], []
    for checkpointing in (False, True):
        model = tiny(system).train()
        model.set_checkpointing(checkpointing)
        model(image()).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        statistics.append(dict(model.named_buffers()))
    for name, value in statistics[0].items():  # the repeated forward pass must not count twice
        torch.testing.assert_close(statistics[1][name], value)
    for name, gradient in gradients[0].items():
        if name.endswith(WITHOUT_GRADIENT.get(system, ("\0",))):
            continue
        assert gradient is not None, name
        assert float(gradient.abs().max()) > 0, name
        close(gradients[1][name], gradient, 1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_frozen_stages_stay_frozen(system: str) -> None:
    model = tiny(system)
    model.freeze(1)
    assert model.train() is model
    frozen = {id(p) for part in model.parts()[:2] for module in part for p in module.parameters()}
    model(image()).sum().backward()
    for parameter in model.parameters():
        assert parameter.requires_grad is (id(parameter) not in frozen)
        assert (parameter.grad is None) or id(parameter) not in frozen
    assert not any(module.training for part in model.parts()[:2] for m in part for module in m.modules())
    model.freeze(-1)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    with pytest.raises(InputError, match="freeze takes"):
        model.freeze(9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_trains(system: str) -> None:
    model, x = tiny(system).train(), image((64, 48), batch=4)
    target = torch.arange(4) % 5
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("system", SYSTEMS)
@torch.inference_mode()
def test_other_precisions_and_layouts(system: str) -> None:
    model, x = tiny(system), image()
    wanted = model(x)
    close(model(x.contiguous(memory_format=torch.channels_last)), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x).float()
    assert float((rough - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    double = copy.deepcopy(model).double()
    close(double(x.double()).float(), wanted)


@pytest.mark.parametrize("system", SYSTEMS)
@torch.inference_mode()
def test_optimised_for_inference_is_equal(system: str) -> None:
    model = tiny(system)
    fast = optimize_for_inference(model)
    for size in SIZES:
        for found, wanted in zip(fast.features(image(size)), model.features(image(size)), strict=True):
            close(found, wanted)
        close(fast(image(size)), model(image(size)))
    half = optimize_for_inference(model.to(torch.bfloat16))
    assert torch.isfinite(half(image().to(torch.bfloat16))).all()


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_exports_with_free_sides(system: str) -> None:
    model = tiny(system)
    free = torch.export.Dim.AUTO
    program = torch.export.export(model, (image((96, 64)),), dynamic_shapes=({2: free, 3: free},))
    with torch.inference_mode():
        close(program.module()(image((71, 107))), model(image((71, 107))))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
@torch.inference_mode()
def test_compiles_in_one_graph(system: str) -> None:
    model = tiny(system)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    for size in SIZES:
        close(compiled(image(size)), model(image(size)))
    close(optimize_for_inference(model, compile=True)(image()), model(image()))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_onnxruntime_agrees(system: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny(system)
    path = tmp_path / "m.onnx"
    torch.onnx.export(model, (image(),), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    with torch.inference_mode():
        close(torch.from_numpy(found), model(image()), 1e-3)
