"""The predictor and batches of files."""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from vsuite.core import create_model
from vsuite.core.errors import InputError
from vsuite.core.weights import save_weights
from vsuite.medical.inference import Predictor, find_cases, predict_files
from vsuite.medical.plan import Normalisation, Plan

AFFINE = np.array([[0, -0.9, 0.1, 10], [1.2, 0, 0, -4], [0, 0.05, 2.0, 3], [0, 0, 0, 1.0]])
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] * [1.2, 0.9, 2.0]  # orthogonal, oblique


def plan_of(channels=("T1",), **changes) -> Plan:
    facts = {"labels": {"background": 0, "organ": 1, "lesion": 4}, "patch_size": (8, 8, 8)}
    return Plan(**{**facts, "channels": list(channels), "normalisation": [Normalisation()] * len(channels), **changes})


def network(channels: int = 1, outputs: int = 3, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Conv3d(channels, outputs, 3, padding=1)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(11, 9, 7)).astype(np.float32)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor((network(), plan_of()), device="cpu")


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def refused(pattern: str):
    return pytest.raises(InputError, match=pattern)


# --- one image ---


def test_a_file_and_its_array_give_the_same_label(tmp_path, image, predictor):
    path = save(tmp_path / "a.nii.gz", image)
    from_file = predictor.predict(path)
    from_array = predictor.predict(image, nib.load(path).affine)
    assert from_file.label.shape == image.shape
    assert from_file.label.dtype == np.uint8
    assert set(np.unique(from_file.label)) == {0, 1, 4}
    assert np.array_equal(from_file.label, from_array.label)
    assert np.array_equal(from_file.label, predictor.predict(image[None], nib.load(path).affine).label)
    from_file.save(tmp_path / "label.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "label.nii.gz").affine, nib.load(path).affine)


def test_probabilities_lie_in_the_image_grid(tmp_path, image, predictor):
    found = predictor.predict(image, AFFINE, probabilities=tmp_path / "p.npy")
    scores = np.asarray(found.probabilities, np.float32)
    assert found.probabilities.dtype == np.float16
    assert scores.shape == (3, *image.shape)
    assert np.allclose(scores.sum(0), 1, atol=2e-3)
    ordered = np.sort(scores, 0)
    clear = ordered[-1] - ordered[-2] > 2e-3
    assert np.array_equal(np.array([0, 1, 4])[scores.argmax(0)][clear], found.label[clear])
    with refused("saved as .npy"):
        predictor.predict(image, AFFINE, probabilities=tmp_path / "p.npz")


def test_an_ensemble_is_the_mean_of_logits():
    models, plan = [network(seed=seed) for seed in range(3)], plan_of()
    windows = torch.randn(2, 1, 8, 8, 8)
    ensemble = Predictor([(model, plan) for model in models], device="cpu")
    assert torch.allclose(ensemble.logits(windows), sum(model(windows) for model in models) / 3, atol=1e-6)


def test_mirroring_is_the_mean_over_all_combinations():
    model, windows = network(), torch.randn(1, 1, 8, 6, 4)
    flips = [f for n in range(3) for f in itertools.combinations((2, 4), n)]
    expected = sum(model(windows.flip(f)).flip(f) if f else model(windows) for f in flips) / 4
    got = Predictor((model, plan_of(mirror_axes=(0, 2))), device="cpu", mirror=True).logits(windows)
    assert torch.allclose(got, expected, atol=1e-6)
    assert not torch.allclose(got, model(windows), atol=1e-3)


def test_models_of_an_ensemble_must_agree():
    with refused("second|a model: does not go with the first .* labels, spacing differ"):
        Predictor([(network(), plan_of()), (network(), plan_of(spacing=(1, 1, 1), labels={"background": 0, "a": 1, "b": 2}))])
    mixed = Predictor([(network(), plan_of(mirror_axes=(0, 1))), (network(), plan_of(mirror_axes=(1, 2)))], device="cpu", mirror=True)
    assert mixed.mirrors == [(), (3,)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision, image, predictor):
    half = Predictor((network(), plan_of()), device="cpu", precision=precision)
    windows = torch.randn(1, 1, 8, 8, 8)
    got = half.logits(windows)
    assert got.dtype == torch.float32
    assert torch.allclose(got, predictor.logits(windows), atol=0.05)


def test_weights_files_are_all_that_is_needed(tmp_path, image):
    options = {"in_channels": 1, "num_classes": 3, "depths": [1, 1, 1, 1], "embed_dims": [32, 32, 32, 32], "num_heads": [1, 1, 1, 1]}
    model = create_model("segformer3d", **options, decoder_head_embedding_dim=16)
    plan = plan_of(patch_size=(16, 18, 16), spacing=(1.0, 1.1, 1.2), options=options)
    save_weights(model, tmp_path / "w.safetensors", metadata={"plan": plan.model_dump(mode="json")})
    found = Predictor(tmp_path / "w.safetensors", device="cpu").predict(image, AFFINE)
    assert np.array_equal(found.label, Predictor((model, plan), device="cpu").predict(image, AFFINE).label)
    both = Predictor([tmp_path / "w.safetensors", tmp_path / "w.safetensors"], device="cpu").predict(image, AFFINE)
    assert np.array_equal(found.label, both.label)

    save_weights(model, tmp_path / "bare.safetensors")
    with refused(r"bare\.safetensors: holds no plan"):
        Predictor(tmp_path / "bare.safetensors")
    save_weights(model, tmp_path / "odd.safetensors", metadata={"plan": {"channels": []}})
    with refused(r"odd\.safetensors: its plan is damaged"):
        Predictor(tmp_path / "odd.safetensors")
    with refused(r"none\.safetensors: no such file"):
        Predictor(tmp_path / "none.safetensors")


def test_regions_are_written_in_their_order(image):
    plan = plan_of(labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    model = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.copy_(torch.tensor([0.0, -1.0]))
    scaled = (image - image.mean()) / image.std()
    found = Predictor((model, plan), device="cpu").predict(image, AFFINE)
    assert np.array_equal(found.label, np.where(scaled > 1, 2, np.where(scaled > 0, 1, 0)))


def test_cleaning_only_on_request(image):
    model, plan = network(), plan_of()
    loose = Predictor((model, plan), device="cpu").predict(image, AFFINE).label
    clean = Predictor((model, plan), device="cpu", largest_component=[4], smallest_component=30.0).predict(image, AFFINE).label
    assert (clean == 4).sum() < (loose == 4).sum()
    assert np.all((clean == loose) | (clean == 0))
    named = Predictor((model, plan), device="cpu", largest_component=["lesion"], smallest_component=30.0).predict(image, AFFINE).label
    assert np.array_equal(named, clean)
    assert np.array_equal(Predictor((model, plan), device="cpu", largest_component=["4"]).largest_component, [4])
    regions = plan_of(labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    assert Predictor((network(outputs=2), regions), device="cpu", largest_component=["whole", 2]).largest_component == [[1, 2], 2]
    for unknown in ("lesoin", 3, 0, "background"):
        with refused("unknown label"):
            Predictor((model, plan), device="cpu", largest_component=[unknown])


@pytest.mark.parametrize(
    ("array", "affine", "what"),
    [
        (np.zeros((4, 4)), AFFINE, "X, Y, Z"),
        (np.zeros((4, 4, 4), complex), AFFINE, "complex128"),
        (np.zeros((4, 4, 4)), None, "needs its affine"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4)), "positive voxel sides"),
        (np.zeros((4, 4, 4)), np.eye(3), "4x4"),
        (np.full((4, 4, 4), np.nan), AFFINE, "64 voxels that are NaN"),
        (np.zeros((2, 4, 4, 4)), AFFINE, r"has 2 channels, expected are 1 \(T1\)"),
        (np.zeros((4, 4, 4)), AFFINE @ (np.eye(4) + 0.3 * np.eye(4, k=1) * [1, 1, 0, 0]), "sheared by"),
    ],
)
def test_arrays_that_cannot_be_used(predictor, array, affine, what):
    with refused(what):
        predictor.predict(array, affine)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"overlap": 1}, "overlap must be"),
        ({"blend": "gausian"}, "did you mean 'gaussian'"),
        ({"precision": "fp8"}, "precision"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_options_that_cannot_be_used(options, what):
    with refused(what):
        Predictor((network(), plan_of()), **options)


def test_a_model_that_does_not_fit_its_plan(image):
    with refused("has 5 outputs, its plan's labels need 3"):
        Predictor((network(outputs=5), plan_of()), device="cpu").predict(image, AFFINE)


# --- batches ---


def test_a_folder_with_one_bad_file(tmp_path, image, predictor, capsys):
    save(tmp_path / "in" / "a.nii.gz", image)
    good = save(tmp_path / "in" / "c.nii.gz", image[::-1].copy()).read_bytes()
    (tmp_path / "in" / "b.nii.gz").write_bytes(good[: len(good) // 2])
    (tmp_path / "in" / "._a.nii.gz").write_bytes(b"macOS")
    assert predict_files(predictor, tmp_path / "in", tmp_path / "out") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.nii.gz", "c.nii.gz", "labels.json", "predictions.json"]
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj), predictor.predict(image, AFFINE).label)
    records = {r["case"]: r for r in json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]}
    assert [records[name]["status"] for name in "abc"] == ["done", "failed", "done"]
    assert "cut short" in records["b"]["error"]
    assert "b: failed: " in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["labels"] == {"background": 0, "organ": 1, "lesion": 4}


