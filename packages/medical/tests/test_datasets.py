"""Reading data sets: three layouts, everything that can be wrong with them, and splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import Case, DatasetDescription, check_case, describe, read_dataset
from vsuite.medical.data.splits import split_cases


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def voxels(channels: int = 1) -> np.ndarray:
    array = np.random.default_rng(0).normal(size=(6, 7, 8, channels)).astype(np.float32)
    return array[..., 0] if channels == 1 else array


def label_map(*ids: int) -> np.ndarray:
    array = np.zeros((6, 7, 8), np.uint8)
    for i, identifier in enumerate(ids):
        array[i + 1, 2:4] = identifier
    return array


def decathlon(root: Path, names: tuple[str, ...] = ("a", "b"), channels: int = 1, **changes: Any) -> Path:
    for name in names:
        write(root / "imagesTr" / f"{name}.nii.gz", voxels(channels))
        write(root / "labelsTr" / f"{name}.nii.gz", label_map(1, 2))
    content = {
        "name": "Toy",
        "modality": {str(i): name for i, name in enumerate(["FLAIR", "T1w"][:channels])},
        "labels": {"0": "background", "1": "organ", "2": "tumour"},
        "numTraining": len(names),
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(content | changes))
    return root


def nnunet(root: Path, names: tuple[str, ...] = ("a", "b"), **changes: Any) -> Path:
    for name in names:
        for channel in range(2):
            write(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", voxels())
        write(root / "labelsTr" / f"{name}.nii.gz", label_map(1, 2, 3))
    content = {
        "channel_names": {"0": "T1", "1": "CT"},
        "labels": {"background": 0, "edema": 1, "core": 2, "enhancing": 3},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content | changes))
    return root


def test_decathlon_is_understood_from_the_folder_and_from_the_json(tmp_path: Path) -> None:
    root = decathlon(tmp_path, channels=2)
    (root / "imagesTr" / "._a.nii.gz").write_bytes(b"Mac OS X")
    for path in (root, root / "dataset.json"):
        found = read_dataset(path)
        assert (found.layout, found.name, found.channels) == ("decathlon", "Toy", ["FLAIR", "T1w"])
        assert found.labels == {"background": 0, "organ": 1, "tumour": 2}
        assert found.training == [Case(n, (root / "imagesTr" / f"{n}.nii.gz",), root / "labelsTr" / f"{n}.nii.gz") for n in "ab"]
    text = describe(found)
    assert "Decathlon" in text
    assert "0 FLAIR, 1 T1w" in text
    assert "2 with labels" in text


def test_nnunet_is_understood(tmp_path: Path) -> None:
    write(tmp_path / "imagesTs" / "z_0000.nii.gz", voxels())
    write(tmp_path / "imagesTs" / "z_0001.nii.gz", voxels())
    found = read_dataset(nnunet(tmp_path))
    assert (found.layout, found.channels) == ("nnunet", ["T1", "CT"])
    assert [p.name for p in found.training[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [case.name for case in found.test] == ["z"]
    assert found.regions_class_order is None
    image, label = check_case(found.training[0], found)
    assert image.array.shape == (2, 6, 7, 8)
    assert label is not None


def test_nnunet_regions_and_ignore(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}
    found = read_dataset(nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3]))
    assert found.labels == labels
    assert found.regions_class_order == [1, 2, 3]


@pytest.mark.parametrize("names", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_plain_folders_get_their_ids_from_the_files(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path / names[0] / "a.nii", voxels(2))
    write(tmp_path / names[1] / "a.nii", label_map(1, 5))
    found = read_dataset(tmp_path)
    assert found.layout == "folders"
    assert found.labels == {"background": 0, "label 1": 1, "label 5": 5}
    assert len(found.channels) == 2
    assert any("not consecutive" in note or "made up" in note for note in found.notes)


def test_plain_folders_with_one_file_a_channel(tmp_path: Path) -> None:
    for channel in range(3):
        write(tmp_path / "images" / f"a_{channel:04d}.nii.gz", voxels())
    write(tmp_path / "labels" / "a.nii.gz", label_map(1))
    found = read_dataset(tmp_path)
    assert len(found.channels) == len(found.training[0].images) == 3


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    root = nnunet(tmp_path, names=("a", "b", "c"))
    (root / "imagesTr" / "b_0001.nii.gz").unlink()
    (root / "labelsTr" / "c.nii.gz").unlink()
    write(root / "labelsTr" / "stray.nii.gz", label_map(1))
    write(root / "imagesTr" / "odd.nii.gz", voxels())
    write(root / "imagesTr" / "a_0000.nii", voxels())
    with pytest.raises(InputError) as error:
        read_dataset(root)
    message = str(error.value)
    for part in ("missing channels: b_0001", "images without a label: c", "labels without an image: stray", "odd.nii.gz", "a_0000.nii"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training": [{"image": "imagesTr/none.nii.gz", "label": "labelsTr/a.nii.gz"}]}, "missing files: imagesTr/none.nii.gz"),
        ({"training": [{"image": "imagesTr/a.nii.gz"}]}, "no label for: a"),
        ({"training": []}, "no training cases"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2}, "listed twice: a"),
        ({"labels": {"0": "liver", "1": "tumour"}}, "0 is the background"),
        ({"labels": {"0": "background", "1": "x", "2": "x"}}, "two labels are named 'x'"),
        ({"labels": {"0": "background"}}, "no label beside"),
        ({"labels": {"background": 0, "x": -1}}, "ids are whole numbers"),
        ({"labels": []}, "neither Decathlon"),
    ],
)
def test_a_wrong_decathlon_file_is_named(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        read_dataset(decathlon(tmp_path, **changes))


def test_regions_without_an_order_are_refused(tmp_path: Path) -> None:
    for make in (nnunet, decathlon):
        root = make(tmp_path / make.__name__, labels={"background": 0, "whole": [1, 2]})
        with pytest.raises(InputError, match="regions_class_order"):
            read_dataset(root)


def test_mixed_endings_and_empty_folders_are_refused(tmp_path: Path) -> None:
    for name, ending in (("a", ".nii.gz"), ("b", ".nii.gz"), ("c", ".nii")):
        write(tmp_path / "images" / f"{name}{ending}", voxels())
        write(tmp_path / "labels" / f"{name}{ending}", label_map(1))
    with pytest.raises(InputError, match=r"mixed file endings .*c\.nii"):
        read_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a data set"):
        read_dataset(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        read_dataset(tmp_path / "none")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not a readable JSON"):
        read_dataset(tmp_path)


def test_a_wrong_count_and_gaps_in_ids_are_only_noted(tmp_path: Path) -> None:
    found = read_dataset(decathlon(tmp_path, numTraining=7, labels={"0": "background", "1": "a", "4": "b"}))
    assert any("numTraining 7" in note and "2 cases" in note for note in found.notes)
    assert any("not consecutive ([0, 1, 4])" in note for note in found.notes)
    assert "note: " in describe(found)


def test_check_case_names_what_differs(tmp_path: Path) -> None:
    found = read_dataset(decathlon(tmp_path))
    write(tmp_path / "labelsTr" / "a.nii.gz", label_map(1), spacing=(1.0, 1.0, 1.5))
    with pytest.raises(InputError, match=r"labelsTr/a\.nii\.gz.*spacing differs by 0\.5"):
        check_case(found.training[0], found)
    write(tmp_path / "labelsTr" / "a.nii.gz", label_map(1, 7, 9))
    with pytest.raises(InputError, match=r"a\.nii\.gz: label ids 7, 9 .*\[0, 1, 2\]"):
        check_case(found.training[0], found)
    broken = voxels()
    broken[0, 0, 0] = np.nan
    write(tmp_path / "imagesTr" / "b.nii.gz", broken)
    with pytest.raises(InputError, match=r"b\.nii\.gz: 1 voxels are NaN"):
        check_case(found.training[1], found)


def described(count: int) -> DatasetDescription:
    cases = [Case(f"case{i:03d}", (Path("x"),), Path("y")) for i in range(count)]
    return DatasetDescription("toy", Path(), "folders", ["MRI"], {"background": 0, "a": 1}, cases)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 40), folds=st.integers(2, 8), seed=st.integers(0, 1000))
def test_folds_divide_the_cases(count: int, folds: int, seed: int) -> None:
    folds = min(folds, count)
    splits = [split_cases(described(count), fold=i, folds=folds, seed=seed) for i in range(folds)]
    assert sorted(name for s in splits for name in s.val) == [c.name for c in described(count).training]
    for split in splits:
        assert not set(split.train) & set(split.val)
        assert len(split.train) + len(split.val) == count


def test_a_fraction_is_the_same_every_time_and_follows_the_seed() -> None:
    first, second = split_cases(described(20), fraction=0.25), split_cases(described(20), fraction=0.25)
    assert first == second
    assert len(first.val) == 5
    assert first != split_cases(described(20), fraction=0.25, seed=1)
    assert split_cases(described(3), fraction=0.0).val == []
    with pytest.raises(InputError, match="fold must lie"):
        split_cases(described(10), fold=5, folds=5)


def test_a_split_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["case000.nii.gz", "case001"], "val": ["case002"]}))
    assert split_cases(described(4), file=path).train == ["case000", "case001"]
    path.write_text(json.dumps([{"train": ["case000"], "val": ["case001"]}, {"train": ["case001"], "val": ["case000"]}]))
    assert split_cases(described(2), file=path, fold=1).val == ["case000"]
    with pytest.raises(InputError, match="has folds 0 to 1; got 2"):
        split_cases(described(2), file=path, fold=2)
    path.write_text(json.dumps({"train": ["case000"], "val": ["case01"]}))
    with pytest.raises(InputError, match=r"split\.json.*unknown case 'case01'; did you mean"):
        split_cases(described(4), file=path)
    path.write_text(json.dumps({"train": ["case000"], "val": ["case000"]}))
    with pytest.raises(InputError, match="both train and val: case000"):
        split_cases(described(4), file=path)
    path.write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match="a split is"):
        split_cases(described(4), file=path)
