from __future__ import annotations

import gzip
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from vsuite.core.errors import InputError
from vsuite.medical.data.nifti import Volume, is_nifti, read_grid, read_image, read_label, write_label, write_probabilities


def oblique(signs=(-1, -1, 1), order=(0, 1, 2), angles=(10, 20, 30)) -> np.ndarray:
    affine = np.eye(4)
    directions = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:, list(order)]
    affine[:3, :3] = directions @ np.diag(np.array(signs) * [0.7, 1.1, 3.0])
    affine[:3, 3] = 100.3, -20.2, 7
    return affine


AFFINES = {
    "oblique": oblique(),
    "LPS": oblique(angles=(0, 0, 0)),
    "LSA": oblique((-1, 1, 1), (0, 2, 1), (0, 0, 0)),
    "near 45 degrees": oblique((1, 1, 1), (1, 2, 0), (44, 0, 44)),
}


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


def saved(path, array, affine=None, change=None):
    """A NIfTI file; `change` edits its bytes (uncompressed)."""
    nib.save(nib.Nifti1Image(array, oblique() if affine is None else affine), path)
    if change is not None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(bytes(content))
    return path


def at(offset: int, form: str, *numbers):
    def change(content: bytearray) -> None:
        struct.pack_into(form, content, offset, *numbers)

    return change


def refused(pattern: str):
    return pytest.raises(InputError, match=pattern)


# --- reading ---


def test_one_file_channels_last_or_one_file_a_channel(tmp_path, values):
    one, four = saved(tmp_path / "a.nii.gz", values), saved(tmp_path / "b.nii", np.stack([values, -values], -1))
    assert np.array_equal(read_image(one, channels=1).array, values[None])
    assert np.array_equal(read_image(four).array, np.stack([values, -values]))
    pair = read_image([one, saved(tmp_path / "c.nii.gz", -values)], channels=2)
    assert np.array_equal(pair.array, np.stack([values, -values]))
    assert pair.array.dtype == np.float32
    assert pair.affine.dtype == np.float64
    assert read_grid(four)[0] == (6, 5, 4, 2)


def test_trailing_axes_of_one_are_dropped(tmp_path, values):
    assert read_image(saved(tmp_path / "a.nii", values[..., None, None]), channels=1).array.shape == (1, 6, 5, 4)
    vectors = np.stack([values, values + 1], -1)[:, :, :, None, :]
    assert read_image(saved(tmp_path / "b.nii", vectors), channels=2).array.shape == (2, 6, 5, 4)


def test_scaled_integers_are_scaled(tmp_path):
    path = saved(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4), change=at(112, "<ff", 0.5, -3.0))
    assert np.array_equal(read_image(path).array.ravel(), np.arange(24) * 0.5 - 3)


def test_the_sform_comes_first_then_the_qform(tmp_path, values):
    image = nib.Nifti1Image(values, None)
    image.set_sform(oblique(), 2)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, tmp_path / "both.nii")
    assert np.allclose(read_image(tmp_path / "both.nii").affine, oblique(), atol=1e-5)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "qform.nii")
    assert np.allclose(read_image(tmp_path / "qform.nii").affine, np.diag([2.0, 2, 2, 1]))
    neither = saved(tmp_path / "neither.nii", values, change=lambda c: (at(252, "<hh", 0, 0)(c), at(80, "<3f", 0.5, 0.6, 0.7)(c)))
    assert np.allclose(np.abs(np.diag(read_image(neither).affine)[:3]), [0.5, 0.6, 0.7])


