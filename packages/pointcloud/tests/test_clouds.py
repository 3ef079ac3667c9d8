"""Point cloud files: what is read is what was written, from every format, and files that are wrong are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.clouds import PointCloud, check_sweep, list_clouds, read_cloud, write_cloud
from vsuite.pointcloud.data.formats.mesh import sample_surface
from vsuite.pointcloud.data.inspection import inspect_cloud, inspect_file
from vsuite.pointcloud.data.point_labels import read_point_labels

LOSSLESS = [".ply", ".pcd", ".npz", ".xyz", ".txt", ".csv"]
PLY_TYPES = {"f4": "float", "u1": "uchar", "i4": "int", "f8": "double"}
RECORD = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4"), ("label", "u1"), ("red", "u1"), ("green", "u1"), ("blue", "u1"),
          ("nx", "f4"), ("ny", "f4"), ("nz", "f4"), ("instance", "i4")]  # fmt: skip


def cloud_of(count: int = 20, seed: int = 0) -> PointCloud:
    rng = np.random.default_rng(seed)
    columns = {
        "intensity": rng.random(count, np.float32),
        "label": rng.integers(0, 20, count).astype(np.int32),
        **{name: rng.integers(0, 256, count).astype(np.uint8) for name in ("red", "green", "blue")},
    }
    return PointCloud(rng.normal(0, 20, (count, 3)).astype(np.float32), columns)


def records(count: int = 5, order: str = "<") -> np.ndarray:
    rng = np.random.default_rng(1)
    array = np.zeros(count, [(name, order + kind) for name, kind in RECORD])
    for name, kind in RECORD:
        array[name] = rng.integers(0, 200, count) if kind in ("u1", "i4") else rng.normal(0, 5, count).astype(np.float32)
    return array


def ply_header(form: str, count: int) -> str:
    properties = "".join(f"property {PLY_TYPES[kind]} {name}\n" for name, kind in RECORD)
    return f"ply\nformat {form} 1.0\ncomment made by hand\nelement vertex {count}\n{properties}end_header\n"


def equal(read: PointCloud, written: PointCloud) -> None:
    np.testing.assert_array_equal(read.points, written.points)
    assert set(read.columns) == set(written.columns)
    for name, values in written.columns.items():
        np.testing.assert_array_equal(read.columns[name].astype(values.dtype), values)


@pytest.mark.parametrize("suffix", LOSSLESS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(points=hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-900, 900, width=32)), data=st.data())
def test_written_clouds_come_back_exactly(tmp_path: Path, suffix: str, points: np.ndarray, data: st.DataObject) -> None:
    intensity = data.draw(hnp.arrays(np.float32, len(points), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
    label = data.draw(hnp.arrays(np.int32, len(points)))
    cloud = PointCloud(points, {"intensity": intensity, "label": label})
    write_cloud(tmp_path / f"cloud{suffix}", cloud)
    equal(read_cloud(tmp_path / f"cloud{suffix}"), cloud)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_colours_come_back(tmp_path: Path, suffix: str) -> None:
    write_cloud(tmp_path / f"cloud{suffix}", cloud_of())
    read = read_cloud(tmp_path / f"cloud{suffix}")
    equal(read, cloud_of())
    assert read.columns["red"].dtype == np.uint8


def test_arrays_without_names(tmp_path: Path) -> None:
    cloud = cloud_of()
    write_cloud(tmp_path / "a.bin", cloud)
    assert (tmp_path / "a.bin").stat().st_size == 20 * 16
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.bin").array(["intensity"]), cloud.array(["intensity"]))
    write_cloud(tmp_path / "a.pcd.bin", cloud)
    assert (tmp_path / "a.pcd.bin").stat().st_size == 20 * 20
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.pcd.bin").columns["ring"], 0)
    write_cloud(tmp_path / "a.npy", cloud, columns=["intensity"])
    equal(read_cloud(tmp_path / "a.npy"), PointCloud(cloud.points, {"intensity": cloud.columns["intensity"]}))


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_of_other_programs(tmp_path: Path, form: str) -> None:
    array = records(order=">" if form.endswith("big_endian") else "<")
    if form == "ascii":
        body = "\n".join(" ".join(str(value) for value in row.tolist()) for row in array).encode() + b"\n"
    else:
        body = array.tobytes()
    (tmp_path / "a.ply").write_bytes(ply_header(form, len(array)).encode() + body)
    cloud = read_cloud(tmp_path / "a.ply")
    np.testing.assert_allclose(cloud.points, np.column_stack([array[name] for name in "xyz"]), rtol=1e-6)
    for name, _ in RECORD[3:]:
        np.testing.assert_allclose(cloud.columns[name], array[name], rtol=1e-6)
        assert cloud.columns[name].dtype.isnative


def test_ply_with_faces_first_goes_through_open3d(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_indices\nelement vertex 3\nproperty float x\n"
        "property float y\nproperty float z\nproperty float scalar_Intensity\nend_header\n3 0 1 2\n1 2 3 4\n5 6 7 8\n9 10 11 12\n"
    )
    cloud = read_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.array(["intensity"]), np.arange(1, 13).reshape(3, 4))


def test_class_names_travel_with_labels(tmp_path: Path) -> None:
    cloud = cloud_of()
    cloud.class_names = ("car", "a street, wet")
    for suffix in (".ply", ".npz"):
        write_cloud(tmp_path / f"a{suffix}", cloud)
        assert read_cloud(tmp_path / f"a{suffix}").class_names == cloud.class_names


@pytest.mark.parametrize("kind", ["ascii", "binary", "compressed"])
def test_pcd_of_open3d(tmp_path: Path, kind: str) -> None:
    import open3d

    cloud = cloud_of(50)
    other = open3d.t.geometry.PointCloud(open3d.core.Tensor(cloud.points))
    other.point["intensity"] = open3d.core.Tensor(cloud.columns["intensity"][:, None])
    other.point["label"] = open3d.core.Tensor(cloud.columns["label"][:, None])
    other.point["colors"] = open3d.core.Tensor(np.column_stack([cloud.columns[name] for name in ("red", "green", "blue")]))
    open3d.t.io.write_point_cloud(tmp_path / "a.pcd", other, write_ascii=kind == "ascii", compressed=kind == "compressed")
    read = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_allclose(read.points, cloud.points, rtol=1e-6)
    np.testing.assert_allclose(read.columns["intensity"], cloud.columns["intensity"], rtol=1e-6)
    for name in ("label", "red", "green", "blue"):
        np.testing.assert_array_equal(read.columns[name], cloud.columns[name])


def test_pcd_that_open3d_reads_wrongly(tmp_path: Path) -> None:
    """Double coordinates beside float normals, padding, and fields of several values."""
    (tmp_path / "a.pcd").write_text(
        "VERSION .7\nFIELDS x y z _ normal_x hist ring\nSIZE 8 8 8 1 4 4 2\nTYPE F F F U F F U\nCOUNT 1 1 1 2 1 3 1\nWIDTH 1\nHEIGHT 1\n"
        "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 1\nDATA ascii\n1 2 3 0 0 4.5 7 8 9 11\n"
    )
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.array(["nx", "ring"]), [[1, 2, 3, 4.5, 11]])


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.xyz", "1 2 3\n4 5 6\n", {}),
        ("a.txt", "1,2,3,0.5\n4,5,6,0.25\n", {"intensity": [0.5, 0.25]}),
        ("a.csv", "X, Y, Z, Reflectance\n1,2,3,0.5\n4,5,6,0.25\n", {"intensity": [0.5, 0.25]}),
        ("a.csv", "z;y;x;Classification\n3;2;1;7\n6;5;4;9\n", {"label": [7, 9]}),
        ("a.txt", "//X Y Z Scalar_field\n1 2 3 8\n4 5 6 9\n", {"field": [8, 9]}),
        ("a.txt", "# made by a program on Monday\n1\t2\t3\n4\t5\t6\n", {}),
        ("a.pts", "2\n1 2 3 10 255 0 0\n4 5 6 20 0 255 1\n", {"intensity": [10, 20], "red": [255, 0]}),
        ("a.xyzrgb", "1 2 3 1.0 0.0 0.2\n4 5 6 0.0 1.0 0.4\n", {"red": [255, 0], "green": [0, 255], "blue": [51, 102]}),
        ("a.xyzn", "1 2 3 0 0 -1\n4 5 6 0 1 0\n", {"nx": [0, 0], "ny": [0, 1], "nz": [-1, 0]}),
        ("a.txt", "1 2 3 0 0 -1 30\n4 5 6 0 1 0 31\n", {"label": [30, 31], "nz": [-1, 0]}),
    ],
)
def test_text(tmp_path: Path, name: str, text: str, columns: dict[str, list[float]]) -> None:
    (tmp_path / name).write_text(text)
    cloud = read_cloud(tmp_path / name)
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    for column, values in columns.items():
        np.testing.assert_array_equal(cloud.columns[column], values)


def test_names_given(tmp_path: Path) -> None:
    np.arange(12, dtype="f4").tofile(tmp_path / "a.bin")
    cloud = read_cloud(tmp_path / "a.bin", columns=["time", "x", "y", "z", "Ring", "echo"])
    np.testing.assert_array_equal(cloud.array(["time", "ring", "echo"]), [[1, 2, 3, 0, 4, 5], [7, 8, 9, 6, 10, 11]])
    assert list(read_cloud(tmp_path / "a.bin", layout="waymo").columns) == ["intensity", "elongation", "time"]
    with pytest.raises(InputError, match=r"12 float32 values do not divide into rows of 5 .*4 \(layout kitti\) or 6 \(layout waymo\)"):
        read_cloud(tmp_path / "a.bin", layout="nuscenes")
    with pytest.raises(InputError, match="did you mean 'kitti'"):
        read_cloud(tmp_path / "a.bin", layout="kiti")


def test_other_arrays(tmp_path: Path) -> None:
    import h5py

    points, label = np.random.default_rng(0).random((7, 3)), np.arange(7)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["xyz"], file["semantic"] = points, label
    np.savez(tmp_path / "a.npz", coord=points, color=np.full((7, 3), 200), segment=label[:, None])
    np.save(tmp_path / "a.npy", np.array([(1, 2, 3, 9)], [("x", "f8"), ("y", "f8"), ("z", "f8"), ("t", "f4")]))
    for name in ("a.h5", "a.npz"):
        cloud = read_cloud(tmp_path / name)
        np.testing.assert_array_equal(cloud.points, points.astype(np.float32))
        np.testing.assert_array_equal(cloud.columns["label"], label)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.npy").array(["time"]), [[1, 2, 3, 9]])


def test_scanobjectnn_raw(tmp_path: Path) -> None:
    rows = np.arange(33, dtype="f4").reshape(3, 11)
    np.concatenate([[3], rows.reshape(-1)]).astype("f4").tofile(tmp_path / "a.bin")
    cloud = read_cloud(tmp_path / "a.bin")
    np.testing.assert_array_equal(cloud.array(["instance", "label"]), rows[:, [0, 1, 2, 9, 10]])


def test_las(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    points = np.array([[500000.25, 5400000.5, 120.125], [500010.75, 5400001.5, 121.0]])
    for name in ("a.las", "a.laz"):
        las = laspy.create(point_format=3, file_version="1.2")
        las.header.scales = [0.001] * 3
        las.header.offsets = [500000, 5400000, 100]
        las.x, las.y, las.z = points.T
        las.intensity, las.classification = [100, 200], [2, 6]
        las.red, las.green, las.blue = [65535, 0], [0, 65535], [257, 514]
        las.write(tmp_path / name)
        cloud = read_cloud(tmp_path / name)
        np.testing.assert_allclose(cloud.points + cloud.offset, points, atol=1e-3)
        np.testing.assert_array_equal(cloud.columns["label"], [2, 6])
        np.testing.assert_array_equal(cloud.columns["intensity"], [100, 200])
        np.testing.assert_array_equal(np.column_stack([cloud.columns[c] for c in ("red", "green", "blue")]), [[255, 0, 1], [0, 255, 2]])
    write_cloud(tmp_path / "b.ply", cloud)
    np.testing.assert_allclose(read_cloud(tmp_path / "b.ply").points + cloud.offset, points, atol=1e-3)


def test_las_without_laspy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.las").write_bytes(b"LASF")
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(InputError, match=r"needs laspy: pip install .vsuite-pointcloud\[las\]"):
        read_cloud(tmp_path / "a.las")


OFF = "OFF\n4 2 0\n0 0 0\n3 0 0\n3 1 0\n0 1 0\n3 0 1 2\n3 0 2 3 255 0 0\n"
SQUARES = {
    "a.off": OFF,
    "glued.off": OFF.replace("OFF\n", "OFF"),  # as in some files of ModelNet40
    "polygon.off": "OFF\n# a comment\n4 1 0\n0 0 0\n3 0 0\n3 1 0\n0 1 0\n4 0 1 2 3\n",
    "normals.off": "NOFF\n4 1 0\n0 0 0 0 0 1\n3 0 0 0 0 1\n3 1 0 0 0 1\n0 1 0 0 0 1\n4 0 1 2 3\n",  # as open3d and MeshLab write them
    "colours.off": "COFF\n4 1 0\n0 0 0 9 9 9 255\n3 0 0 9 9 9 255\n3 1 0 9 9 9 255\n0 1 0 9 9 9 255\n4 0 1 2 3\n",
    "a.obj": "v 0 0 0\nv 3 0 0\nv 3 1 0\nv 0 1 0\nf 1 2 3 4\n",
}


@pytest.mark.parametrize("name", SQUARES)
def test_meshes_are_sampled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SQUARES[name])
    cloud = read_cloud(tmp_path / name, samples=2000, seed=3)
    assert len(cloud) == 2000
    np.testing.assert_array_equal(cloud.points[:, 2], 0)
    np.testing.assert_allclose(cloud.points.mean(0), [1.5, 0.5, 0], atol=0.1)
    np.testing.assert_array_equal(np.abs(cloud.columns["nz"]), 1)
    np.testing.assert_array_equal(cloud.points, read_cloud(tmp_path / name, samples=2000, seed=3).points)
    assert not np.array_equal(cloud.points, read_cloud(tmp_path / name, samples=2000, seed=4).points)


def test_advice_is_about_this_package(tmp_path: Path) -> None:
    """Errors of numpy advise to load pickles and to pass `usecols`; ours name what a user can do."""
    (tmp_path / "a.npy").write_bytes(b"no array" * 9)
    (tmp_path / "a.txt").write_text("1 2 3\n1 2\n")
    (tmp_path / "nan.xyz").write_text("1 2 3\nnan 2 3\n")
    np.savetxt(tmp_path / "mm.xyz", [[2000.0, 1, 1], [1, 5000, 1]])
    for name, said, unsaid in (
        ("a.npy", "a.npy: not a readable .npy file", "allow_pickle"),
        ("a.txt", "columns changed from 3 to 2 at row 2", "usecols"),
        ("nan.xyz", r"1 of 2 points have NaN .* read_cloud\(..., invalid=.drop.\)", "on request"),
        ("mm.xyz", r"reaches 5000 .* read_cloud\(..., scale=0.001\)", "read it"),
    ):
        with pytest.raises(InputError, match=said) as error:
            check_sweep(read_cloud(tmp_path / name))
        assert unsaid not in str(error.value)


def test_surface_is_sampled_by_area() -> None:
    """A triangle nine times as large gets nine times as many points, spread evenly over it."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5.0]])
    points, _ = sample_surface(vertices, np.array([[0, 1, 2], [3, 4, 5]]), 20_000, np.random.default_rng(0))
    large = points[points[:, 2] == 5]
    assert abs(len(large) / 20_000 - 0.9) < 0.01
    assert abs(np.mean(large[:, 0] < 1) - 5 / 9) < 0.015  # of the triangle's area, 5/9 lie where x < 1
    assert (points[:, 0] + points[:, 1] <= np.where(points[:, 2] == 5, 3, 1) + 1e-5).all()


