"""Other data than one channel with plain labels: overlapping regions, several channels in one 4D file; and the real set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vsuite.core.weights import read_metadata
from vsuite.medical.demo_data import make_demo_dataset

SIZE = (24, 28, 16)
CASE = "phantom_9000"


@pytest.fixture
def whole_way(recipe, invoke, tmp_path):
    """Trains two steps on a data set, predicts its test case and evaluates it; the plan, the label map and the metrics."""

    def execute(data: Path) -> tuple[dict, np.ndarray, dict]:
        weights, maps = tmp_path / "run" / "checkpoints" / "best.safetensors", tmp_path / "maps"
        short = ("--set", "training.steps=2")
        for command in (
            ("train", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu", *short),
            ("predict", "--weights", weights, data / "imagesTs", "--out", maps, "--device", "cpu", "--overlap", 0, "--probabilities"),
            ("evaluate", maps, "--data", data / "labelsTs", "--out", tmp_path / "result", "--no-pictures"),
        ):
            finished = invoke(*command)
            assert finished.code == 0, finished.err
        label = nib.load(maps / f"{CASE}.nii.gz")
        image = next((data / "imagesTs").glob(f"{CASE}*"))
        assert np.array_equal(label.affine, nib.load(image).affine)
        metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())
        return read_metadata(weights)["plan"], np.asanyarray(label.dataobj), metrics

    return execute


def test_overlapping_regions(whole_way, tmp_path):
    data = make_demo_dataset(tmp_path / "data", cases=3, test_cases=1, size=SIZE)
    description = json.loads((data / "dataset.json").read_text())
    description["labels"] = {"background": 0, "brain": [1, 2, 4], "inner": [2, 4], "lesion": [4], "stem": 3}
    description["regions_class_order"] = [1, 2, 4, 3]
    (data / "dataset.json").write_text(json.dumps(description))
    plan, label, metrics = whole_way(data)
    assert plan["options"]["num_classes"] == 4
    assert plan["regions_class_order"] == [1, 2, 4, 3]
    assert set(np.unique(label)) <= {0, 1, 2, 3, 4}
    assert [name for name in metrics["summary"] if name.startswith("dice/")] == [f"dice/{n}" for n in ("brain", "inner", "lesion", "stem")]
    reference = np.asanyarray(nib.load(data / "labelsTs" / f"{CASE}.nii.gz").dataobj)
    scores = np.load(tmp_path / "maps" / f"{CASE}_probabilities.npy")
    assert scores.shape == (4, *reference.shape)
    found, wanted = np.isin(label, [1, 2, 4]), np.isin(reference, [1, 2, 4])
    expected = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    assert np.isclose(metrics["samples"][0]["dice/brain"], expected, atol=1e-9)


def test_two_channels_in_one_4d_file(whole_way, tmp_path):
    data = make_demo_dataset(tmp_path / "data", cases=3, test_cases=1, size=SIZE, channels=2, layout="decathlon")
    assert nib.load(data / "imagesTs" / f"{CASE}.nii.gz").ndim == 4
    plan, label, metrics = whole_way(data)
    assert plan["channels"] == ["MR contrast 1", "MR contrast 2"]
    assert (plan["options"]["in_channels"], plan["options"]["num_classes"]) == (2, 5)
    assert label.ndim == 3
    assert metrics["num_samples"] == 1


@pytest.mark.slow
def test_the_hippocampus_recipe_on_the_real_data(invoke, tmp_path):
    root = Path(os.environ.get("VSUITE_DATA") or Path(__file__).parents[3] / "shared" / "data")
    data = root / "medical" / "hippocampus"
    if not (data / "dataset.json").exists():
        pytest.skip(f"no data set at {data}; VSUITE_DATA names another folder")
    cases = [
        entry["label"].rsplit("/", 1)[-1].removesuffix(".nii.gz") for entry in json.loads((data / "dataset.json").read_text())["training"]
    ]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": sorted(cases)[:6], "val": sorted(cases)[6:8]}))
    short = [f"--set=training.{name}=3" for name in ("steps", "validate_every", "checkpoint_every")]
    finished = invoke(
        "train", "--data", data, "--recipe", "hippocampus", "--out", tmp_path / "run", "--device", "cpu", "--split", split, *short
    )
    assert finished.code == 0, finished.err
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < records[-1]["validation"]["dice"] < 1