def test_an_unexpected_error_in_one_case_stops_no_other(tmp_path, image, predictor, monkeypatch):
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.nii.gz", image)
    known = predictor.predict

    def predict(path, **options):
        if path.name == "a.nii.gz":
            raise IndexError("out of range")
        return known(path, **options)

    monkeypatch.setattr(predictor, "predict", predict)
    assert predict_files(predictor, tmp_path / "in", tmp_path / "out", progress=False) == 1
    cases = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert [case["status"] for case in cases] == ["failed", "done"]
    assert cases[0]["error"] == "out of range"


def test_resume_leaves_finished_cases_alone(tmp_path, image, predictor):
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.nii", image)
    assert predict_files(predictor, tmp_path / "in" / "a.nii", tmp_path / "out", progress=False) == 0
    written = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    with refused(r"a\.nii\.gz: exists; resume"):
        predict_files(predictor, tmp_path / "in", tmp_path / "out", progress=False)
    assert predict_files(predictor, tmp_path / "in", tmp_path / "out", resume=True, progress=False) == 0
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == written
    statuses = [r["status"] for r in json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]]
    assert statuses == ["skipped", "done"]
    assert predict_files(predictor, tmp_path / "in", tmp_path / "out", overwrite=True, progress=False) == 0
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns > written


