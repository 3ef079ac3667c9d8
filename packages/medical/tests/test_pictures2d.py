"""Single pictures: PNG, TIFF, DICOM and NIfTI slices; series; and cutting volumes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from vsuite.core.errors import InputError
from vsuite.core.images.files import read_image as read_pixels
from vsuite.medical.data.dicom import read_series
from vsuite.medical.data.pictures2d import cut, read_picture
from vsuite.medical.data.slices import cut_dataset, cut_folder
from vsuite.medical.demo_data import make_demo_dataset

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100  # 3 rows, 4 columns
SERIES = generate_uid()


def write_dicom(path: Path, pixels: np.ndarray | None = PIXELS, **tags: Any) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Modality, data.SeriesInstanceUID = "DX", SERIES
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint8), ("a.png", np.uint16), ("a.tiff", np.uint16)])
def test_pixels_keep_their_bits(name: str, dtype: type, tmp_path: Path) -> None:
    pixels = (np.arange(20).reshape(4, 5) * (12 if dtype == np.uint8 else 3000)).astype(dtype)
    cv2.imwrite(str(tmp_path / name), pixels)
    volume = read_picture(tmp_path / name)
    assert volume.array.shape == (1, 5, 4, 1)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T, pixels)
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")


def test_colour_has_three_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "c.png"), np.dstack([np.full((2, 3), v, np.uint8) for v in (30, 20, 10)]))  # blue, green, red
    assert read_picture(tmp_path / "c.png").array[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_dicom_is_rescaled_and_placed(tmp_path: Path) -> None:
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "ImagePositionPatient": [5, 6, 7], "PixelSpacing": [0.5, 0.25]}
    path = write_dicom(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1000, **place)
    volume = read_picture(path)
    np.testing.assert_allclose(volume.array[0, :, :, 0].T, PIXELS * 2.0 - 1000)
    assert nib.aff2axcodes(volume.affine)[:2] == ("L", "I")  # rows run to the left, columns down
    np.testing.assert_allclose(np.abs(volume.affine).max(0)[:2], [0.25, 0.5])  # X is the column spacing
    np.testing.assert_allclose(volume.affine[:3, 3], [-5, -6, 7])


def test_projections_lie_as_their_letters_say(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PatientOrientation=["R", "F"], ImagerPixelSpacing=[0.2, 0.2])
    volume = read_picture(path)
    assert nib.aff2axcodes(volume.affine)[:2] == ("R", "I")
    assert np.linalg.norm(volume.affine[:3, 0]) == pytest.approx(0.2)


def test_monochrome1_is_inverted_and_windows_clip(tmp_path: Path) -> None:
    light = read_picture(write_dicom(tmp_path / "a.dcm")).array
    dark = read_picture(write_dicom(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")).array
    np.testing.assert_array_equal(dark, 1100 - light)
    windowed = read_picture(tmp_path / "a.dcm", window=(500, 201)).array
    assert windowed.min() == 0
    assert windowed.max() == 1
    assert windowed[0, 1, 1, 0] == pytest.approx(0.5, abs=0.01)  # 500, the centre
    inverted = read_picture(tmp_path / "b.dcm", window=(500, 201)).array
    np.testing.assert_allclose(inverted, 1 - windowed, atol=1e-6)


def test_the_core_sees_dicom_through_its_own_window(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", WindowCenter=500, WindowWidth=201)
    pixels = read_pixels(path)
    assert pixels.shape == (3, 4, 1)
    np.testing.assert_allclose(pixels[..., 0], read_picture(path, window=(500, 201)).array[0, :, :, 0].T)
    plain = read_pixels(write_dicom(tmp_path / "b.dcm"))
    np.testing.assert_allclose(plain[..., 0], PIXELS / 1100, rtol=1e-5)


def test_dicom_without_pixels_or_decoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.dcm: is a DICOM file without pixels \(SR\)"):
        read_picture(write_dicom(tmp_path / "a.dcm", None, Modality="SR"))
    path = write_dicom(tmp_path / "b.dcm")
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f nothing"])
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match=r"b\.dcm: its pixels are compressed \(JPEG 2000.*decoder"):
        read_picture(path)
    (tmp_path / "c.dcm").write_bytes(b"not dicom at all" * 20)
    with pytest.raises(InputError, match=r"c\.dcm: is no readable DICOM file"):
        read_picture(tmp_path / "c.dcm")
    with pytest.raises(InputError, match=r"no such file|No such file"):
        read_picture(tmp_path / "d.dcm")


def write_series(folder: Path, heights: list[float], **last: Any) -> Path:
    folder.mkdir()
    for index, height in enumerate(heights):
        tags: dict[str, Any] = {
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, height],
            "PixelSpacing": [1, 2],
        }
        pixels = PIXELS + int(height)
        if index == len(heights) - 1:
            pixels = last.pop("pixels", pixels)
            tags |= last
        write_dicom(folder / f"{index}.dcm", pixels, **tags)
    return folder


def test_a_series_is_stacked_by_position(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path / "s", [6, 0, 3]))
    assert volume.array.shape == (1, 4, 3, 3)
    assert volume.array[0, 0, 0].tolist() == [0, 3, 6]
    np.testing.assert_allclose(volume.affine, np.diag([-2, -1, 3, 1]), atol=1e-9)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"pixels": np.zeros((5, 4), np.uint16)}, r"2\.dcm: has 4 x 5 pixels, and 0\.dcm of the same series 4 x 3"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, r"2\.dcm: has .* direction"),
        ({"SeriesInstanceUID": generate_uid()}, "holds 2 series"),
        ({"ImagePositionPatient": [0, 0, 1.0]}, r"1\.dcm|2\.dcm: lies where|lies where"),
        ({"ImagePositionPatient": [0, 0, 9.0]}, "apart; equal distances"),
    ],
)
def test_a_mixed_series_is_refused(last: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_series(write_series(tmp_path / "s", [0, 1, 2], **last))


def test_nifti_slices_are_chosen_by_index(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2.5, 1])), tmp_path / "v.nii.gz")
    volume = read_picture(tmp_path / "v.nii.gz", index=2)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], array[:, :, 2])
    assert volume.affine[2, 3] == 5
    with pytest.raises(InputError, match="holds 3 slices"):
        read_picture(tmp_path / "v.nii.gz")
    with pytest.raises(InputError, match="no slice 3"):
        read_picture(tmp_path / "v.nii.gz", index=3)


def test_cut_slices_have_sixteen_bits_and_the_volumes_range(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 4 * 5 * 6).reshape(4, 5, 6).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii.gz")
    pictures = list(cut(read_volume(tmp_path / "v.nii.gz"), (0.5, 1.0)))
    assert len(pictures) == 6
    assert pictures[0].shape == (5, 4)
    assert pictures[0].dtype == np.uint16
    np.testing.assert_array_equal(pictures[3], np.rint(array[:, :, 3].T * 65535))
    written = cut_folder(tmp_path, tmp_path / "out")
    assert [path.name for path in written] == [f"v_z{z:03d}.png" for z in range(6)]
    with pytest.raises(InputError, match="holds no NIfTI files"):
        cut_folder(tmp_path / "out", tmp_path / "again")


def read_volume(path: Path) -> Any:
    from vsuite.medical.data.nifti import read_image

    return read_image(path)


def test_a_data_set_is_cut_by_volume(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path / "demo", cases=5, test_cases=0, seed=0)
    table = cut_dataset(tmp_path / "demo", tmp_path / "out", fraction=0.2, labelled=0.25)
    rows = list(csv.DictReader(table.open()))
    few = list(csv.DictReader((tmp_path / "out" / "labels_few.csv").open()))
    splits = {group: {row["split"] for row in rows if row["group"] == group} for group in {row["group"] for row in rows}}
    assert len(splits) == 5
    assert sorted(map(sorted, splits.values())) == [["train"]] * 4 + [["val"]]
    assert len({row["group"] for row in few if row["split"] == "train"}) == 1
    assert [row for row in few if row["split"] == "val"] == [row for row in rows if row["split"] == "val"]
    structures = list(rows[0])[3:]
    assert structures
    assert all(0 < sum(int(row[name]) for row in rows) < len(rows) for name in structures)
    assert all((table.parent / row["path"]).is_file() for row in rows)
    with pytest.raises(InputError, match="exists and is not empty"):
        cut_dataset(tmp_path / "demo", tmp_path / "out")
