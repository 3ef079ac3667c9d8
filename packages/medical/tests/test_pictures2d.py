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
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from vsuite.core.errors import InputError
from vsuite.core.images.files import read_image as read_pixels
from vsuite.medical.data.dicom import is_dicom, is_series, read_dicom, read_series
from vsuite.medical.data.pictures2d import cut, read_picture, write_png
from vsuite.medical.data.slices import cut_dataset, cut_folder, holds_volumes
from vsuite.medical.demo_data import make_demo_dataset
from vsuite.medical.inference import Predictor, find_cases, predict_files
from vsuite.medical.plan import Normalisation, Plan

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
    path.parent.mkdir(parents=True, exist_ok=True)
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
    with pytest.raises(InputError, match=r"c\.dcm: is no readable DICOM file: it lacks the preamble"):
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


def test_a_series_of_rounded_directions_is_one(tmp_path: Path) -> None:
    """A cosine of -0.0, or another last digit, is no other direction."""
    folder = write_series(tmp_path / "s", [0, 1, 2], ImageOrientationPatient=[1, -1e-9, 0, -0.00002, 1, 0], PixelSpacing=[1.00004, 2])
    assert read_series(folder).array.shape == (1, 4, 3, 3)


def test_an_inverted_series_is_inverted_as_a_whole(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [0, 1, 2])
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.PhotometricInterpretation = "MONOCHROME1"
        data.save_as(path)
    light = read_series(write_series(tmp_path / "t", [0, 1, 2])).array
    np.testing.assert_array_equal(read_series(folder).array, 1102 - light)


def test_frames_in_a_series_of_files_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [0, 1, 2], NumberOfFrames=2, PixelData=np.concatenate([PIXELS, PIXELS]).tobytes())
    with pytest.raises(InputError, match=r"2\.dcm: has 2 frames of 1 values a pixel, and 0\.dcm of the same series 1 frames of 1"):
        read_series(folder)


def test_enhanced_files_are_refused(tmp_path: Path) -> None:
    """Their slope, spacing and place lie in sequences: read like others, they would be other values in another place."""
    path = write_dicom(tmp_path / "a.dcm", SharedFunctionalGroupsSequence=[pydicom.Dataset()])
    with pytest.raises(InputError, match=r"a\.dcm: is an enhanced.*NIfTI"):
        read_dicom(path)


def test_names_that_archives_give(tmp_path: Path) -> None:
    names = {"1.2.840.113619.2.55": True, "IM0001": True, "DICOMDIR": False, "notes.txt": False, "x.dcm": True}
    for name in names:
        write_dicom(tmp_path / name)
    assert {name: is_dicom(tmp_path / name) for name in names} == names


def test_a_folder_of_films_is_no_series(tmp_path: Path) -> None:
    assert is_series(write_series(tmp_path / "ct", [0, 1]))
    films = tmp_path / "films"
    films.mkdir()
    for index in range(2):  # two views of a study may share their series
        write_dicom(films / f"{index}.dcm")
    assert not is_series(films)
    assert holds_volumes(tmp_path)
    assert [path.name for path in cut_folder(tmp_path, tmp_path.with_name("out"))] == ["ct_z000.png", "ct_z001.png"]
    assert not is_series(tmp_path / "none")


def test_a_window_of_one_unit_keeps_the_values_between(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 24).reshape(4, 6, 1).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii.gz")
    np.testing.assert_allclose(read_picture(tmp_path / "v.nii.gz", window=(0.5, 1.0)).array[0], array, atol=1e-6)


def test_three_channels_of_nifti_are_seen_in_their_range(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(0, 300, (4, 6, 1, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii.gz")
    pixels = read_pixels(tmp_path / "v.nii.gz")
    assert (pixels.min(), pixels.max()) == (0, 1)


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
    with pytest.raises(InputError, match="width must be above 0; got 0"):
        cut_folder(tmp_path, tmp_path / "again", window=(100, 0))
    assert not (tmp_path / "again").exists()


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


def test_a_cut_label_must_lie_on_its_image(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path / "demo", cases=2, test_cases=0, seed=0)
    path = next((tmp_path / "demo").glob("labels*/*.nii*"))
    label = nib.load(path)
    moved = label.affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), moved), path)
    with pytest.raises(InputError, match="not on the grid of its image"):
        cut_dataset(tmp_path / "demo", tmp_path / "out")


def test_a_data_set_that_comes_divided_stays_so(tmp_path: Path) -> None:
    (tmp_path / "s" / "train_npz").mkdir(parents=True)
    (tmp_path / "s" / "test_vol_h5").mkdir()
    for name in ("train_npz/case0005_slice000.npz", "train_npz/case0005_slice001.npz", "test_vol_h5/case0001.npz"):
        np.savez(tmp_path / "s" / name, image=np.random.default_rng(0).random((8, 8)), label=np.ones((8, 8), np.uint8))
    rows = list(csv.DictReader(cut_dataset(tmp_path / "s", tmp_path / "out").open()))
    assert {row["group"] for row in rows if row["split"] == "val"} == {"case0001"}


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)  # what opencv answers on a full disk
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(InputError, match=r"a\.png"):
        write_png(np.zeros((2, 2), np.uint8), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


# --- prediction ---


def make_predictor() -> Predictor:
    torch.manual_seed(0)
    plan = Plan(channels=["CT"], normalisation=[Normalisation()], labels={"background": 0, "organ": 1}, patch_size=(8, 8, 8))
    return Predictor((torch.nn.Conv3d(1, 2, 3, padding=1), plan), device="cpu")


def test_a_folder_of_a_dicom_series_is_one_volume(tmp_path: Path) -> None:
    predictor = make_predictor()
    slices = np.random.default_rng(0).integers(0, 900, (5, 9, 11)).astype(np.uint16)  # Z, rows, columns
    for z, pixels in enumerate(slices):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [-4, 6, 2.5 * z], "PixelSpacing": [1, 2]}
        write_dicom(tmp_path / "patient1" / f"IM{9 - z}", pixels, **place)
    assert [(case.name, case.images) for case in find_cases(tmp_path / "patient1", predictor.plan)] == [
        ("patient1", (tmp_path / "patient1",))
    ]
    assert predict_files(predictor, [tmp_path / "patient1"], tmp_path / "out", progress=False) == 0
    written = nib.load(tmp_path / "out" / "patient1.nii.gz")
    affine = np.diag([-2.0, -1, 2.5, 1])
    affine[:3, 3] = 4, -6, 0
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    wanted = predictor.predict(slices.transpose(2, 1, 0).astype(np.float32), affine).label
    np.testing.assert_array_equal(np.asarray(written.dataobj), wanted)


def test_dicom_pictures_of_a_folder_are_cases_of_their_own(tmp_path: Path) -> None:
    predictor = make_predictor()
    for name in ("a", "b"):
        write_dicom(tmp_path / "films" / f"{name}.dcm")
    assert [case.name for case in find_cases(tmp_path / "films", predictor.plan)] == ["a", "b"]
