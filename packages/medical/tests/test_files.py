"""Pictures, arrays and slice sets: the files that are not NIfTI, from reading to label maps of their kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import check_case, read_dataset
from vsuite.medical.data.files import ending_of, is_image, label_ending, read_grid, read_image, read_label, stem_of, write_label
from vsuite.medical.data.nifti import Volume
from vsuite.medical.data.splits import split_cases

IDS = np.array([[0, 1, 2], [4, 0, 1]], np.uint8)  # rows, columns


def test_names() -> None:
    names = {"a.nii.gz": ".nii.gz", "b.PNG": ".png", "case0001.npy.h5": ".npy.h5", "p_slice_1.h5": ".h5", "c.txt": ".txt"}
    assert {name: ending_of(Path(name)) for name in names} == names
    assert [stem_of(Path(name)) for name in names] == ["a", "b", "case0001", "p_slice_1", "c"]
    assert [is_image(name) for name in (*names, "._a.png")] == [True, True, True, True, False, False]
    assert [label_ending(Path(name)) for name in ("a.jpg", "a.tif", "a.dcm", "a.npz", "a.nii")] == [".png", ".png", *[".nii.gz"] * 3]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_is_a_volume_one_voxel_thick(tmp_path: Path, dtype: type) -> None:
    pixels = (IDS.astype(dtype) * (60 if dtype == np.uint8 else 15000)).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    volume = read_image(tmp_path / "x.png", channels=1)
    assert np.array_equal(volume.array[0, :, :, 0], pixels.T)
    assert read_grid(tmp_path / "x.png")[0] == (3, 2, 1)
    with pytest.raises(InputError, match="1 given, where 3 are expected"):
        read_image(tmp_path / "x.png", channels=3)
    Image.fromarray(pixels[:, :2]).save(tmp_path / "y.png")
    with pytest.raises(InputError, match=r"y\.png: 2 x 2 x 1 pixels, but .*x\.png has 3 x 2 x 1"):
        read_image([tmp_path / "x.png", tmp_path / "y.png"])


@pytest.mark.parametrize("largest", [4, 255, 256, 65535])
def test_label_pictures_hold_their_ids(tmp_path: Path, largest: int) -> None:
    label = np.array([[0, 1, 2], [4, 0, largest]]).T[:, :, None]
    like = Volume(np.zeros((1, 3, 2, 1), np.float32), np.diag([2.0, 3, 1, 1]))
    write_label(tmp_path / "x.png", label, like)
    found = read_label(tmp_path / "x.png", like=like)
    assert np.array_equal(found.array[0], label)
    assert np.array_equal(found.affine, like.affine)
    assert np.asarray(Image.open(tmp_path / "x.png"))[1, 2] == largest  # what any other reader of indices sees
    for wrong in (label - 1, label + 65536, label.astype(float), np.zeros((3, 2, 2), int)):
        with pytest.raises(InputError, match="a PNG takes one slice X, Y, 1 of ids from 0 to 65535"):
            write_label(tmp_path / "y.png", wrong, like)
    assert not (tmp_path / "y.png").exists()


def test_label_pictures_that_cannot_be_ids(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb\.png: is a picture in colours \(RGB\)"):
        read_label(tmp_path / "rgb.png")
    Image.fromarray(IDS).save(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="JPEG changes values"):
        read_label(tmp_path / "x.jpg")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"cut\.png: is no readable picture"):
        read_label(tmp_path / "cut.png")
    with pytest.raises(InputError, match="no such file"):
        read_label(tmp_path / "none.png")


def test_arrays_of_slices_and_volumes(tmp_path: Path) -> None:
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.savez(tmp_path / "s.npz", image=image[0], label=IDS[:1].repeat(3, 0)[:, :3])
    with h5py.File(tmp_path / "v.npy.h5", "w") as file:
        file["image"], file["label"] = image, (image > 10).astype(np.float32)
    assert read_image(tmp_path / "s.npz").array.shape == (1, 3, 4, 1)
    volume = read_image(tmp_path / "v.npy.h5")
    assert np.array_equal(volume.array[0].transpose(2, 0, 1), image)
    label = read_label(tmp_path / "v.npy.h5")
    assert label.array.dtype == np.uint8
    assert np.array_equal(label.array[0].transpose(2, 0, 1), image > 10)
    assert np.array_equal(label.affine, volume.affine)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pixels": np.zeros((2, 2))}, "holds no array 'image'"),
        ({"image": np.zeros(4)}, r"image is 4 of float64; numbers H, W or D, H, W are expected"),
        ({"image": np.array([["a"]])}, "numbers H, W"),
        ({"image": np.full((2, 2), np.nan)}, "4 voxels are NaN or infinite"),
        ({"image": np.array([[None]])}, "cannot be read"),
        ({"image": np.zeros((2, 2)), "label": np.full((2, 2), 0.5)}, "not whole"),
        ({"image": np.zeros((2, 2)), "label": np.full((2, 2), -1)}, "ids from -1 to -1"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(InputError, match=message):
        (read_label if "label" in content else read_image)(tmp_path / "x.npz")
    (tmp_path / "broken.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"broken\.h5: cannot be read"):
        read_image(tmp_path / "broken.h5")


@pytest.mark.parametrize("position", range(60, 1500, 160))
def test_damaged_arrays_are_one_line(tmp_path: Path, position: int) -> None:
    np.savez_compressed(tmp_path / "x.npz", image=np.random.default_rng(0).integers(0, 9, (40, 40)))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    assert len(data) > 1500 > position
    data[position : position + 20] = bytes(20)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.npz: cannot be read"):
        read_image(tmp_path / "x.npz")


def test_stacks_of_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 5), i, np.uint8)) for i in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    for read in (read_image, read_label):
        with pytest.raises(InputError, match=r"x\.tif: holds 3 pages"):
            read(tmp_path / "x.tif")


def test_folders_of_pictures(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30), np.uint8)).save(tmp_path / "images" / f"p{i}.jpg")
        Image.fromarray(np.uint8([[0, 1]] * 10).repeat(2, 0).repeat(15, 1)).save(tmp_path / "labels" / f"p{i}.png")
    description = read_dataset(tmp_path)
    assert [case.name for case in description.training] == ["p0", "p1", "p2"]
    image, label = check_case(description.training[0], description)
    assert image.array.shape == label.array.shape == (1, 30, 20, 1)
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(tmp_path / "labels" / "p1.png")
    description.labels = {"background": 0, "label 1": 1}
    with pytest.raises(InputError, match=r"p1\.png.*9"):
        check_case(description.training[1], description)
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(tmp_path / "labels" / "p1.png")
    with pytest.raises(InputError, match=r"p1\.png: not on the grid of its image p1\.jpg"):
        check_case(description.training[1], description)
    shutil.copy(tmp_path / "images" / "p1.jpg", tmp_path / "images" / "p9.jpg")
    with pytest.raises(InputError, match="images without a label: p9"):
        read_dataset(tmp_path)


# --- Synapse and ACDC ---


def write_h5(path: Path, depth: int | None, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side) if depth is None else (depth, side, side)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = np.random.default_rng(0).random(shape, np.float32), np.ones(shape, np.uint8)


def make_synapse(root: Path) -> Path:
    (root / "train_npz").mkdir(parents=True)
    for i in range(3):
        content = np.random.default_rng(i).random((16, 16), np.float32)
        np.savez(root / "train_npz" / f"case0005_slice{i:03d}.npz", image=content, label=np.full((16, 16), i, np.uint8))
    write_h5(root / "test_vol_h5" / "case0001.npy.h5", 4, 16)
    return root


def test_synapse(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "Synapse")
    description = read_dataset(root)
    assert (description.layout, description.channels, len(description.labels), description.labels["stomach"]) == ("synapse", ["CT"], 9, 8)
    split = split_cases(description)
    assert split.train == [f"case0005_slice{i:03d}" for i in range(3)]
    assert split.val == ["case0001"]
    image, label = check_case(description.training[0], description)
    assert label is not None
    assert image.array.shape == label.array.shape == (1, 16, 16, 4)
    lists = root / "lists" / "lists_Synapse"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("case0005_slice002\ncase0005_slice000\n")
    (lists / "test_vol.txt").write_text("case0001\n")
    assert split_cases(read_dataset(root)).train == ["case0005_slice002", "case0005_slice000"]
    assert len(split_cases(read_dataset(root), fold=0, folds=3).val) == 1  # a fold is a fold, whatever the lists say
    (lists / "train.txt").write_text("case0005_slice002\ncase0007_slice000\n")
    with pytest.raises(InputError, match=r"train\.txt: names files that are not there: case0007_slice000"):
        read_dataset(root)


@pytest.mark.parametrize(("slices", "volumes"), [("ACDC_training_slices", "ACDC_training_volumes"), ("data/slices", "data")])
def test_acdc_slices(tmp_path: Path, slices: str, volumes: str) -> None:
    for i in (1, 2):
        write_h5(tmp_path / slices / f"patient001_frame01_slice_{i}.h5", None, side=10 + i)  # sizes differ, as theirs do
    write_h5(tmp_path / volumes / "patient009_frame01.h5", 3)
    description = read_dataset(tmp_path)
    assert (description.layout, description.labels["left ventricle"]) == ("acdc", 3)
    assert split_cases(description).val == ["patient009_frame01"]
    assert len(split_cases(description).train) == 2


def test_acdc_patients(tmp_path: Path) -> None:
    for folder, patient in (("training", "patient001"), ("testing", "patient101")):
        where = tmp_path / folder / patient
        where.mkdir(parents=True)
        (where / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nNbFrame: 30\n")
        for frame in ("frame01", "frame12"):
            for kind in ("", "_gt"):
                nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), np.eye(4)), where / f"{patient}_{frame}{kind}.nii.gz")
    description = read_dataset(tmp_path)
    assert [case.name for case in description.training] == ["patient001_frame01", "patient001_frame12"]
    assert [case.name for case in description.test] == ["patient101_frame01", "patient101_frame12"]
    check_case(description.training[0], description)
    info = tmp_path / "training" / "patient001" / "Info.cfg"
    info.write_text("ED: 1\nGroup: DCM\n")
    with pytest.raises(InputError, match=r"Info\.cfg: does not say which frame is ES"):
        read_dataset(tmp_path)
    info.write_text("ED: 1\nES: 7\n")
    with pytest.raises(InputError, match=r"names the frame 7 as ES, but patient001_frame07\.nii\.gz is not there"):
        read_dataset(tmp_path)
    info.unlink()
    with pytest.raises(InputError, match=r"patients without Info\.cfg.*patient001"):
        read_dataset(tmp_path)
