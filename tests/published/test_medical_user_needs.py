"""Geometry and sliding windows against MONAI's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsuite.medical.data import geometry
from vsuite.medical.inference import sliding_window


@pytest.mark.parametrize("name", ["geometry", "geometry_oblique"])
def test_orientation_and_spacing(load_case, name):
    case = load_case(f"medical_user_needs/{name}")
    config, volume = case.meta["config"], case.inputs()["volume"].astype(np.float32)
    affine = np.array(config["affine"])
    assert geometry.orientation_of(affine) == config["axcodes_in"]

    oriented, affine_oriented = geometry.reorient_to_ras(volume[None], affine)
    assert geometry.orientation_of(affine_oriented) == config["axcodes_out"]
    spaced, affine_spaced = geometry.resample(oriented, affine_oriented, config["pixdim"])
    label, _ = geometry.resample((oriented > 0.5).astype(np.int64), affine_oriented, config["pixdim"], "nearest")

    inverted = np.empty((1, *volume.shape), np.float32)
    back = geometry.resample_to(spaced, affine_spaced, oriented.shape[1:], affine_oriented)
    geometry.ras_view(inverted, affine)[...] = back
    case.check(
        {
            "oriented": oriented,
            "affine_oriented": affine_oriented,
            "spaced": spaced,
            "affine_spaced": affine_spaced,
            "inverted": inverted,
            "label_nearest": label,
        }
    )


def test_sliding_window(load_case):
    case = load_case("medical_user_needs/sliding_window")
    config, volume = case.meta["config"], torch.from_numpy(case.inputs()["x"].astype(np.float32))
    i, j, k = torch.meshgrid(*(torch.arange(side) for side in config["roi"]), indexing="ij")
    ramp = 1 + 0.1 * i + 0.01 * j + 0.001 * k

    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows * ramp, windows - ramp], dim=1)

    outputs = {}
    for number, setting in enumerate(config["settings"]):
        overlap, blend, more = setting["overlap"], setting["mode"], {k: v for k, v in setting.items() if k == "sigma_scale"}
        outputs[f"out{number}"] = sliding_window(volume, config["roi"], network, overlap, blend, batch_size=config["sw_batch_size"], **more)
    case.check(outputs)
