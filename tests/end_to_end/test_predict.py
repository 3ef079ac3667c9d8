"""`vsuite-medical predict`: label maps that lie on their images, whichever way they are asked for."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from vsuite.medical.inference import Predictor

CASES = ("phantom_9000", "phantom_9001")


def array(path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def another(trained, data, recipe, invoke, tmp_path_factory):
    """Weights of the same plan from another seed: the plan depends on the cases, so the split is the first one's."""
    folder = tmp_path_factory.mktemp("another") / "run"
    finished = invoke(
        "train", "--data", data, "--recipe", recipe, "--out", folder, "--device", "cpu", "--seed", 7,
        "--split", trained.folder / "split.json", "--set", "training.steps=2",
    )  # fmt: skip
    assert finished.code == 0, finished.err
    return folder / "checkpoints" / "best.safetensors"


@pytest.mark.parametrize("case", CASES)
def test_a_label_map_lies_on_its_image(case, predicted, data):
    """Judged by another reader than our own."""
    image, label = (sitk.ReadImage(str(p)) for p in (data / "imagesTs" / f"{case}_0000.nii.gz", predicted / f"{case}.nii.gz"))
    assert label.GetSize() == image.GetSize()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(label, name)(), getattr(image, name)(), rtol=0, atol=1e-4), name
    assert label.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    header = nib.load(predicted / f"{case}.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert np.array_equal(header.get_best_affine(), nib.load(data / "imagesTs" / f"{case}_0000.nii.gz").affine)
    assert set(np.unique(sitk.GetArrayViewFromImage(label))) <= {0, 1, 2, 3, 4}


def test_the_folder_says_what_was_done(predicted):
    done = json.loads((predicted / "predictions.json").read_text())["cases"]
    assert [(case["case"], case["status"]) for case in done] == [(name, "done") for name in CASES]
    labels = json.loads((predicted / "labels.json").read_text())["labels"]
    assert labels == {"background": 0, "lobes": 1, "ventricle": 2, "stem": 3, "lesion": 4}
    expected = [f"{name}{ending}" for name in CASES for ending in (".nii.gz", "_probabilities.npy")]
    assert sorted(p.name for p in predicted.iterdir()) == sorted([*expected, "labels.json", "predictions.json"])


@pytest.mark.parametrize("case", CASES)
def test_probabilities_lead_to_the_label(case, predicted):
    scores = np.load(predicted / f"{case}_probabilities.npy").astype(np.float32)
    label = array(predicted / f"{case}.nii.gz")
    assert scores.shape == (5, *label.shape)
    assert np.allclose(scores.sum(0), 1, atol=4e-3)
    ordered = np.sort(scores, 0)
    clear = ordered[-1] - ordered[-2] > 4e-3
    assert clear.mean() > 0.1
    assert np.array_equal(scores.argmax(0)[clear], label[clear])


def test_a_file_gives_what_the_folder_gave(trained, predicted, data, invoke, tmp_path):
    image = data / "imagesTs" / f"{CASES[0]}_0000.nii.gz"
    finished = invoke("predict", "--weights", trained.weights, image, "--out", tmp_path, "--device", "cpu", "--overlap", 0.25)
    assert finished.code == 0, finished.err
    assert np.array_equal(array(tmp_path / f"{CASES[0]}.nii.gz"), array(predicted / f"{CASES[0]}.nii.gz"))


def test_mirroring_and_an_ensemble_are_what_they_are_in_python(trained, another, predicted, data, invoke, tmp_path):
    image = data / "imagesTs" / f"{CASES[0]}_0000.nii.gz"
    command = ("predict", image, "--device", "cpu", "--overlap", 0.25, "--weights", trained.weights)
    single = array(predicted / f"{CASES[0]}.nii.gz")
    for name, arguments, sources, mirror in (
        ("mirror", ("--mirror",), [trained.weights], True),
        ("two", ("--weights", another), [trained.weights, another], False),
        ("same", ("--weights", trained.weights), [trained.weights], False),
    ):
        assert invoke(*command, *arguments, "--out", tmp_path / name).code == 0
        found = array(tmp_path / name / f"{CASES[0]}.nii.gz")
        wanted = Predictor(sources, device="cpu", overlap=0.25, mirror=mirror).predict(image).label
        assert np.array_equal(found, wanted), name
        assert np.array_equal(found, single) == (name == "same"), name


def test_resuming_predicts_what_is_missing_and_nothing_else(trained, predicted, data, invoke, tmp_path):
    out = tmp_path / "maps"
    out.mkdir()
    kept = out / f"{CASES[0]}.nii.gz"
    kept.write_bytes(b"finished before")
    command = ("predict", "--weights", trained.weights, data / "imagesTs", "--out", out, "--device", "cpu", "--overlap", 0.25)
    refused = invoke(*command)
    assert refused.code == 2
    assert f"{CASES[0]}.nii.gz: exists" in refused.err
    assert invoke(*command, "--resume").code == 0
    assert kept.read_bytes() == b"finished before"
    assert np.array_equal(array(out / f"{CASES[1]}.nii.gz"), array(predicted / f"{CASES[1]}.nii.gz"))
    done = json.loads((out / "predictions.json").read_text())["cases"]
    assert [case["status"] for case in done] == ["skipped", "done"]
    assert invoke(*command, "--overwrite").code == 0
    assert np.array_equal(array(kept), array(predicted / kept.name))
