"""Disks that are full or cannot be written to: one line that names the file, and nothing half written."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import pytest


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond the given bytes, as on a disk that is full (nor may a log that pytest's own output goes to)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(params=["below a file", "system folder"])
def read_only(request, tmp_path) -> Path:
    """A folder that nobody can make, not even root, whom permissions do not bind."""
    (tmp_path / "file").write_text("not a folder")
    return tmp_path / "file" / "out" if request.param == "below a file" else Path("/proc/vsuite-out")


def test_predicting_to_a_full_disk(predict, save, leavings, tmp_path):
    import numpy as np

    path = save(tmp_path / "in" / "x.nii.gz", np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32))
    predict(path, "--probabilities", out=tmp_path / "fits")
    for arguments in ((), ("--probabilities",)):
        with full_disk(1000):
            finished = predict(path, *arguments, "--overwrite")
        finished.refused("x", "cannot be written: File too large")
        assert leavings(tmp_path / "out") == []


@pytest.mark.parametrize("size", [500, 8_000])
def test_training_to_a_full_disk(size, train, tmp_path):
    with full_disk(size):
        finished = train()
    finished.refused("cannot be written: File too large")
    assert not list((tmp_path / "run").rglob(".*")), "no temporary files"


def test_a_checkpoint_that_does_not_fit(train, tmp_path):
    """Prepared cases fit, the checkpoint does not: what is there stays whole, and the run can be resumed."""
    whole = tmp_path / "whole"
    assert train(out=whole).code == 0
    largest_before = max(p.stat().st_size for p in (whole / "prepared").iterdir())
    checkpoint = (whole / "checkpoints" / "last.pth").stat().st_size
    assert largest_before < checkpoint
    with full_disk(checkpoint - 1):
        finished = train()
    finished.refused("cannot be written: File too large")
    assert not list((tmp_path / "run").rglob(".*")), "no temporary files"
    assert not (tmp_path / "run" / "checkpoints" / "last.pth").exists()
    assert train("--resume").code == 0


@pytest.mark.parametrize("form", ["bundle", "published", "torchscript"])
def test_exporting_to_a_full_disk(form, invoke, weights, tmp_path):
    names = {"bundle": "bundle", "published": "x.pth", "torchscript": "x.ts"}
    with full_disk(10_000):
        finished = invoke("export", "--weights", weights, "--format", form, "--out", tmp_path / names[form])
    finished.refused("cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_evaluating_to_a_full_disk(invoke, dataset, tmp_path):
    labels = dataset / "labelsTr"
    with full_disk(100):
        finished = invoke("evaluate", labels, "--data", labels, "--out", tmp_path / "result", "--no-pictures")
    finished.refused("cannot be written: File too large")
    assert not [p for p in (tmp_path / "result").rglob("*") if p.is_file()]


def test_a_folder_that_cannot_be_made(predict, train, invoke, save, weights, dataset, read_only, tmp_path):
    image, labels = save(tmp_path / "in" / "x.nii.gz"), dataset / "labelsTr"
    predict(image, out=read_only).refused(str(read_only), "cannot be written")
    train(out=read_only).refused(str(read_only), "cannot be written")
    invoke("evaluate", labels, "--data", labels, "--out", read_only).refused(str(read_only), "cannot be written")
    invoke("export", "--weights", weights, "--out", read_only).refused(str(read_only), "cannot be written")
    invoke("export", "--weights", weights, "--format", "published", "--out", read_only / "x.pth").refused(
        str(read_only), "cannot be written"
    )
    invoke("demo", "--out", read_only).refused(str(read_only), "cannot be written")


def test_a_file_where_a_folder_goes(predict, train, save, tmp_path):
    (tmp_path / "taken").write_text("mine")
    image = save(tmp_path / "in" / "x.nii.gz")
    predict(image, out=tmp_path / "taken").refused("taken")
    train(out=tmp_path / "taken").refused("taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_process_of_its_own_says_the_same(shell, weights, tmp_path):
    """The console script itself: exit code 2, one line on stderr."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.nii.gz").write_bytes(b"nothing of the kind")
    finished = shell("predict", "--weights", weights, tmp_path / "in", "--out", tmp_path / "out", "--device", "cpu")
    line = finished.refused("x.nii.gz: is no readable NIfTI file")
    assert finished.err.splitlines()[-1] == line