def test_channels_as_files_or_in_one_file(tmp_path, image):
    plan = plan_of(["FLAIR", "T1"])
    two = Predictor((network(channels=2), plan), device="cpu")
    save(tmp_path / "one" / "a.nii.gz", np.stack([image, -image], -1))
    save(tmp_path / "two" / "a_0000.nii.gz", image)
    save(tmp_path / "two" / "a_0001.nii.gz", -image)
    for layout in ("one", "two"):
        assert predict_files(two, tmp_path / layout, tmp_path / f"{layout}_out", save_probabilities=True, progress=False) == 0
    labels = [np.asarray(nib.load(tmp_path / f"{layout}_out" / "a.nii.gz").dataobj) for layout in ("one", "two")]
    assert np.array_equal(*labels)
    assert np.load(tmp_path / "two_out" / "a_probabilities.npy", mmap_mode="r").shape == (3, *image.shape)


def test_what_is_wrong_shows_before_the_first_case(tmp_path, image):
    plan = plan_of(["FLAIR", "T1"])
    two = Predictor((network(channels=2), plan), device="cpu")
    save(tmp_path / "part" / "a_0000.nii.gz", image)
    save(tmp_path / "part" / "a_0001.nii.gz", image)
    save(tmp_path / "part" / "b_0001.nii.gz", image)
    with refused("b has 0001; the channels expected are 0000 FLAIR, 0001 T1"):
        find_cases(tmp_path / "part", plan)
    save(tmp_path / "single" / "x.nii.gz", image)
    with refused(r"expected 2 channels \(FLAIR, T1\) an image, another number is in .*x\.nii\.gz \(1\)"):
        predict_files(two, tmp_path / "single", tmp_path / "out")
    save(tmp_path / "mixed" / "x.nii.gz", image)
    save(tmp_path / "mixed" / "y.nii", image)
    with refused("mixes .nii and .nii.gz"):
        find_cases(tmp_path / "mixed", plan)
    (tmp_path / "empty").mkdir()
    with refused("holds no images"):
        find_cases(tmp_path / "empty", plan)
    with refused("no such file or folder"):
        find_cases(tmp_path / "nowhere", plan)
    with refused("several inputs would be written as x"):
        find_cases([tmp_path / "single" / "x.nii.gz", tmp_path / "mixed" / "x.nii.gz"], plan)
    assert not (tmp_path / "out").exists()


def test_numbers_of_cases_are_not_channels(tmp_path, image):
    for name in ("scan_0000", "scan_0001", "scan_0002"):
        save(tmp_path / f"{name}.nii.gz", image)
    assert [case.name for case in find_cases(tmp_path, plan_of())] == ["scan_0000", "scan_0001", "scan_0002"]
    assert [case.name for case in find_cases(tmp_path / "scan_0000.nii.gz", plan_of())] == ["scan"]


def test_an_input_is_never_overwritten(tmp_path, image, predictor):
    path = save(tmp_path / "a.nii.gz", image)
    before = path.read_bytes()
    with refused("is an input"):
        predict_files(predictor, path, tmp_path, overwrite=True)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path, image, predictor):
    path = save(tmp_path / "in" / "a.nii.gz", image)
    (tmp_path / "file").write_text("")
    with refused("cannot be written"):
        predict_files(predictor, path, tmp_path / "file" / "out")
