"""The weights that come with the package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vsuite.core import InputError, list_models
from vsuite.pointcloud.data.clouds import PointCloud, read_cloud
from vsuite.pointcloud.inference import Predictor
from vsuite.pointcloud.simulate.solids import CLASSES, make_solids

DATA = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "lidar" / "kitti"


def test_it_ships_within_its_size() -> None:
    assert {"flatformer", "centerpoint_waymo", "gpsformer_elite", "pointnet2"} <= set(list_models(with_weights=True))
    files = sorted((Path(__file__).parents[1] / "src/vsuite/pointcloud/weights").glob("*.safetensors"))
    assert [file.stem for file in files] == ["centerpoint_streets", "flatformer_streets", "gpsformer_solids", "pointnet2_solids"]
    assert all(file.stat().st_size < 8e6 and file.with_suffix(".md").is_file() for file in files)


def test_parts_need_weights() -> None:
    with pytest.raises(InputError, match="no weights for the task 'parts' come with the package"):
        Predictor(task="parts")


@pytest.mark.parametrize(("weights", "rightly"), [(None, 0.7), ("gpsformer_solids", 0.45)])
def test_they_name_solids(weights: str | None, rightly: float) -> None:
    clouds, labels = make_solids(64, 256, seed=99)
    namer = Predictor(weights, task="classify")
    assert namer.note.classes == list(CLASSES)
    named = namer.classify([PointCloud(cloud) for cloud in clouds]).argmax(axis=1)
    assert (named == labels).mean() > rightly  # one in sixteen would be by chance


@pytest.mark.parametrize("weights", ["centerpoint_streets", "flatformer_streets"])
def test_they_find_cars_in_a_real_sweep(weights: str) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA}: no real sweep here")
    cloud = read_cloud(DATA / "000008.bin", columns=["x", "y", "z", "intensity"])
    found = Predictor(weights).detect(cloud, score_threshold=0.17)
    labelled = [box["box"] for box in json.loads((DATA / "000008.json").read_text())["boxes"] if box["label"] == "Car"]
    away = np.linalg.norm(np.array(labelled)[:, None, :2] - found.boxes.numpy()[None, :, :2], axis=-1)  # labelled, found
    assert (away.min(axis=1) < 0.5).sum() >= 3
    assert (away.min(axis=0) < 0.5).all()  # and nothing else