def test_files_that_are_no_images(tmp_path, values):
    whole = saved(tmp_path / "whole.nii.gz", np.tile(values, (4, 4, 4)) * np.arange(16)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(whole)[:500])
    (tmp_path / "zero.nii.gz").write_bytes(b"")
    (tmp_path / "text.nii.gz").write_bytes(b"not an image" * 50)
    nib.save(nib.MGHImage(values, oblique()), tmp_path / "other.mgz")
    for name, what in {
        "cut.nii.gz": "cut short",
        "cut.nii": "cut short",
        "zero.nii.gz": "0 bytes",
        "text.nii.gz": "no readable NIfTI",
        "other.mgz": "not a NIfTI file",
        "missing.nii.gz": "no such file",
    }.items():
        with refused(rf"{name}: .*{what}") as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with refused("is a folder"):
        read_image(tmp_path)
    with refused("at least one file"):
        read_image([])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (at(80, "<f", 0.0), r"sides must be positive; the header gives 0 x"),
        (at(84, "<f", -1.0), r"sides must be positive; the header gives 0.7 x -1 x"),
        (at(42, "<h", 0), "holds no voxels"),
        (at(42, "<hhh", 30000, 30000, 30000), "cut short or damaged"),
        (at(70, "<h", 7777), "no readable NIfTI"),
        (at(280, "<f", np.nan), "affine is not finite"),
        (at(280, "<12f", *[0.0] * 12), "sides must be positive; the affine"),
    ],
)
def test_headers_that_lie(tmp_path, values, change, what, capfd):
    path = saved(tmp_path / "x.nii", values, change=change)
    with refused(rf"x\.nii: .*{what}"):
        read_image(path)
    assert capfd.readouterr().err == ""  # nothing but the error itself


def test_voxels_that_are_no_numbers(tmp_path, values):
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    with refused("x.nii: 3 voxels are NaN or infinite"):
        read_image(saved(tmp_path / "x.nii", values))
    with refused("complex64"):
        read_image(saved(tmp_path / "c.nii", values.astype(np.complex64)))


def test_shear_is_refused_but_rounding_passes(tmp_path, values):
    affine = oblique()
    affine[:3, 1] += 1e-5
    read_image(saved(tmp_path / "rounded.nii", values, affine))
    affine[:3, 1] += 0.2 * affine[:3, 0]
    with refused(r"sheared by 7\.\d degrees"):
        read_image(saved(tmp_path / "sheared.nii", values, affine))


def test_other_numbers_of_channels(tmp_path, values):
    four = saved(tmp_path / "x.nii", np.stack([values, values], -1))
    with refused("4D with 2 channels given, where 1 is expected"):
        read_image(four, channels=1)
    with refused("one 3D file a channel"):
        read_image([four, four])
    with refused("has 2 axes"):
        read_image(saved(tmp_path / "flat.nii", values[..., 0]))


def test_channels_on_different_grids_name_both_files(tmp_path, values):
    a, close, far = oblique(), oblique(), oblique()
    close[:3, 3] += 1e-5
    far[2, 3] += 4
    first = saved(tmp_path / "a.nii", values, a)
    read_image([first, saved(tmp_path / "b.nii", values, close)])
    with refused(r"c\.nii: its grid is not that of .*a\.nii: origin differs by 4 mm"):
        read_image([first, saved(tmp_path / "c.nii", values, far)])