def test_scale_offset_and_invalid_points(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "mm.xyz", [[1000, 2000, 3000], [-4000, 0, 500]])
    np.testing.assert_allclose(read_cloud(tmp_path / "mm.xyz", scale=0.001).points, [[1, 2, 3], [-4, 0, 0.5]])
    (tmp_path / "nan.xyz").write_text("1 2 3 4\nnan 0 0 5\n0 inf 0 6\n7 8 9 nan\n")
    with pytest.raises(InputError, match="2 of 4 points have NaN or infinite coordinates"):
        read_cloud(tmp_path / "nan.xyz")
    dropped = read_cloud(tmp_path / "nan.xyz", invalid="drop")
    np.testing.assert_array_equal(dropped.array(["intensity"]), [[1, 2, 3, 4], [7, 8, 9, np.nan]])
    assert inspect_file(tmp_path / "nan.xyz").invalid == 2


def test_sweeps_are_in_metres(tmp_path: Path) -> None:
    cloud = cloud_of()
    check_sweep(cloud)
    cloud.points *= 1000
    with pytest.raises(
        InputError, match=r"if these are millimetres, --scale 0.001 makes them metres \(in Python: read_cloud\(..., scale=0.001\)\)"
    ):
        check_sweep(cloud)


def test_list_clouds(tmp_path: Path) -> None:
    for name in ("b.ply", "a.pcd.bin", "notes.md", ".hidden.ply"):
        (tmp_path / name).touch()
    assert [path.name for path in list_clouds(tmp_path)] == ["a.pcd.bin", "b.ply"]


