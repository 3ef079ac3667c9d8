"""Lifting models, cameras and pose metrics against published implementations; ConvFormer's own cases are reconstructions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vsuite.core import create_model, load_published, model_info, optimize_for_inference
from vsuite.video_pose.cameras import Camera, denormalize_screen, normalize_screen, project
from vsuite.video_pose.metrics import pose
from vsuite.video_pose.models.convformer import DMHCSA, ConvFormer
from vsuite.video_pose.models.lifter import windows
from vsuite.video_pose.models.poseformer import PoseFormer
from vsuite.video_pose.models.videopose3d import TemporalModel
from vsuite.video_pose.skeletons import H36M17


def convformer(config: dict) -> tuple[type[nn.Module], dict]:
    same = ("num_joints", "spatial_depth", "temporal_depth", "num_heads", "kernel_sizes", "mlp_ratio")
    ours = {"num_frames": config["num_frame"], "in_channels": config["in_chans"], "embed_dim": config["dim"]}
    return ConvFormer, ours | {name: config[name] for name in same}


def poseformer(config: dict) -> tuple[type[nn.Module], dict]:
    same = ("num_joints", "depth", "num_heads", "mlp_ratio", "qkv_bias")
    ours = {"num_frames": config["num_frame"], "in_channels": config["in_chans"], "embed_dim": config["embed_dim_ratio"]}
    return PoseFormer, ours | {name: config[name] for name in same}


def temporal_model(config: dict) -> tuple[type[nn.Module], dict]:
    same = ("num_joints_out", "filter_widths", "causal", "channels")
    ours = {"num_joints": config["num_joints_in"], "in_channels": config["in_features"]}
    return TemporalModel, ours | {name: config[name] for name in same}


CASES = {
    "recon_9f": convformer,
    "recon_27f_mixed": convformer,
    "poseformer_9f": poseformer,
    "poseformer_small": poseformer,
    "videopose3d_27f_small": temporal_model,
    "videopose3d_9f_causal": temporal_model,
}
# What a checkpoint does not record.
NOT_IN_FILE = ("num_heads", "causal")


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_whole_model(load_case, name: str) -> None:
    case = load_case(f"convformer_pose/{name}")
    build, options = CASES[name](case.meta["config"])
    model = case.fill(build(**options))
    case.check({"out": model(case.tensors()["x"])})
    case.check({"out": optimize_for_inference(model)(case.tensors()["x"])})


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_published_layout(load_case, name: str) -> None:
    case = load_case(f"convformer_pose/{name}")
    _, options = CASES[name](case.meta["config"])
    state = {f"module.{key}": torch.from_numpy(value) for key, value in case.state_dict().items()}
    given = {key: options[key] for key in NOT_IN_FILE if key in options}
    model = load_published({"epoch": 60, "lr": 1e-4, "optimizer": {"state": {}}, "model_pos": state}, **given).eval()
    case.check({"out": model(case.tensors()["x"])})


@pytest.mark.parametrize("axis", ["spatial", "temporal"])
@torch.inference_mode()
def test_convolutional_attention(load_case, axis: str) -> None:
    case = load_case(f"convformer_pose/op_dmhcsa_{axis}")
    config = case.meta["config"]
    module = case.fill(DMHCSA(config["channels"], config["heads"], config["kernel_sizes"], config["axis"]))
    case.check({"out": module(case.tensors()["x"])})
    module.fold()
    case.check({"out": module(case.tensors()["x"])})


def test_windows(load_case) -> None:
    case = load_case("convformer_pose/op_windows")
    config, keypoints = case.meta["config"], case.tensors()["kps"]
    assert (list(H36M17.left), list(H36M17.right)) == (config["left"], config["right"])
    found = windows(keypoints, config["receptive_field"])
    case.check({"windows": found, "windows_flipped": H36M17.flip(found)})
    assert found.untyped_storage().nbytes() == (7 + 8) * 17 * 2 * 4  # a view, no copies


def rigid(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation (as quaternion) and translation that take points to others: after = rotation @ before + translation."""
    from scipy.spatial.transform import Rotation

    centre = before.mean(0), after.mean(0)
    rotation = Rotation.align_vectors(after - centre[1], before - centre[0])[0]
    return np.roll(rotation.as_quat(), 1), centre[1] - rotation.apply(centre[0])