def test_a_constant_channel_is_warned_of(tmp_path, values):
    with pytest.warns(UserWarning, match="channel 1: all voxels are 5"):
        read_image(saved(tmp_path / "x.nii", np.stack([values, np.full_like(values, 5)], -1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(saved(tmp_path / "y.nii", values))


def test_labels(tmp_path, values):
    whole = read_label(saved(tmp_path / "a.nii", np.rint(np.abs(values)) * 300))
    assert whole.array.dtype == np.uint16
    assert whole.array.shape == (1, 6, 5, 4)
    with refused("120 voxels are not whole numbers"):
        read_label(saved(tmp_path / "b.nii", values))
    with refused("negative id -2"):
        read_label(saved(tmp_path / "c.nii", np.full((3, 3, 3), -2, np.int16)))
    with refused("3D label map is expected"):
        read_label(saved(tmp_path / "d.nii", np.zeros((3, 3, 3, 2), np.uint8)))


def test_names_of_nifti_files():
    names = ["a.nii", "b.nii.gz", "._b.nii.gz", "c.json", "d.gz"]
    assert [name for name in names if is_nifti(name)] == ["a.nii", "b.nii.gz"]


# --- writing ---


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_label_lies_on_its_image_in_nibabel_and_itk(tmp_path, values, affine, ending):
    image = saved(tmp_path / f"image{ending}", values, affine)
    label = (values > 0).astype(np.int64) * 3
    write_label(tmp_path / f"label{ending}", label, read_image(image))

    read = nib.load(tmp_path / f"label{ending}")
    assert read.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(read.dataobj), label)
    assert np.array_equal(read.affine, nib.load(image).affine)
    assert np.allclose(read.get_qform(), affine, atol=1e-4)
    assert read.header["sform_code"] > 0
    assert read.header["qform_code"] > 0
    assert read.header.get_xyzt_units()[0] == "mm"
    assert read.header.get_slope_inter() == (None, None)

    itk_image, itk_label = SimpleITK.ReadImage(str(image)), SimpleITK.ReadImage(str(tmp_path / f"label{ending}"))
    assert itk_label.GetSize() == itk_image.GetSize()
    assert np.allclose(itk_label.GetSpacing(), itk_image.GetSpacing(), atol=1e-5)
    assert np.allclose(itk_label.GetOrigin(), itk_image.GetOrigin(), atol=1e-5)
    assert np.allclose(itk_label.GetDirection(), itk_image.GetDirection(), atol=1e-5)
    assert np.array_equal(SimpleITK.GetArrayFromImage(itk_label).transpose(2, 1, 0), label)


def test_the_header_is_the_images_without_its_scaling_and_display(tmp_path, values):
    image = nib.Nifti1Image((values * 100).astype(np.int16), oblique())
    image.header["descrip"] = b"scanner 7"
    image.header["cal_max"] = 900
    image.header.set_slope_inter(0.01, 4)
    nib.save(image, tmp_path / "image.nii")
    write_label(tmp_path / "label.nii", np.ones(values.shape, np.uint8), read_image(tmp_path / "image.nii"))
    content = (tmp_path / "label.nii").read_bytes()
    assert struct.unpack_from("<ff", content, 112) == (1.0, 0.0)
    read = nib.load(tmp_path / "label.nii").header
    assert read["descrip"] == b"scanner 7"
    assert read["cal_max"] == 0


def test_the_smallest_type_that_holds_the_ids(tmp_path):
    like = Volume(np.zeros((1, 2, 2, 2), np.float32), oblique())
    for largest, dtype in ((0, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)):
        write_label(tmp_path / "x.nii.gz", np.full((2, 2, 2), largest), like)
        assert nib.load(tmp_path / "x.nii.gz").get_data_dtype() == dtype
        assert read_label(tmp_path / "x.nii.gz").array.max() == largest


def test_what_is_no_label_map_is_not_written(tmp_path):
    like = Volume(np.zeros((1, 2, 2, 2), np.float32), oblique())
    for label, what in (
        (np.full((2, 2, 2), -1), "from 0 up"),
        (np.zeros((2, 2, 2)), "integers"),
        (np.zeros((2, 2, 3), int), "do not fit"),
    ):
        with refused(what):
            write_label(tmp_path / "x.nii.gz", label, like)
    with refused("end in .nii.gz or .nii"):
        write_label(tmp_path / "x.png", np.zeros((2, 2, 2), int), like)
    assert list(tmp_path.iterdir()) == []


def test_probabilities_have_the_classes_last(tmp_path, values):
    like = Volume(values[None], oblique())
    scores = np.stack([values, -values]).astype(np.float16)
    write_probabilities(tmp_path / "p.nii.gz", scores, like)
    assert np.array_equal(read_image(tmp_path / "p.nii.gz", channels=2).array, scores)
