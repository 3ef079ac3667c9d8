"""The 3D deformable operators against their definition, a third party's code, and a reconstruction; and facts about them."""

from __future__ import annotations

import pytest
import torch

from vsuite.video_pose.models.deformable3d.operators import (
    DeformableAttention3d,
    MultiScaleDeformableAttention3d,
    initial_offsets,
    trilinear_sample,
)


def test_trilinear(load_case) -> None:
    case = load_case("deformable3d_action/op_trilinear")
    inputs = case.tensors()
    case.check({"out": trilinear_sample(inputs["z"], 1.5 * inputs["p"] + torch.tensor([1, 1.5, 2.5]))})


@pytest.mark.parametrize("name", ["op_msda3d", "op_msda3d_2level"])
def test_multi_scale_attention(load_case, name: str) -> None:
    case = load_case(f"deformable3d_action/{name}")
    config, inputs = dict(case.meta["config"]), case.tensors()
    shapes = config.pop("spatial_shapes", None)
    module = case.fill(MultiScaleDeformableAttention3d(**config))
    with torch.no_grad():
        case.check({"out": module(inputs["query"], inputs["key"], inputs.get("pos"), shapes)})


def test_initial_offsets(load_case) -> None:
    case = load_case("deformable3d_action/msda3d_offset_init")
    heads, points = case.meta["config"]["num_heads"], case.meta["config"]["num_points"]
    module = MultiScaleDeformableAttention3d(48, heads, points)
    case.check({"bias": initial_offsets(heads, 1, points)})
    case.check({"bias": module.sampling_offsets.bias.detach().view(heads, 1, points, 3)})
    assert not module.sampling_offsets.weight.any()
    two_levels = initial_offsets(heads, 2, points)
    assert torch.equal(two_levels[:, 0], two_levels[:, 1])


@pytest.mark.parametrize("name", ["recon_3dda", "recon_3dda_stride1"])
def test_deformable_attention(load_case, name: str) -> None:
    case = load_case(f"deformable3d_action/{name}")
    config, inputs = case.meta["config"], case.tensors()
    module = case.fill(
        DeformableAttention3d(
            config["channels"], config["heads"], config["offset_groups"], config["kernel"], config["stride"], config["offset_factor"]
        )
    )
    with torch.no_grad():
        tokens = inputs["z"].movedim(1, -1)
        offsets = module.search.offsets(module.search.q(tokens))
        modal, out = module(inputs["z"], inputs["modal"])
        case.check({"offsets": offsets, "deformable_tokens": module.search.sample(tokens, offsets), "modal": modal, "out": out})
        torch.testing.assert_close(module.read(inputs["z"], inputs["modal"]), modal)
