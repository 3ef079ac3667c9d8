"""Lifting models: properties that hold whatever the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model, list_models, load_published, model_info, optimize_for_inference, save_weights
from vsuite.video_pose.bench.plain import convformer as plain
from vsuite.video_pose.models import lifter
from vsuite.video_pose.models.convformer import DMHCSA, ConvFormer
from vsuite.video_pose.models.lifter import Lifter, windows
from vsuite.video_pose.models.poseformer import PoseFormer
from vsuite.video_pose.models.videopose3d import TemporalModel
from vsuite.video_pose.skeletons import COCO17, H36M17, PENN13

quick = settings(deadline=None, max_examples=15)
SMALL = {"embed_dim": 8, "num_heads": 2}
MODELS: dict[str, tuple[type[Lifter], dict[str, Any]]] = {
    "convformer": (ConvFormer, {"num_frames": 9, "kernel_sizes": (3, 5), "spatial_depth": 1, **SMALL}),
    "poseformer": (PoseFormer, {"num_frames": 9, "depth": 2, **SMALL}),
    "videopose3d": (TemporalModel, {"filter_widths": (3, 3), "channels": 16}),
    "causal": (TemporalModel, {"filter_widths": (3, 1, 3), "channels": 16, "causal": True}),
}
names = st.sampled_from(sorted(MODELS))


def randomised(model: Lifter) -> Lifter:
    """Weights and running statistics far from where they start, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif value.ndim > 1:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


def small(name: str, **options: Any) -> Lifter:
    build, defaults = MODELS[name]
    return randomised(build(**defaults | options)).double()