def test_arrays_and_ply_need_no_open3d(tmp_path: Path) -> None:
    write_cloud(tmp_path / "a.bin", cloud_of())
    write_cloud(tmp_path / "a.ply", cloud_of())
    code = (
        "import sys; from vsuite.pointcloud.data.clouds import read_cloud; "
        f"read_cloud({str(tmp_path / 'a.bin')!r}); read_cloud({str(tmp_path / 'a.ply')!r}); "
        "print([m for m in ('open3d', 'h5py', 'laspy', 'scipy', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_facts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    distances, angles = rng.exponential(12, 5000) + 2, rng.uniform(0, 2 * np.pi, 5000)
    ground = np.column_stack([distances * np.cos(angles), distances * np.sin(angles), rng.normal(-1.7, 0.02, 5000)])
    walls = np.column_stack(
        [rng.uniform(-60, 60, 2000), rng.choice([-15, 15], 2000) + rng.normal(0, 0.5, 2000), rng.uniform(-1.7, 8, 2000)]
    )
    street = PointCloud(np.concatenate([ground, walls]).astype(np.float32), {"label": np.repeat([1, 4], [5000, 2000])})
    facts = inspect_cloud(street)
    assert (facts.count, facts.unit, facts.up, facts.kind, facts.invalid) == (7000, "metres", "z", "lidar sweep", 0)
    assert [(c.name, c.low, c.high, c.distinct) for c in facts.columns] == [("label", 1, 4, 2)]
    turned = inspect_cloud(PointCloud(street.points[:, [0, 2, 1]] * 1000))
    assert (turned.unit, turned.up) == ("millimetres", "y")
    shape = rng.normal(size=(2048, 3))
    assert inspect_cloud(PointCloud((shape / np.linalg.norm(shape, axis=1, keepdims=True)).astype(np.float32))).unit.startswith(
        "normalised"
    )
    same = inspect_cloud(PointCloud(np.ones((10, 3), np.float32)))
    assert (same.duplicates, same.spacing, same.up, same.unit) == (9, 0.0, "unknown", "unknown")
    assert inspect_cloud(PointCloud(np.ones((1, 3), np.float32))).count == 1
    assert "points:   7,000" in facts.lines()


def test_point_labels(tmp_path: Path) -> None:
    (np.array([7, 9], "<u4") | np.array([3, 4], "<u4") << 16).tofile(tmp_path / "a.label")
    labels = read_point_labels(tmp_path / "a.label", 2)
    np.testing.assert_array_equal(labels["label"], [7, 9])
    np.testing.assert_array_equal(labels["instance"], [3, 4])
    np.save(tmp_path / "a.npy", np.array([1, 2]))
    (tmp_path / "a.txt").write_text("1\n2\n")
    write_cloud(tmp_path / "a.ply", PointCloud(np.zeros((2, 3), np.float32), {"label": np.array([1, 2])}))
    for name in ("a.npy", "a.txt", "a.ply"):
        np.testing.assert_array_equal(read_point_labels(tmp_path / name, 2)["label"], [1, 2])
    with pytest.raises(InputError, match="has 2 labels, but the cloud has 3 points"):
        read_point_labels(tmp_path / "a.label", 3)
