"""The cross-modal transformer: properties that hold whatever the weights are; training, folding, precision and export."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, create_model, list_models, load_published, model_info, optimize_for_inference, save_weights
from vsuite.video_pose.bench.plain.deformable3d import eight_neighbours, grid_sample, plain
from vsuite.video_pose.models.deformable3d import (
    DeformableAttention3d,
    MultiScaleDeformableAttention3d,
    TokenSearch3d,
    deformable3d,
    deformable3d_pose,
    trilinear_sample,
)
from vsuite.video_pose.models.deformable3d.transformer import JointStrideAttention, joint_windows

POSE: dict[str, Any] = {"num_classes": 5, "num_joints": 9, "widths": (4, 8), "embed_dim": 16, "num_heads": 2, "heatmap_size": 12}
RGB: dict[str, Any] = {"num_classes": 5, "num_joints": 9, "widths": (4, 8), "blocks": 1, "embed_dim": 16, "num_heads": 2}


def randomised(model: nn.Module) -> nn.Module:
    """Weights and running statistics far from where they start, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif value.ndim > 1:
            value.copy_(1.5 * noise / max(value[0].numel(), 1) ** 0.5)
        else:
            value.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise)
    return model.eval()


def poses(batch: int = 2, people: int = 2, frames: int = 5, joints: int = 9, coordinates: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Joints in [-1, 1] and their scores, a fifth of which are 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, people, frames, joints, generator=generator)
    return torch.rand(batch, people, frames, joints, coordinates, generator=generator) * 2 - 1, torch.where(scores < 0.2, 0, scores)


def rgb_input(**sizes: int) -> tuple[Tensor, Tensor, Tensor]:
    joints, scores = poses(**sizes)
    clip = torch.rand(len(joints), joints.shape[2], 3, 24, 32, generator=torch.Generator().manual_seed(1))
    return clip, (joints + 1) * torch.tensor([16.0, 12.0]), scores


# --- operators ---


