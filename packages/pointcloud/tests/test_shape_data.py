"""Data sets of shapes, in the layouts that they are unpacked into."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.clouds import PointCloud, write_cloud
from vsuite.pointcloud.data.shapes import SCANOBJECTNN_CLASSES, SCANOBJECTNN_VARIANTS, SHAPENET_PARTS, read_shapes


def write_h5(path: Path, labels: list[int], **others: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(len(labels)).normal(size=(len(labels), 16, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, np.array(labels, np.uint8)[:, None]
        for name, values in others.items():
            file[name] = values
    return data


def test_modelnet_h5(tmp_path: Path) -> None:
    first = write_h5(tmp_path / "ply_data_train0.h5", [0, 2])
    second = write_h5(tmp_path / "ply_data_train1.h5", [1], normal=np.ones((1, 16, 3)))
    write_h5(tmp_path / "ply_data_test0.h5", [2, 2, 2])
    (tmp_path / "shape_names.txt").write_text("airplane\nbathtub\nbed\n")
    data = read_shapes(tmp_path, "train")
    assert (len(data), data.layout, data.class_names) == (3, "modelnet40_h5", ["airplane", "bathtub", "bed"])
    assert data.labels.tolist() == [0, 2, 1]
    np.testing.assert_array_equal(data[1].points, first[1])
    np.testing.assert_array_equal(data[2].points, second[0])
    np.testing.assert_array_equal(data[2].columns["nx"], 1)
    assert (len(read_shapes(tmp_path, "test")), len(read_shapes(tmp_path))) == (3, 6)


@pytest.mark.parametrize("variant", SCANOBJECTNN_VARIANTS)
def test_scanobjectnn(tmp_path: Path, variant: str) -> None:
    for i, stem in enumerate(SCANOBJECTNN_VARIANTS.values()):
        mask = np.where(np.arange(16) < 5, -1, 3)[None].repeat(i + 1, 0)
        write_h5(tmp_path / "h5_files" / "main_split" / f"training_{stem}.h5", [14] * (i + 1), mask=mask)
        write_h5(tmp_path / "h5_files" / "main_split" / f"test_{stem}.h5", [0])
    count = list(SCANOBJECTNN_VARIANTS).index(variant) + 1
    data = read_shapes(tmp_path, "train", variant=variant)
    assert (len(data), data.class_names[data.labels[0]], data.layout) == (count, "toilet", "scanobjectnn")
    assert data[0].columns["foreground"].sum() == 11
    assert len(read_shapes(tmp_path, variant=variant)) == count + 1
    assert len(read_shapes(tmp_path, "train")) == 1  # the hardest
    assert len(SCANOBJECTNN_CLASSES) == 15
    with pytest.raises(InputError, match="unknown variant of ScanObjectNN 'pb_t50'"):
        read_shapes(tmp_path, variant="pb_t50")
    with pytest.raises(InputError, match="has no split 'val'; there is train, test"):
        read_shapes(tmp_path, "val")


def make_shapenet(root: Path) -> None:
    (root / "train_test_split").mkdir(parents=True)
    for part, shapes in {"train": ["02691156/a", "03642806/b"], "val": ["04379243/c"], "test": []}.items():
        listed = [f"shape_data/{name}" for name in shapes]
        (root / "train_test_split" / f"shuffled_{part}_file_list.json").write_text(json.dumps(listed))
        for name in shapes:
            start = {"0269": 0, "0364": 28, "0437": 47}[name[:4]]
            path = root / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"0.1 0.2 0.3 0 0 1 {start}.000000\n0.4 0.5 0.6 0 1 0 {start + 1}.000000\n")


def test_shapenetpart(tmp_path: Path) -> None:
    make_shapenet(tmp_path / "data")
    data = read_shapes(tmp_path / "data", "train", cache=tmp_path / "cache")
    assert ([data.class_names[i] for i in data.labels], data.layout) == (["Airplane", "Laptop"], "shapenetpart")
    for _ in range(2):  # from text, then from the cache
        np.testing.assert_allclose(data[1].points, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
        np.testing.assert_array_equal(data[1].columns["label"], [28, 29])
        np.testing.assert_array_equal(data[1].columns["ny"], [0, 1])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["03642806_b.npy"]
    assert len(read_shapes(tmp_path / "data")) == 3
    assert data.parts["Laptop"] == [28, 29]
    assert list(SHAPENET_PARTS["Motorbike"]) == [30, 31, 32, 33, 34, 35]
    assert sorted(part for parts in SHAPENET_PARTS.values() for part in parts) == list(range(50))
    (tmp_path / "data" / "02691156" / "a.txt").write_text("0 0 0 0 0 1 4\n")
    with pytest.raises(InputError, match=r"a.txt: part labels from 4 to 4; Airplane has 0 to 3"):
        data[0]
    (tmp_path / "data" / "02691156" / "a.txt").unlink()
    (tmp_path / "data" / "04379243" / "c.txt").unlink()
    with pytest.raises(InputError, match=r"2 problems:\n.*a.txt: no such file.*\n.*c.txt: no such file"):
        read_shapes(tmp_path / "data")


def test_modelnet_txt(tmp_path: Path) -> None:
    (tmp_path / "modelnet40_shape_names.txt").write_text("airplane\nglass_box\n")
    (tmp_path / "modelnet40_train.txt").write_text("airplane_0001\nglass_box_0002\n")
    (tmp_path / "modelnet40_test.txt").write_text("glass_box_0003\n")
    for name in ("airplane_0001", "glass_box_0002", "glass_box_0003"):
        path = tmp_path / name.rsplit("_", 1)[0] / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("0.1,0.2,0.3,0,0,1\n0.4,0.5,0.6,0,1,0\n")
    data = read_shapes(tmp_path, "train")
    assert (data.labels.tolist(), data.layout) == ([0, 1], "modelnet40_txt")
    np.testing.assert_allclose(data[1].array(["nz"]), [[0.1, 0.2, 0.3, 1], [0.4, 0.5, 0.6, 0]])
    assert read_shapes(tmp_path, "test").names == ["glass_box_0003"]


@pytest.mark.parametrize("form", ["{split}/{name}/{file}", "{name}/{split}/{file}", "{name}/{file}"])
def test_folders_of_classes(tmp_path: Path, form: str) -> None:
    for split, name, count in (("train", "cup", 2), ("train", "ball", 1), ("test", "cup", 1), ("test", "ball", 1)):
        for i in range(count):
            cloud = PointCloud(np.full((3, 3), i, np.float32))
            write_cloud(tmp_path / form.format(split=split, name=name, file=f"{split}{i}.ply"), cloud)
    everything = read_shapes(tmp_path)
    assert (everything.class_names, np.bincount(everything.labels).tolist()) == (["ball", "cup"], [2, 3])
    if "split" not in form:
        with pytest.raises(InputError, match="no point cloud files of the split 'train'"):
            read_shapes(tmp_path, "train")
        return
    data = read_shapes(tmp_path, "train")
    assert (data.labels.tolist(), data.layout) == ([0, 1, 1], "folders")
    np.testing.assert_array_equal(data[2].points, 1)


def test_problems(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a known data set of shapes"):
        read_shapes(tmp_path)
    write_h5(tmp_path / "ply_data_train0.h5", [0, 40])
    with h5py.File(tmp_path / "ply_data_train1.h5", "w") as file:
        file["data"] = np.zeros((2, 5, 3))
        file["label"] = np.zeros(3)
    (tmp_path / "ply_data_train2.h5").write_bytes(b"no")
    with pytest.raises(InputError) as raised:
        read_shapes(tmp_path, "train")
    message = str(raised.value)
    for part in (
        "3 problems",
        "train0.h5: labels from 0 to 40; there are 40 classes",
        "train1.h5: 2 shapes, but 3 labels",
        "train2.h5: not a readable",
    ):
        assert part in message
    with pytest.raises(InputError, match="unknown split 'trian'; did you mean 'train'"):
        read_shapes(tmp_path, "trian")
