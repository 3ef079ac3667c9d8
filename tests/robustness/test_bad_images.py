"""Images that no label map can be made of: `predict` and `train` say which file and why, and leave nothing half written."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (18, 16, 14)
AFFINE = np.array([[0, -1.0, 0, 10], [1.5, 0, 0, -4], [0, 0, 2.0, 3], [0, 0, 0, 1.0]])
SHEARED = AFFINE @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
rng = np.random.default_rng(1)


def image(shape=SHAPE) -> np.ndarray:
    return rng.normal(100, 20, shape).astype(np.float32)


def with_nan() -> np.ndarray:
    array = image()
    array[3, 4, 5:8] = np.nan
    return array


def patched(path: Path, offset: int, code: str, *values: float) -> None:
    """Overwrites a field of the header of a .nii.gz file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(code, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def no_spacing(path: Path) -> None:
    patched(path, 80, "<fff", 0, 0, 0)


SPOILT = {
    "cut short": (lambda save, path: cut(save(path)), "cut short"),
    "cut in the header": (lambda save, path: path.write_bytes(gzip.compress(bytes(100))), "NIfTI"),
    "no NIfTI": (lambda save, path: path.write_bytes(b"P5 4 4 255 " + bytes(400)), "no readable NIfTI"),
    "gzip of text": (lambda save, path: path.write_bytes(gzip.compress(b"hello " * 200)), "NIfTI"),
    "zero bytes": (lambda save, path: path.write_bytes(b""), "is empty (0 bytes)"),
    "NaN": (lambda save, path: save(path, with_nan()), "3 voxels are NaN or infinite"),
    "infinite": (lambda save, path: save(path, np.full(SHAPE, np.inf, np.float32)), "NaN or infinite"),
    "zero spacing": (lambda save, path: no_spacing(save(path)), "voxel sides must be positive"),
    "sheared": (lambda save, path: save(path, affine=SHEARED), "sheared by"),
    "huge header": (lambda save, path: patched(save(path), 42, "<hhh", 30000, 30000, 30000), "30000 x 30000 x 30000"),
    "negative header": (lambda save, path: patched(save(path), 42, "<h", -5), "holds no voxels (shape -5 x 16 x 14)"),
    "complex voxels": (lambda save, path: save(path, image().astype(np.complex64)), "complex64 voxels"),
    "2D": (lambda save, path: save(path, image((18, 16))), "2 axes"),
    "a folder": (lambda save, path: path.mkdir(), ""),
    "a loop of links": (lambda save, path: path.symlink_to(path), ""),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_predicting_one_bad_file(kind, predict, save, leavings, tmp_path):
    spoil, message = SPOILT[kind]
    path = tmp_path / "in" / "x.nii.gz"
    path.parent.mkdir()
    spoil(save, path)
    predict(path).refused(message)
    assert leavings(tmp_path / "out") == []


@pytest.mark.parametrize("kind", SPOILT)
def test_training_on_a_bad_image(kind, train, dataset, save, leavings, tmp_path):
    spoil, message = SPOILT[kind]
    path = dataset / "imagesTr" / "b_0000.nii.gz"
    path.unlink()
    spoil(save, path)
    train().refused(message)
    assert leavings(tmp_path / "run") == []


def test_a_bad_file_among_good_ones_does_not_stop_them(predict, save, leavings, tmp_path):
    for name in ("a", "c"):
        save(tmp_path / "in" / f"{name}.nii.gz")
    cut(save(tmp_path / "in" / "b.nii.gz"))
    predict(tmp_path / "in").refused("1 of 3 cases failed", "b.nii.gz", "cut short")
    assert leavings(tmp_path / "out") == ["a.nii.gz", "c.nii.gz"]
    done = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert [case["status"] for case in done] == ["done", "failed", "done"]
    assert "cut short" in done[1]["error"]


def test_4d_where_3d_is_expected(predict, train, save, dataset, leavings, tmp_path):
    four = save(tmp_path / "in" / "four.nii.gz", image((*SHAPE, 3)))
    predict(four).refused("four.nii.gz (3)", "expected 1 channel (T1)")
    assert not (tmp_path / "out").exists()
    save(dataset / "imagesTr" / "b_0000.nii.gz", image((*SHAPE, 3)))
    train().refused("b_0000.nii.gz", "4D with 3 channels given, where 1 is expected")
    assert leavings(tmp_path / "run") == []


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_empty_trailing_axes_are_no_channels(shape, predict, save, tmp_path):
    finished = predict(save(tmp_path / "in" / "x.nii.gz", image(shape)))
    assert finished.code == 0, finished.err
    assert nib.load(tmp_path / "out" / "x.nii.gz").shape == SHAPE


def test_missing_and_empty_folders(predict, invoke, weights, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    predict(tmp_path / "none").refused("none: no such file or folder")
    predict(tmp_path / "empty").refused("empty: holds no images (.nii.gz, .nii, ")
    for folder, message in (("none", "no such file or folder"), ("empty", "not a data set")):
        invoke("train", "--data", tmp_path / folder, "--recipe", recipe, "--out", tmp_path / "run").refused(folder, message)
    for pair in (("none", "empty"), ("empty", "none"), ("empty", "empty")):
        command = [tmp_path / name for name in pair]
        invoke("evaluate", command[0], "--data", command[1], "--out", tmp_path / "result").refused(str(tmp_path))
    assert not any((tmp_path / name).exists() for name in ("out", "run", "result"))


def test_names_with_spaces_and_other_scripts_work(predict, save, tmp_path):
    names = ["Müller 1", "病人 2", "[a] 'b' \"c\""]
    for name in names:
        save(tmp_path / "Ordner mit Leerzeichen ü" / f"{name}.nii.gz")
    finished = predict(tmp_path / "Ordner mit Leerzeichen ü", out=tmp_path / "ergebnis é")
    assert finished.code == 0, finished.err
    assert sorted(p.name for p in (tmp_path / "ergebnis é").glob("*.nii.gz")) == sorted(f"{name}.nii.gz" for name in names)


def test_a_constant_image_is_warned_of_and_labelled(predict, save, tmp_path):
    finished = predict(save(tmp_path / "in" / "x.nii.gz", np.full(SHAPE, 7, np.float32)))
    assert finished.code == 0, finished.err
    done = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert "all voxels are 7" in done[0]["warnings"][0]


def test_several_inputs_of_one_name(predict, save, tmp_path):
    paths = [save(tmp_path / folder / "x.nii.gz") for folder in ("one", "two")]
    predict(*paths).refused("several inputs would be written as x")
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_overwritten(predict, save, tmp_path):
    path = save(tmp_path / "in" / "x.nii.gz")
    before = path.read_bytes()
    predict(path, "--overwrite", out=tmp_path / "in").refused("is an input")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path / "in") == ["x.nii.gz"]


def test_missing_channels_are_named(invoke, save, dataset, recipe, tmp_path):
    description = json.loads((dataset / "dataset.json").read_text())
    description["channel_names"]["1"] = "T2"
    (dataset / "dataset.json").write_text(json.dumps(description))
    save(dataset / "imagesTr" / "a_0001.nii.gz")
    invoke("train", "--data", dataset, "--recipe", recipe, "--out", tmp_path / "run").refused("b", "0001")
    assert not (tmp_path / "run").exists()
