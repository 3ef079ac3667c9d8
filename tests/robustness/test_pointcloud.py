"""Point clouds that are wrong: one clear line each, that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.clouds import SUFFIXES, PointCloud, check_sweep, read_cloud, write_cloud
from vsuite.pointcloud.data.detection import read_detection

POINTS = np.arange(1, 31, dtype=np.float32).reshape(10, 3)
CLOUD = PointCloud(POINTS, {"intensity": np.linspace(0, 1, 10, dtype=np.float32)})
HEADER = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PCD = "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 2\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 2\nDATA ascii\n"


def refused(path: Path, *parts: str) -> None:
    """Reading raises one line that names the file and has these parts."""
    with pytest.raises(InputError) as raised:
        check_sweep(read_cloud(path))
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, (part, message)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        # damaged PLY headers
        ("a.ply", "plx\n", ["damaged PLY header", "does not begin with 'ply'"]),
        ("a.ply", HEADER.replace("end_header\n", ""), ["damaged PLY header", "'end_header' is missing"]),
        ("a.ply", HEADER.replace("vertex 2", "vertex two"), ["damaged PLY header", "'element vertex two'"]),
        ("a.ply", HEADER.replace("vertex 2", "vertex -2"), ["damaged PLY header", "'element vertex -2'"]),
        ("a.ply", HEADER.replace("float y", "real y"), ["damaged PLY header", "'property real y'"]),
        ("a.ply", HEADER.replace("ascii", "asci"), ["damaged PLY header", "'format asci 1.0'"]),
        ("a.ply", HEADER.replace("format ascii 1.0\n", ""), ["damaged PLY header", "does not say its format"]),
        ("a.ply", HEADER.replace("vertex", "verteks"), ["damaged PLY header", "no element 'vertex'"]),
        ("a.ply", HEADER.replace("property float z\n", "") + "1 2\n3 4\n", ["have no z", "they have: x, y"]),
        ("a.ply", HEADER.replace("vertex 2", "vertex 0"), ["holds no points"]),
        ("a.ply", HEADER + "1 2 3\n", ["cut off", "says 2 points, but only 1 line"]),
        ("a.ply", HEADER + "1 2 3\n4 5 x\n", ["cannot be read as numbers"]),
        ("a.ply", HEADER + "1 2 3 4\n4 5 6 7\n", ["names 3 values a point, but 4 follow"]),
        ("a.ply", HEADER.replace("ascii", "binary_little_endian") + "short", ["cut off", "2 points of 12 bytes, but only 5 bytes follow"]),
        ("a.ply", HEADER.replace("float y", "float x") + "1 2 3\n4 5 6\n", ["have no y"]),
        ("a.ply", HEADER.replace("end_header", "property float x\nend_header") + "1 2 3 4\n4 5 6 7\n", ["damaged PLY header", "x"]),
        # PCD
        ("a.pcd", "junk", ["damaged PCD header", "FIELDS"]),
        ("a.pcd", PCD.replace("POINTS 2", "POINTS x") + "1 2 3\n4 5 6\n", ["damaged PCD header", "POINTS x"]),
        ("a.pcd", PCD.replace("TYPE F F F", "TYPE F F"), ["damaged PCD header", "do not fit together"]),
        ("a.pcd", PCD.replace("SIZE 4 4 4", "SIZE 4 4 5"), ["damaged PCD header"]),
        ("a.pcd", PCD + "1 2 3\n", ["says 2 points of 3 values, but 1 of 3 follow"]),
        ("a.pcd", PCD.replace("ascii", "binary") + "short", ["cut off"]),
        ("a.pcd", PCD.replace("ascii", "binary_compressed") + "short", ["cut off"]),
        ("a.pcd", PCD.replace("ascii", "zip") + "1 2 3\n", ["DATA zip"]),
        ("a.pcd", PCD.replace("POINTS 2", "POINTS 0"), ["holds no points"]),
        # text
        ("a.xyz", "1 2\n3 4\n", ["has 2 columns"]),
        ("a.xyz", "1 2 3\n4 5\n", ["cannot be read as rows of numbers"]),
        ("a.xyz", "one two three\n", ["holds no points"]),
        ("a.csv", "x,y,height\n1,2,3\n", ["header has 3 names (x,y,height)"]),
        ("a.txt", "# only a comment\n", ["holds no points"]),
        ("a.xyz", "1 2 3\n4 nan 6\n7 inf 9\n", ["2 of 3 points have NaN or infinite coordinates"]),
        # meshes
        ("a.off", "FFO\n", ["damaged OFF header"]),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n", ["cut off"]),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", ["a vertex that does not exist"]),
        ("a.off", "OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", ["no faces"]),
        ("a.off", "OFF\n3 1 0\n0 0 0\n0 0 0\n0 1 0\n3 0 1 2\n", ["have no area"]),
        ("a.obj", "v 0 0 0\nv 1 0 0\n", ["no faces"]),
        # others
        ("a.jpg", "something", ["not a known point cloud format (.jpg)"]),
        ("noending", "something", ["not a known point cloud format (no ending)"]),
        ("a.npy", "not numpy", ["not a readable .npy file"]),
        ("a.npz", "not numpy", ["not a readable .npz file"]),
        ("a.h5", "not hdf5", ["not a readable HDF5 file"]),
        ("a.las", "LASF but no more", ["not a readable LAS file"]),
        ("a.bin", "sixbytes..", ["10 bytes are no whole number of float32 values"]),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, name: str, text: str, parts: list[str]) -> None:
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, *parts)


def test_wrong_column_counts(tmp_path: Path) -> None:
    np.arange(35, dtype="f4").tofile(tmp_path / "a.bin")
    refused(tmp_path / "a.bin", "35 float32 values do not divide into rows of 4", "rows of 5 (layout nuscenes) would fit")
    np.arange(12, dtype="f4").tofile(tmp_path / "a.pcd.bin")
    refused(tmp_path / "a.pcd.bin", "do not divide into rows of 5", "4 (layout kitti) or 6 (layout waymo)")
    rows = np.random.default_rng(0).normal(size=(20, 5)).astype("f4")
    rows.tofile(tmp_path / "b.bin")
    refused(tmp_path / "b.bin", "its intensity is negative, so it has other columns; rows of 5 (layout nuscenes) would fit")
    np.testing.assert_array_equal(read_cloud(tmp_path / "b.bin", layout="nuscenes").array(["intensity", "ring"])[:, :4], rows[:, :4])
    with pytest.raises(InputError, match=r"b.bin: 100 float32 values do not divide into rows of 3"):
        read_cloud(tmp_path / "b.bin", columns=["x", "y", "z"])
    with pytest.raises(InputError, match=r"b.bin: has no column z; its columns are: x, y, intensity, w"):
        read_cloud(tmp_path / "b.bin", columns=["x", "y", "i", "w"])


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.ply").mkdir()
    refused(tmp_path / "folder.ply", "is a folder")
    refused(tmp_path / "none.ply", "no such file")
    for suffix in SUFFIXES:
        (tmp_path / f"empty{suffix}").touch()
        refused(tmp_path / f"empty{suffix}", "is empty (0 bytes)")


def test_arrays(tmp_path: Path) -> None:
    for name, array, part in (
        ("flat", np.zeros(9), "has the shape 9"),
        ("many", np.zeros((4, 16, 3)), "has the shape 4 x 16 x 3"),
        ("narrow", np.zeros((4, 2)), "has 2 columns"),
        ("empty", np.zeros((0, 3)), "holds no points"),
        ("text", np.array([["a", "b", "c"]]), "points are numbers"),
        ("complex", np.zeros((4, 3), complex), "points are numbers"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        refused(tmp_path / f"{name}.npy", part)
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    refused(tmp_path / "pickle.npy", "not a readable .npy file")
    np.savez(tmp_path / "set.npz", data=np.zeros((4, 16, 3)))
    refused(tmp_path / "set.npz", "holds 4 clouds of 16 points")
    np.savez(tmp_path / "odd.npz", points=np.zeros((4, 3)), label=np.zeros(5))
    refused(tmp_path / "odd.npz", "4 points, but other numbers of values: label 5")
    np.savez(tmp_path / "other.npz", images=np.zeros((4, 3)), label=np.zeros(4))
    refused(tmp_path / "other.npz", "has no array 'points'", "images, label")


def test_millimetres(tmp_path: Path) -> None:
    write_cloud(tmp_path / "mm.bin", PointCloud(POINTS * 1000))
    refused(tmp_path / "mm.bin", "reaches 30000 from the origin", "millimetres")
    check_sweep(read_cloud(tmp_path / "mm.bin", scale=0.001))


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".npz", ".npy", ".las", ".bin"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), place=st.floats(0, 1), byte=st.integers(0, 255))
def test_spoilt_files_are_read_or_refused(tmp_path: Path, suffix: str, cut: float, place: float, byte: int) -> None:
    """Whatever a byte is changed to and wherever the file is cut: a cloud or one `InputError`, never another exception."""
    whole = tmp_path / f"whole{suffix}"
    if not whole.exists():
        write_las(whole) if suffix == ".las" else write_cloud(whole, CLOUD, columns=["intensity"])
    content = bytearray(whole.read_bytes())
    content[int(place * (len(content) - 1))] = byte
    spoilt = tmp_path / f"spoilt{suffix}"
    spoilt.write_bytes(content[: int(cut * len(content)) + 1] if cut < 0.7 else content)
    message, cloud = "", None
    try:
        cloud = read_cloud(spoilt)
    except InputError as error:
        message = str(error)
    if cloud is None:
        assert str(spoilt) in message
        assert "\n" not in message
        return
    assert len(cloud) > 0
    assert np.isfinite(cloud.points).all()


def write_las(path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    las = laspy.create(point_format=0, file_version="1.2")
    las.x, las.y, las.z = POINTS.T.astype(np.float64)
    las.write(path)


@pytest.fixture
def own_layout(tmp_path: Path) -> Callable[[str], Path]:
    """A data set of one frame with this label file."""

    def make(label: str) -> Path:
        write_cloud(tmp_path / "points" / "a.bin", CLOUD)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / "a.txt").write_text(label)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("1 2 3 4 2 -1.5 0 Car\n", "labels/a.txt: box 1 (Car) has the size 4 x 2 x -1.5"),
        ("1 2 3 4 0 1.5 0 Car\n", "labels/a.txt: box 1 (Car) has the size 4 x 0 x 1.5"),
        ("1 2 nan 4 2 1.5 0 Car\n", "labels/a.txt: box 1 (Car) has a NaN or infinite value"),
        ("Car 1 2 3 4 2 1.5 0\n", "labels/a.txt: line 1: could not convert"),
        ("1 2 3 4 2 1.5 0\n", "labels/a.txt: line 1 has 7 values"),
        ("1 2 3 4 2 1.5 0 big Car\n", "labels/a.txt: line 1 has 9 values"),
    ],
)
def test_label_files(own_layout: Callable[[str], Path], label: str, part: str) -> None:
    with pytest.raises(InputError) as raised:
        read_detection(own_layout(label))
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_frames_are_sweeps_in_metres_with_their_columns(own_layout: Callable[[str], Path]) -> None:
    root = own_layout("1 2 3 4 2 1.5 0 Car\n")
    write_cloud(root / "points" / "a.bin", PointCloud(POINTS * 1000))
    with pytest.raises(InputError, match=r"a.bin: reaches 30000 from the origin"):
        read_detection(root).frames[0].read()
    (root / "dataset.json").write_text('{"columns": ["intensity", "ring"]}')
    write_cloud(root / "points" / "a.bin", CLOUD)
    with pytest.raises(InputError, match=r"a.bin: has no column ring; its columns are: intensity"):
        read_detection(root).frames[0].read()
    (root / "dataset.json").write_text('{"classes": "Car"}')
    with pytest.raises(InputError, match=r"dataset.json: should be"):
        read_detection(root)
    (root / "dataset.json").write_text('{"classes": ["Bus"]}')
    with pytest.raises(InputError, match=r"a.txt: the class Car is not among those of dataset.json"):
        read_detection(root)


def test_read_only_and_strided_arrays_are_written(tmp_path: Path) -> None:
    points = np.asfortranarray(np.repeat(POINTS, 2, 0))[::2]
    points.flags.writeable = False
    column = np.arange(20, dtype=">f8")[::2]
    column.flags.writeable = False
    for suffix in (".ply", ".pcd", ".npz", ".csv", ".bin", ".npy"):
        write_cloud(tmp_path / f"a{suffix}", PointCloud(points, {"intensity": column}))
        read = read_cloud(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read.points, POINTS)
        assert read.points.flags.writeable
    with pytest.raises(InputError, match=r"unknown ending of a point cloud to write '\.jpg'"):
        write_cloud(tmp_path / "a.jpg", CLOUD)
    with pytest.raises(InputError, match="has no column ring; its columns are: intensity"):
        write_cloud(tmp_path / "a.ply", CLOUD, columns=["ring"])