def video(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, 17, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A whole video


@pytest.fixture(scope="module")
def models() -> dict[str, Lifter]:
    return {name: small(name) for name in MODELS}


def window_by_window(model: Lifter, poses: Tensor) -> Tensor:
    """The slow way: each frame's window by itself, the frames beyond the ends taken from the ends."""
    before = model.num_frames - 1 if getattr(model, "causal", False) else model.num_frames // 2
    out = []
    for i in range(len(poses)):
        frames = (torch.arange(model.num_frames) + i - before).clamp(0, len(poses) - 1)
        out.append(model(poses[None, frames])[0, 0])
    return torch.stack(out)


@quick
@given(name=names, length=st.integers(1, 23), seed=st.integers(0, 99), batch_size=st.integers(1, 30))
@torch.no_grad()
def test_lift_equals_window_by_window(models: dict[str, Lifter], name: str, length: int, seed: int, batch_size: int) -> None:
    poses = video(seed, length)
    lifted = models[name].lift(poses, batch_size=batch_size)
    assert lifted.shape == (length, 17, 3)
    torch.testing.assert_close(lifted, window_by_window(models[name], poses))


@torch.no_grad()
def test_long_videos_are_cut(models: dict[str, Lifter], monkeypatch: pytest.MonkeyPatch) -> None:
    poses = video(0, 11)
    want = models["convformer"].lift(poses)
    monkeypatch.setattr(lifter, "FRAMES_AT_ONCE", 4)
    torch.testing.assert_close(models["convformer"].lift(poses), want)
    torch.testing.assert_close(plain.lift(models["convformer"], poses), want)  # type: ignore[arg-type]


def test_spatial_features_are_made_once_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("convformer")
    seen = []
    encode = model.encode_frames  # type: ignore[operator]
    monkeypatch.setattr(model, "encode_frames", lambda poses: seen.append(len(poses)) or encode(poses))
    model.lift(video(0, 20), batch_size=3)
    assert sum(seen) == 20


@pytest.mark.parametrize("name", MODELS)
def test_flipped_copies_are_averaged(models: dict[str, Lifter], name: str) -> None:
    model, poses = models[name], video(1, 13)
    both = model.lift(poses, flip=H36M17)
    torch.testing.assert_close(both, (model.lift(poses) + H36M17.flip(model.lift(H36M17.flip(poses)))) / 2)
    torch.testing.assert_close(model.lift(H36M17.flip(poses), flip=H36M17), H36M17.flip(both))
    assert not torch.allclose(both, model.lift(poses))


def test_flips_where_the_layout_changes() -> None:
    model, poses = small("videopose3d", num_joints_out=13), video(1, 5)
    want = (model.lift(poses) + PENN13.flip(model.lift(COCO17.flip(poses)))) / 2
    torch.testing.assert_close(model.lift(poses, flip=(COCO17, PENN13)), want)
    with pytest.raises(InputError, match="layout penn13"):
        model.lift(poses, flip=PENN13)


@quick
@given(name=names, frame=st.integers(0, 29))
@torch.no_grad()
def test_frames_outside_the_window_do_not_count(models: dict[str, Lifter], name: str, frame: int) -> None:
    model, poses = models[name], video(2, 30)
    changed = poses.clone()
    changed[frame] += 1
    moved = (model.lift(changed) - model.lift(poses)).abs().amax((1, 2)) > 1e-9
    offset = torch.arange(30) - frame
    causal = getattr(model, "causal", False)
    assert torch.equal(moved, (offset >= 0) & (offset < model.num_frames) if causal else offset.abs() <= model.num_frames // 2)


@given(length=st.integers(1, 12), half=st.integers(0, 8))
def test_windows(length: int, half: int) -> None:
    frames = torch.arange(length)[:, None]
    want = (torch.arange(length)[:, None] + torch.arange(-half, half + 1)).clamp(0, length - 1)
    assert torch.equal(windows(frames, 2 * half + 1)[..., 0], want)


# The operators


@pytest.mark.parametrize("sizes", [(7, 7, 7), (3, 5, 9), (1,), (25,)])
@pytest.mark.parametrize("axis", ["spatial", "temporal"])
def test_merged_filters_equal_separate_ones(axis: str, sizes: tuple[int, ...]) -> None:
    options = {"num_frames": 5, "kernel_sizes": sizes, "dropout": 0.0, "drop_path_rate": 0.0, **SMALL}
    fast, slow = randomised(ConvFormer(**options)).double(), plain.build(**options).double()
    slow.load_state_dict(fast.state_dict())
    block = "spatial_blocks" if axis == "spatial" else "temporal_blocks"
    ours, other = (getattr(model, block)[1].attn for model in (fast.train(), slow.train()))
    x = torch.randn(3, 17, 8, dtype=torch.float64) if axis == "spatial" else torch.randn(3, 5, 136, dtype=torch.float64)
    direction = torch.randn_like(x)
    torch.testing.assert_close(ours(x), other(x))
    for module in (ours, other):
        (module(x) * direction).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")
    ours.eval().fold()
    ours.fold()  # twice does no harm
    torch.testing.assert_close(ours(x), other.eval()(x))


def test_one_filter_of_width_1_is_ordinary_attention() -> None:
    torch.manual_seed(0)
    module, x = DMHCSA(8, 2, (1,), "spatial"), torch.randn(2, 6, 8)
    query, key, value = (F.linear(x, bank.convs[0].weight[:, :, 0], bank.convs[0].bias) for bank in (module.q, module.k, module.v))
    heads = [t.unflatten(2, (2, 4)).transpose(1, 2) for t in (query, key, value)]
    out = (heads[0] @ heads[1].mT / 2).softmax(-1) @ heads[2]
    want = F.linear(out.transpose(1, 2).flatten(2), module.proj.weight[:, :, 0], module.proj.bias)
    module.eval()
    torch.testing.assert_close(module(x), want)


@torch.no_grad()
def test_strides_equal_dilations(models: dict[str, Lifter]) -> None:
    """One window alone is computed with strides, two with dilations."""
    for name in ("videopose3d", "causal"):
        poses = video(3, 2, 10)
        one_by_one = torch.cat([models[name](poses[:, :9]), models[name](poses[:, 1:])], dim=1)
        torch.testing.assert_close(models[name](poses), one_by_one)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_optimized_models_return_the_same(models: dict[str, Lifter], name: str) -> None:
    poses = video(4, 12)
    fast = optimize_for_inference(models[name])
    assert len(list(fast.parameters())) < len(list(models[name].parameters())) or name == "poseformer"
    torch.testing.assert_close(fast.lift(poses, flip=H36M17), models[name].lift(poses, flip=H36M17))  # type: ignore[operator]
    again = optimize_for_inference(fast)
    torch.testing.assert_close(again.lift(poses), models[name].lift(poses))  # type: ignore[operator]


# What is refused


@pytest.mark.parametrize("name", MODELS)
def test_wrong_inputs(models: dict[str, Lifter], name: str) -> None:
    model = models[name]
    kind = type(model).__name__
    for shape in ((1, 9, 16, 2), (1, 9, 17, 3), (9, 17, 2)):
        with pytest.raises(InputError, match=f"{kind} takes B, T, J, C with 17 joints of 2 coordinates"):
            model(torch.zeros(shape))
    with pytest.raises(InputError, match=r"9 frames( or more)?; got 8"):
        model(torch.zeros(1, 8, 17, 2))
    with pytest.raises(InputError, match=r"floating-point poses; got torch\.int64"):
        model(torch.zeros(1, 9, 17, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="T, J, C with 17 joints"):
        model.lift(torch.zeros(5, 18, 2))
    with pytest.raises(InputError, match="one or more frames; got none"):
        model.lift(torch.zeros(0, 17, 2))
    poses = video(0, 6)
    poses[2, 3, 1] = float("nan")
    poses[4] = float("inf")
    with pytest.raises(InputError, match="2 of 6 frames hold NaN or infinite coordinates, the first is 2"):
        model.lift(poses)
    with pytest.raises(InputError, match=r"layout penn13 are \(..., 13, C\)"):
        model.lift(video(0, 6), flip=PENN13)
    model.train()
    try:
        with pytest.raises(InputError, match="call eval"):
            model.lift(video(0, 6))
    finally:
        model.eval()


def test_wrong_options() -> None:
    with pytest.raises(InputError, match="num_frames must be odd"):
        ConvFormer(num_frames=8)
    with pytest.raises(InputError, match="num_frames must be odd"):
        PoseFormer(num_frames=0)
    with pytest.raises(InputError, match="multiple of num_heads; got 32 and 5"):
        PoseFormer(num_heads=5)
    with pytest.raises(InputError, match="kernel_sizes must be one or more odd"):
        ConvFormer(kernel_sizes=(3, 4))
    with pytest.raises(InputError, match="kernel_sizes must be one or more odd"):
        ConvFormer(kernel_sizes=())
    with pytest.raises(InputError, match="must be 1 or more"):
        ConvFormer(temporal_depth=0)
    with pytest.raises(InputError, match="filter_widths must be one or more odd"):
        TemporalModel(filter_widths=(3, 2))
    with pytest.raises(InputError, match="must be 1 or more"):
        TemporalModel(channels=0)
    with pytest.raises(InputError, match="unknown axis"):
        DMHCSA(8, 2, (3,), "spatiol")
    with pytest.raises(InputError, match="must be odd; got 4"):
        windows(torch.zeros(3, 1), 4)


# Registered models and files


def test_every_variant_states_its_size() -> None:
    found = [name for system in ("convformer", "poseformer", "videopose3d") for name in list_models(system=system)]
    assert len(found) == 29 + 3 + 7
    for name in found:
        info = model_info(name)
        with torch.device("meta"):
            model = create_model(name)
        assert isinstance(model, Lifter)
        assert info.input_size == (model.num_frames, model.num_joints, 2)
        assert ("reconstruction" in info.summary) == ("reconstruction" in info.paper) == (info.system == "convformer")


OPTIONS_TO_GIVE = {"convformer": {"num_heads": 2}, "poseformer": {"num_heads": 2}, "videopose3d": {}, "causal": {"causal": True}}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_files_of_the_authors(name: str, tmp_path: Path) -> None:
    """As the official training scripts leave them: weights under `model_pos`, beside the state of a random generator."""
    model = small(name).float()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    content = {"epoch": 60, "lr": 1e-3, "random_state": np.random.RandomState(0), "optimizer": {}, "model_pos": state}
    for path, zipped in ((tmp_path / "new.bin", True), (tmp_path / "old.bin", False)):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        loaded = load_published(path, **OPTIONS_TO_GIVE[name]).eval()
        assert torch.equal(loaded(video(0, 2, 9).float()), model(video(0, 2, 9).float()))
    del state["module.expand_conv.weight" if name in ("videopose3d", "causal") else next(key for key in state if "norm1.bias" in key)]
    torch.save(content, tmp_path / "new.bin")
    with pytest.raises(InputError, match=r"missing|is not a checkpoint of"):
        load_published(tmp_path / "new.bin", **OPTIONS_TO_GIVE[name])
    save_weights(loaded, tmp_path / "ours.safetensors")
    again = load_published(tmp_path / "ours.safetensors").eval()
    assert torch.equal(again(video(0, 2, 9).float()), model(video(0, 2, 9).float()))


def test_what_a_file_cannot_tell_is_said() -> None:
    build, options = MODELS["convformer"]
    loaded = load_published(build(**options | {"num_heads": 8}).state_dict())
    assert loaded.built_from["assumed"] == {"num_heads": 8}  # type: ignore[index]
    with pytest.raises(InputError, match="is not a checkpoint of"):
        load_published(nn.Linear(2, 2).state_dict())


# Training, precision, graphs

# Constants that the next softmax or norm takes out again: their gradients are zero but for rounding.
WITHOUT_EFFECT = ("spatial_blocks.0.attn.k.convs", "attn.proj.bias", "weighted_mean.bias")


@pytest.mark.parametrize("name", MODELS)
def test_it_trains(name: str) -> None:
    torch.manual_seed(0)
    build, options = MODELS[name]
    model = build(**options).train()
    generator = torch.Generator().manual_seed(0)
    poses, truth = torch.randn(8, 9, 17, 2, generator=generator), torch.randn(8, 1, 17, 3, generator=generator)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2 if name in ("videopose3d", "causal") else 4e-3)
    losses = []
    for _ in range(40):
        loss = (model(poses) - truth).norm(dim=-1).mean()
        optimiser.zero_grad()
        loss.backward()
        if not losses:
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None, key
                assert parameter.grad.abs().sum() > 0 or any(part in key for part in WITHOUT_EFFECT), key
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_bf16(name: str) -> None:
    model, poses = small(name).float(), video(5, 2, 9).float()
    want = model(poses)
    for form in (model, optimize_for_inference(model)):
        with torch.autocast("cpu", torch.bfloat16):
            found = form(poses).float()
        assert (found - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiled(name: str) -> None:
    model, poses = small(name).float(), video(5, 2, 9).float()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(poses), model(poses), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str, fold: bool, tmp_path: Path) -> None:
    import onnxruntime

    model, path = small(name).float(), tmp_path / "model.onnx"
    model = optimize_for_inference(model) if fold else model  # type: ignore[assignment]
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    torch.onnx.export(
        model,
        (video(0, 2, 9).float(),),
        path,
        dynamo=True,
        dynamic_shapes=dynamic,
        input_names=["poses"],
        output_names=["out"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        poses = video(6, batch, 9).float()
        with torch.no_grad():
            want = model(poses).numpy()
        np.testing.assert_allclose(session.run(None, {"poses": poses.numpy()})[0], want, rtol=1e-3, atol=1e-4)