@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_sampling_equals_the_definition_and_grid_sampling(size: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    points = torch.rand(2, 11, 3, generator=generator, dtype=torch.float64) * (torch.tensor(size) + 3) - 2
    got = trilinear_sample(volume, points)
    torch.testing.assert_close(got, torch.stack([eight_neighbours(v, p) for v, p in zip(volume, points, strict=True)]))
    torch.testing.assert_close(got, grid_sample(volume, points))


def test_sampling_at_voxels_and_of_constants() -> None:
    volume = torch.randn(1, 3, 2, 3, 4)
    voxels = torch.cartesian_prod(*[torch.arange(float(n)) for n in (2, 3, 4)])[None]
    assert torch.equal(trilinear_sample(volume, voxels), volume.flatten(2))
    inside = torch.rand(1, 20, 3) * torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(trilinear_sample(torch.full((1, 1, 2, 3, 4), 7.0), inside), torch.full((1, 1, 20), 7.0))
    assert torch.isfinite(trilinear_sample(volume, torch.tensor([[[1e30, -1e30, 0.0]]]))).all()
    with pytest.raises(InputError, match="trilinear_sample takes"):
        trilinear_sample(volume, torch.zeros(2, 4, 3))


def test_gradients_of_sampling_equal_finite_differences() -> None:
    volume = torch.randn(1, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(1, 6, 3, dtype=torch.float64) * 2 - 0.4).requires_grad_()
    assert torch.autograd.gradcheck(trilinear_sample, (volume, points))
    search = randomised(TokenSearch3d(4, 2).double())
    z = torch.randn(1, 2, 4, 3, 4, dtype=torch.float64)
    offsets = (torch.rand(2, 3, 1, 2, 2, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: search.sample(z, moved), (offsets,))


def test_without_offsets_the_grid_is_sampled_and_attention_is_plain() -> None:
    module = randomised(DeformableAttention3d(16, 4, kernel=(3, 3, 3), stride=(1, 1, 1)))
    nn.init.zeros_(module.search.pw.weight)
    z, modal = torch.randn(2, 16, 3, 4, 5), torch.randn(2, 2, 16)
    tokens = z.movedim(1, -1)
    found = module.search.sample(tokens, module.search.offsets(module.search.q(tokens)))
    torch.testing.assert_close(found, tokens.flatten(1, 3))
    everything = torch.cat([modal, found], 1)
    q, k, v = (layer(everything).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (module.search.q, module.k, module.v))
    want = module.proj(((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
    got = torch.cat([*module(z, modal)[:1], module(z, modal)[1].movedim(1, -1).flatten(1, 3)], 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_shift_by_the_stride_shifts_the_tokens_by_a_cell() -> None:
    search = randomised(TokenSearch3d(8, 2, stride=(2, 2, 2)).double())
    z = torch.randn(1, 8, 12, 12, 8, dtype=torch.float64)
    shifted = z.roll((2, 2), (1, 2))
    cells = [search.sample(x, search.offsets(search.q(x))).view(4, 6, 6, 8) for x in (z, shifted)]
    torch.testing.assert_close(cells[1][2:-1, 3:-2, 2:-2], cells[0][1:-2, 2:-3, 2:-2])


def test_multi_scale_without_offsets_is_two_projections() -> None:
    module = randomised(MultiScaleDeformableAttention3d(16, 4, 3))
    nn.init.zeros_(module.sampling_offsets.weight)
    nn.init.zeros_(module.sampling_offsets.bias)
    key = torch.randn(2, 16, 2, 3, 4)
    want = module.output_proj(module.key_proj(key.flatten(2).transpose(1, 2))).transpose(1, 2).view(key.shape)
    torch.testing.assert_close(module(torch.randn(2, 16, 2, 3, 4), key), want, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 2), st.integers(1, 3), st.integers(0, 99))
@settings(deadline=None, max_examples=8)
def test_multi_scale_equals_the_plain_form(levels: int, num_points: int, seed: int) -> None:
    torch.manual_seed(seed)
    fast = randomised(MultiScaleDeformableAttention3d(12, 3, num_points, levels).double())
    shapes = [(2, 3, 1), (3, 1, 2)][:levels]
    query, key = torch.randn(2, 12, 2, 3, 2, dtype=torch.float64), torch.randn(2, 6 * levels, 12, dtype=torch.float64)
    torch.testing.assert_close(fast(query, key, None, shapes), plain(copy.deepcopy(fast))(query, key, None, shapes))


def test_wrong_operators() -> None:
    for wrong in ({"groups": 3}, {"kernel": (2, 3, 3)}, {"stride": (0, 1, 1)}, {"offset_factor": float("nan")}):
        with pytest.raises(InputError):
            TokenSearch3d(16, **wrong)
    with pytest.raises(InputError, match="num_heads must divide the 16"):
        DeformableAttention3d(16, 3)
    with pytest.raises(InputError, match="num_heads must divide the 16"):
        MultiScaleDeformableAttention3d(16, 5)
    with pytest.raises(InputError, match="must hold 2 levels"):
        MultiScaleDeformableAttention3d(16, 2, 2, 2)(torch.rand(1, 16, 2, 2, 2), torch.rand(1, 9, 16), None, [[2, 2, 2]])


@pytest.mark.parametrize(("joints", "window", "step", "starts"), [(17, 5, 2, 7), (25, 7, 3, 7), (13, 5, 2, 5), (3, 5, 2, 1), (6, 5, 2, 2)])
def test_windows_cover_every_joint(joints: int, window: int, step: int, starts: int) -> None:
    index, inside, shares = joint_windows(joints, window, step, torch.device("cpu"))
    assert index.shape == (starts, window)
    assert set(index[inside].tolist()) == set(range(joints))
    torch.testing.assert_close(shares.sum((1, 2)), torch.ones(joints))
    with pytest.raises(InputError, match="joints would be left out"):
        JointStrideAttention(8, 2, 3, 4)


# --- models ---


@given(st.integers(1, 3), st.integers(1, 7), st.sampled_from([3, 9, 12]), st.integers(1, 3), st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_poses_alone_equal_the_plain_form(people: int, frames: int, joints: int, frame_stride: int, seed: int) -> None:
    fast = randomised(deformable3d_pose(**POSE | {"num_joints": joints, "frame_stride": frame_stride}).double())
    given = [x.double() for x in poses(2, people, frames, joints, seed=seed)]
    with torch.no_grad():
        torch.testing.assert_close(fast(*given), plain(copy.deepcopy(fast))(*given))


def test_rgb_and_poses_equal_the_plain_form_folded_too() -> None:
    fast = randomised(deformable3d(**RGB).double())
    given = tuple(x.double() for x in rgb_input())
    with torch.no_grad():
        want = plain(copy.deepcopy(fast))(*given)
        torch.testing.assert_close(fast(*given), want)
        torch.testing.assert_close(optimize_for_inference(fast)(*given), want)
        torch.testing.assert_close(fast.forward_features(*given).shape, (2, 32))


def test_three_coordinates_and_one_person() -> None:
    model = randomised(deformable3d_pose(**POSE, in_channels=3, extent=2.0))
    joints, scores = poses(coordinates=3, people=1)
    with torch.no_grad():
        assert torch.equal(model(joints[:, 0], scores[:, 0]), model(joints, scores))
        assert not torch.allclose(model(joints * torch.tensor([1, 1, 0.5]), scores), model(joints, scores))


def test_people_can_be_permuted_and_missing_ones_added() -> None:
    clip, joints, scores = rgb_input(people=3)
    model = randomised(deformable3d(**RGB))
    with torch.no_grad():
        want = model(clip, joints, scores)
        torch.testing.assert_close(model(clip, joints[:, [2, 0, 1]], scores[:, [2, 0, 1]]), want, rtol=1e-4, atol=1e-5)
        more = torch.cat([joints, joints[:, :1]], 1), torch.cat([scores, torch.zeros_like(scores[:, :1])], 1)
        torch.testing.assert_close(model(clip, *more), want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(clip, joints + 3, scores), want, rtol=1e-4)


def test_masking_all_joints_is_rgb_alone() -> None:
    clip, joints, scores = rgb_input()
    model = randomised(deformable3d(**RGB))
    with torch.no_grad():
        want = model(clip)
        for others in ((joints, scores * 0), (joints * torch.nan, scores), (joints[:, :0], scores[:, :0]), (joints * 0, None)):
            torch.testing.assert_close(model(clip, *others), want, rtol=1e-4, atol=1e-5)


def test_blocks_leave_the_frames_of_other_hands_alone() -> None:
    """Temporal stride: with one block, frames outside its class do not count at all."""
    model = randomised(deformable3d_pose(**POSE, depth=1, frame_stride=2)).transformer
    z, pose, visible = torch.randn(1, 16, 6, 3, 3), torch.randn(1, 6, 1, 9, 16), torch.ones(1, 6, 1, 9, dtype=torch.bool)
    with torch.no_grad():
        want = model(z, pose, visible)
        for used, changes in ((1, False), (2, True)):
            other_z, other_pose = z.clone(), pose.clone()
            other_z[:, :, used] += torch.randn(16, 3, 3)
            other_pose[:, used] += torch.randn(9, 16)
            assert torch.allclose(model(other_z, other_pose, visible), want) != changes


def test_attention_over_joints_and_time() -> None:
    joints, scores = poses()
    model = randomised(deformable3d_pose(**POSE))
    with torch.no_grad():
        found = model.joint_attention(joints, scores)
        assert found.shape == scores.shape
        torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2))
        assert not found[scores == 0].any()
        assert (found[scores > 0] > 0).all()
        assert not model.joint_attention(joints, scores * 0).any()


class Marks(nn.Module):
    """Values that say what is a joint (1) and what a modal token (0)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, float(x.ndim == 5))


def test_attention_is_what_the_modal_token_reads_with() -> None:
    attention = randomised(JointStrideAttention(8, 2, 5, 2))
    attention.v, attention.proj = Marks(), nn.Identity()  # type: ignore[assignment]
    modal, pose, visible = torch.randn(1, 2, 8), torch.randn(1, 3, 2, 9, 8), torch.rand(1, 3, 2, 9) > 0.3
    with torch.no_grad():
        share = attention.read(modal, pose, visible)  # in each channel, how much its head gives to joints
        torch.testing.assert_close(attention.weights(modal, pose, visible).sum(), share.mean())


@pytest.mark.parametrize("name", ["rgb", "pose"])
def test_it_trains(name: str) -> None:
    torch.manual_seed(0)
    model = deformable3d(**RGB) if name == "rgb" else deformable3d_pose(**POSE, drop_path_rate=0.1, dropout=0.1)
    given = rgb_input(batch=4, people=1, frames=4) if name == "rgb" else poses(batch=4, people=1)
    labels, losses, reached = torch.tensor([0, 1, 2, 3]), [], set()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(*given), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        reached |= {key for key, p in model.named_parameters() if p.grad.any()}
        optimiser.step()
        losses.append(loss.item())
    silent = {key for key, _ in model.named_parameters()} - reached
    assert {key for key in silent if not key.endswith(".k.bias")} == set()  # a bias of all keys cancels in the softmax
    assert losses[-1] < 0.5 * losses[0]


def test_half_precision() -> None:
    model = randomised(deformable3d_pose(**POSE | {"embed_dim": 32}))
    for parameter in model.parameters():
        parameter.data *= 0.7
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = model(*poses())
    with torch.no_grad():
        want = model(*poses())
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        model(*poses()).float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


PARAMETERS = {"ntu60": 15_956_732, "ntu120": 15_987_512, "gym99": 15_974_691, "penn": 15_930_575}
POSE_PARAMETERS = {
    "deformable3d_pose_gym99": 5_754_275,
    "deformable3d_pose_ntu120": 5_780_920,
    "deformable3d_pose_ntu60": 5_750_140,
    "deformable3d_pose_penn": 5_703_247,
    "deformable3d_pose_small": 371_543,
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["deformable3d_ntu60", "deformable3d_ntu120", "deformable3d_gym99", "deformable3d_penn"])
def test_parameters_of_variants(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    info, dim = model_info(name), 256
    attention = 4 * (dim**2 + dim) + 128 * (27 + 1 + 2 + 3)  # search: depthwise kernel and bias, norm, offsets
    block = attention + 4 * (dim**2 + dim) + 8 * dim**2 + 5 * dim + 3 * 2 * dim
    ends = 2 * dim + info.options["num_joints"] * dim + 4 * dim + (2 * dim + 1) * info.options["num_classes"]
    into = 512 * dim + dim + 256 * dim + dim
    assert count(model.backbone) == 11_490_240  # torchvision's mc3_18 without its classifier
    assert count(model) == 11_490_240 + into + 4 * block + ends == PARAMETERS[name.removeprefix("deformable3d_")]
    assert "reconstruction" in info.summary


def test_variants_of_poses_alone() -> None:
    for name in list_models("deformable3d_pose_*"):
        with torch.device("meta"):
            model = create_model(name)
        assert count(model) == POSE_PARAMETERS[name]
        info = model_info(name)
        assert info.task == "action"
        assert not info.published
        assert "reconstruction" in info.summary


@pytest.mark.parametrize("kind", ["rgb", "pose", "pose3d"])
def test_weights_are_recognised(kind: str, tmp_path) -> None:
    if kind == "rgb":
        model, given = deformable3d(**RGB | {"embed_dim": 32, "num_heads": 8}, depth=3, kernel=(1, 3, 5), offset_groups=1), rgb_input()
    else:
        coordinates = 2 if kind == "pose" else 3
        model = deformable3d_pose(**POSE | {"embed_dim": 32, "num_heads": 8, "heatmap_size": 56}, in_channels=coordinates, mlp_ratio=2)
        given = poses(coordinates=coordinates)
    randomised(model)
    path = tmp_path / "weights.pth"
    save_weights(model, path)
    loaded = load_published(path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(*given), model(*given))
    assert loaded.built_from["assumed"]["num_heads"] == 8
    state = model.state_dict()
    del state["transformer.norm.weight"]
    with pytest.raises(InputError, match=r"transformer\.norm\.weight"):
        load_published(state)


def test_another_number_of_classes(tmp_path) -> None:
    model = create_model("deformable3d_pose_small", num_joints=9, num_classes=5)
    save_weights(model, tmp_path / "weights.safetensors")
    other = create_model("deformable3d_pose_small", weights=tmp_path / "weights.safetensors", num_classes=3)
    assert other.transformer.head.weight.shape == (3, 128)
    assert torch.equal(other.embed_joints.weight, model.embed_joints.weight)


def test_wrong_inputs() -> None:
    model, (joints, scores) = deformable3d_pose(**POSE).eval(), poses()
    for wrong in (joints[:, :, :, :8], joints[..., :1], joints[0, 0], joints.long()):
        with pytest.raises(InputError, match="joints must be B, M, T, 9, 2, floating-point"):
            model(wrong)
    with pytest.raises(InputError, match="one for each joint"):
        model(joints, scores[:, :1])
    with pytest.raises(InputError, match="a person and a frame"):
        model(joints[:, :0])
    rgb, (clip, joints, scores) = deformable3d(**RGB).eval(), rgb_input()
    with pytest.raises(InputError, match="in pixels of the clip"):
        rgb(clip, joints / 32)
    with pytest.raises(InputError, match="joints must be 2, M, 5, 9, 2"):
        rgb(clip, joints[:, :, :4], scores[:, :, :4])
    for wrong in (clip[:, :, :2], clip[0], (clip * 255).byte(), clip[:, :0]):
        with pytest.raises(InputError, match="the clip must be B, T, 3, H, W"):
            rgb(wrong)
    wrong_options: list[dict[str, Any]] = [{"embed_dim": 12}, {"depth": 0}, {"planes": ((0, 2),)}, {"in_channels": 4}]
    for options in (*wrong_options, {"sigma": 0}, {"extent": 0}, {"widths": (4,)}):
        with pytest.raises(InputError):
            deformable3d_pose(**POSE | options)


@pytest.mark.slow
def test_compiled() -> None:
    model, given = randomised(deformable3d_pose(**POSE, depth=2, frame_stride=1)), poses()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(*given), model(*given), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["rgb", "pose"])
def test_onnx(kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = randomised(deformable3d(**RGB) if kind == "rgb" else deformable3d_pose(**POSE))
    given = rgb_input() if kind == "rgb" else poses()
    stream = io.BytesIO()
    torch.onnx.export(model, given, dynamo=True, verbose=False).save(stream)
    session = onnxruntime.InferenceSession(stream.getvalue())
    names = [entry.name for entry in session.get_inputs()]
    (got,) = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(got, model(*given).numpy(), rtol=1e-3, atol=1e-4)