def test_camera(load_case) -> None:
    """The calibration is the data set's and not kept here: its 9 intrinsics are in the case, its place follows from 85 points."""
    case = load_case("convformer_pose/op_camera")
    world = 0.5 * case.inputs()["world"] + np.array([0, 0, 1], np.float32)
    seen = case.samples["camera"].reshape(-1, 3).astype(np.float64)
    orientation, translation = rigid(seen, world.reshape(-1, 3).astype(np.float64))
    width, height = 1000, 1002
    intrinsics = case.samples["intrinsic"].astype(np.float64)
    camera = Camera(
        orientation=tuple(orientation),
        translation=tuple(translation),
        focal_length=tuple(intrinsics[:2] * width / 2),
        center=tuple(denormalize_screen(intrinsics[2:4], width, height)),
        width=width,
        height=height,
        radial_distortion=tuple(intrinsics[4:7]),
        tangential_distortion=tuple(intrinsics[7:]),
    )
    points = camera.from_world(world)
    assert points.dtype == np.float32
    case.check(
        {
            "intrinsic": camera.intrinsics,
            "camera": points,
            "back_to_world": camera.to_world(points),
            "projected": project(points, camera.intrinsics),
            "projected_linear": project(points, camera.intrinsics, distortion=False),
            "projected_pixels": camera.project(points),
            "normalised": normalize_screen(1000 * case.inputs()["pixels"], width, height),
        }
    )


def test_metrics(load_case) -> None:
    case = load_case("convformer_pose/op_metrics")
    target, noise = 0.4 * case.inputs()["target"], case.inputs()["noise"]
    target[:, :, 0] = 0
    prediction = target + np.float32(0.05) * noise
    turn = np.array([[np.cos(0.7), -np.sin(0.7), 0], [np.sin(0.7), np.cos(0.7), 0], [0, 0, 1]], np.float32)
    prediction[1] = 1.3 * target[1] + 0.02 * noise[1]
    prediction[2] = target[2] @ turn + 0.03 * noise[2] + 0.1
    prediction[3] = target[3] * np.array([1, 1, -1], np.float32) + 0.01 * noise[3]
    prediction[4] = 0.5 * noise[4]
    names = {"mpjpe": "mpjpe", "p_mpjpe": "p_mpjpe", "n_mpjpe": "n_mpjpe", "mpjve": "mpjve", "pck150": "pck", "auc150": "auc"}
    case.check({key: [pose.METRICS[ours](p, t) for p, t in zip(prediction, target, strict=True)] for key, ours in names.items()})


PARAMETERS = {
    "convformer_t9": 2_560_533,
    "convformer_t27": 2_653_647,
    "convformer_t81": 3_430_653,
    "convformer_t143": 5_243_347,
    "convformer_t243": 10_240_647,
    "poseformer_t9": 9_563_645,
    "poseformer_t27": 9_573_455,
    "poseformer_t81": 9_602_885,
    "videopose3d_t27": 8_555_571,
    "videopose3d_t81": 12_753_971,
    "videopose3d_t243": 16_952_371,
}
# Millions, as printed in the paper.
ABLATIONS = {
    "k3": 2.44,
    "k3_3": 2.46,
    "k3_3_3": 2.48,
    "k5_5": 2.49,
    "k5_5_5": 2.52,
    "k7": 2.47,
    "k7_7": 2.51,
    "k9": 2.48,
    "k9_9": 2.54,
    "k9_9_9": 2.60,
    "k3_5_7": 2.52,
    "k5_7_9": 2.56,
    "d16_4_2": 0.69,
    "d32_2_4": 4.95,
    "d32_4_2": 2.70,
}
# Where the reconstruction has other counts than the paper prints: ours, and the paper's.
OTHER = {"k5": (2.454, 2.46), "d16_2_2": (0.659, 0.65), "d16_2_4": (1.265, 1.26), "d64_2_2": (10.12, 9.97)}


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    assert parameters(name) == PARAMETERS[name]
    assert model_info(name).published or name == "poseformer_t9"


@pytest.mark.parametrize("name", ABLATIONS)
def test_parameter_counts_of_ablations(name: str) -> None:
    assert round(parameters(f"convformer_t9_{name}") / 1e6, 2) == ABLATIONS[name]


@pytest.mark.parametrize("name", OTHER)
def test_parameter_counts_that_differ_from_the_paper(name: str) -> None:
    ours, paper = OTHER[name]
    count = parameters(f"convformer_t9_{name}") / 1e6
    assert abs(count - ours) < 0.006
    assert abs(count / paper - 1) < 0.016


def test_the_published_layout_of_joints() -> None:
    assert H36M17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
