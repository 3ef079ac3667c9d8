"""PointNet++: the structure written out, training, folding, and the names of the common implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model, load_published, optimize_for_inference
from vsuite.pointcloud.bench.plain.gpsformer import plain_ball_query, plain_farthest_points, plain_gather
from vsuite.pointcloud.models.pointnet2 import PointNet2, SetAbstraction
from vsuite.pointcloud.point_ops import has_compiled_loops


def sphere(batch: int, count: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    points = F.normalize(torch.randn(batch, count, 3, generator=generator), dim=-1)
    return torch.cat([points, torch.randn(batch, count, channels - 3, generator=generator)], dim=-1)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        if name.endswith(("running_mean", "running_var")) or (value.ndim == 1 and value.is_floating_point()):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model


def written_out(model: PointNet2, points: Tensor) -> Tensor:
    """The network on maps B, C, k, M with its own layers, as the common implementation has it."""
    xyz, features = points[..., :3], points[..., 3:]
    for level, count, radius, samples in ((model.sa1, 512, 0.2, 32), (model.sa2, 128, 0.4, 64)):
        centres = plain_gather(xyz, plain_farthest_points(xyz, min(count, xyz.shape[1])))
        index = plain_ball_query(xyz, centres, radius, samples)
        x = torch.cat([plain_gather(xyz, index) - centres.unsqueeze(2), plain_gather(features, index)], dim=-1).permute(0, 3, 2, 1)
        for conv, norm in zip(level.mlp_convs, level.mlp_bns, strict=True):
            x = F.relu(norm(conv(x)))
        xyz, features = centres, x.max(dim=2)[0].transpose(1, 2)
    x = torch.cat([xyz, features], dim=-1).transpose(1, 2).unsqueeze(3)
    for conv, norm in zip(model.sa3.mlp_convs, model.sa3.mlp_bns, strict=True):
        x = F.relu(norm(conv(x)))
    x = x.amax((2, 3))
    return model.fc3(F.relu(model.bn2(model.fc2(F.relu(model.bn1(model.fc1(x)))))))


@pytest.mark.parametrize("channels", [3, 6])
@torch.inference_mode()
def test_equals_the_structure_written_out(channels: int) -> None:
    torch.manual_seed(0)
    model = randomised(PointNet2(num_classes=5, in_channels=channels)).eval()
    points = sphere(2, 600, channels)
    want = written_out(model, points)
    torch.testing.assert_close(model(points), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(optimize_for_inference(model)(points), want, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(points).float(), want, atol=0.05 * float(want.abs().max()), rtol=0.05)


def test_it_trains() -> None:
    torch.manual_seed(0)
    model = PointNet2(num_classes=2, dropout=0.0)
    points = torch.cat([sphere(4, 32), sphere(4, 32) * torch.tensor([1.0, 0.2, 0.2])])
    label = torch.tensor([0] * 4 + [1] * 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(points), label)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    # a bias before a norm changes nothing: its gradient is zero in theory
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if name.endswith("weight") and not p.grad.any()] == []
    assert int(model.sa1.mlp_bns[0].num_batches_tracked) == 8


def test_published_names() -> None:
    model = create_model("pointnet2", num_classes=40)
    assert sum(p.numel() for p in model.parameters()) == 1_475_688
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert {"sa1.mlp_convs.0.weight", "sa3.mlp_bns.2.running_var", "bn1.weight", "fc3.bias"} <= set(state)
    assert tuple(state["sa2.mlp_convs.0.weight"].shape) == (128, 131, 1, 1)
    again = load_published({"epoch": 3, "model_state_dict": state})
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    normals = create_model("pointnet2", num_classes=7, in_channels=6)
    assert load_published(dict(normals.state_dict())).in_channels == 6
    with pytest.raises(InputError, match=r"1 missing: bn1\.bias"):
        load_published({name: value for name, value in state.items() if name != "bn1.bias"})


def test_wrong_input() -> None:
    model = PointNet2().eval()
    with pytest.raises(InputError, match="B, N, 3"):
        model(torch.zeros(1, 9, 6))
    with pytest.raises(InputError, match="NaN"):
        model(torch.full((1, 9, 3), float("nan")))
    with pytest.raises(InputError, match="in_channels"):
        PointNet2(in_channels=2)
    with pytest.raises(InputError, match="num_classes"):
        model.reset_head(0)


@torch.inference_mode()
def test_small_and_duplicated_clouds() -> None:
    model = PointNet2(num_classes=4).eval()
    assert has_compiled_loops()
    for points in (torch.zeros(2, 1, 3), sphere(2, 5).repeat(1, 3, 1), sphere(1, 13)):
        assert bool(model(points).isfinite().all())


def test_the_whole_cloud_is_one_group() -> None:
    level = SetAbstraction(None, 0.0, 0, 3, (4,)).eval()
    centres, features = level(sphere(2, 20), None)
    assert (centres.shape, features.shape) == ((2, 1, 3), (2, 1, 4))
