"""Label maps that do not go with their image or their names: in `train` and in `evaluate`."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

SHAPE = (18, 16, 14)
AFFINE = np.array([[0, -1.0, 0, 10], [1.5, 0, 0, -4], [0, 0, 2.0, 3], [0, 0, 0, 1.0]])


def blocks(dtype=np.uint8, **ids) -> np.ndarray:
    label = np.zeros(SHAPE, dtype)
    label[4:12, 4:12, 3:10] = 1
    label[6:9, 6:9, 5:8] = ids.get("lesion", 2)
    return label


def moved(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[2, 3] += millimetres
    return affine


BAD = {
    "id outside": (lambda: (blocks(lesion=7), AFFINE), ("label ids 7 are not in the label map", "[0, 1, 2]")),
    "negative": (lambda: (blocks(np.int16, lesion=-3), AFFINE), ("negative id -3",)),
    "fraction": (lambda: (blocks(np.float32, lesion=1.5), AFFINE), ("27 voxels are not whole numbers",)),
    "NaN": (lambda: (blocks(np.float32, lesion=np.nan), AFFINE), ("27 voxels are NaN",)),
    "4D": (lambda: (np.stack([blocks()] * 2, -1), AFFINE), ("4D with 2 channels", "3D label map")),
    "shape": (lambda: (blocks()[:, :, :-1], AFFINE), ("shape differs", "18 x 16 x 14", "18 x 16 x 13")),
    "origin": (lambda: (blocks(), moved(2.5)), ("origin differs by 2.5 mm",)),
    "spacing": (lambda: (blocks(), AFFINE @ np.diag([1, 1, 1.25, 1])), ("spacing differs by 0.5 mm",)),
    "direction": (lambda: (blocks(), AFFINE @ np.diag([-1, 1, 1, 1])), ("direction differs by up to 180 degrees",)),
}


@pytest.mark.parametrize("kind", BAD)
def test_training_on_a_bad_label(kind, train, dataset, save, leavings, tmp_path):
    make, parts = BAD[kind]
    save(dataset / "labelsTr" / "b.nii.gz", *make())
    train().refused("b.nii.gz", *parts)
    assert leavings(tmp_path / "run") == []


@pytest.mark.parametrize("kind", BAD)
def test_evaluating_a_bad_label(kind, invoke, dataset, save, tmp_path):
    """The case is told and recorded, and the other one is compared."""
    make, parts = BAD[kind]
    save(tmp_path / "maps" / "a.nii.gz", blocks())
    save(tmp_path / "maps" / "b.nii.gz", *make())
    finished = invoke("evaluate", tmp_path / "maps", "--data", dataset / "labelsTr", "--out", tmp_path / "result", "--no-pictures")
    line = finished.refused("1 of 2 cases could not be compared", "b.nii.gz")
    if kind not in ("shape", "origin", "spacing", "direction"):
        assert all(part in line for part in parts)
    else:
        assert parts[0] in line
    result = json.loads((tmp_path / "result" / "metrics.json").read_text())
    assert [sample["name"] for sample in result["samples"]] == ["a"]
    assert result["mean_dice"] == 1
    assert list(result["errors"]) == ["b"]


def test_whole_numbers_in_a_floating_point_label_are_taken(train, dataset, save, tmp_path):
    for name in ("a", "b"):
        save(dataset / "labelsTr" / f"{name}.nii.gz", blocks(np.float32))
    finished = train()
    assert finished.code == 0, finished.err
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()


def test_all_that_is_wrong_is_told_at_once(train, dataset, save):
    save(dataset / "labelsTr" / "a.nii.gz", blocks(lesion=9))
    save(dataset / "imagesTr" / "b_0000.nii.gz", np.zeros((3, 3, 3), np.float32))
    train().refused("2 of 2 cases cannot be used", "a.nii.gz: label ids 9", "b.nii.gz", "shape differs")


def test_no_label_holds_a_structure(train, dataset, save):
    for name in ("a", "b"):
        save(dataset / "labelsTr" / f"{name}.nii.gz", np.zeros(SHAPE, np.uint8))
    train().refused("no label holds anything but background")


def test_a_missing_label_is_named(train, dataset):
    (dataset / "labelsTr" / "b.nii.gz").unlink()
    train().refused("b")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ("dataset.json", "JSON", "line 1 column 2")),
        ("[]", ("neither Decathlon", "nor nnU-Net")),
        ('{"labels": {"background": 0}}', ("neither Decathlon", "nor nnU-Net")),
        ('{"channel_names": {"0": "T1"}, "labels": {"background": 0, "organ": "x"}}', ("'organ'", "'x'")),
        ('{"channel_names": {"0": "T1"}, "labels": {"background": 0, "organ": 1, "liver": 1}}', ("ids with two names: 1",)),
        ('{"channel_names": {"0": "T1"}, "labels": {"background": 0, "all": [1, 2], "lesion": 2}}', ("regions_class_order",)),
        ('{"modality": {"0": "MR"}, "labels": {"0": "background", "1": "a"}, "training": [{"label": "x"}]}', ("entry without an image",)),
    ],
)
def test_a_wrong_description(content, parts, train, dataset, tmp_path):
    (dataset / "dataset.json").write_text(content)
    train().refused(*parts)
    assert not (tmp_path / "run").exists()


def test_evaluating_what_has_nothing_in_common(invoke, dataset, save, tmp_path):
    save(tmp_path / "maps" / "other.nii.gz", blocks())
    command = ("evaluate", tmp_path / "maps", "--data", dataset / "labelsTr", "--out", tmp_path / "result")
    invoke(*command).refused("none of its 1 cases (other)", "a, b")
    assert not (tmp_path / "result").exists()
    save(tmp_path / "maps" / "a.nii.gz", blocks())
    invoke(*command, "--convention", "nnunett").refused("unknown convention 'nnunett'; did you mean 'nnunet'")
    invoke(*command, "--nsd-tolerance", "-1").refused("-1")
    invoke(*command, "--images", tmp_path / "none").refused("none: no such folder of images")
    assert nib.load(tmp_path / "maps" / "a.nii.gz").shape == SHAPE
