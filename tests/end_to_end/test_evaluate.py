"""`vsuite-medical evaluate`: its files against figures computed here."""

from __future__ import annotations

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest

LABELS = {"lobes": 1, "ventricle": 2, "stem": 3, "lesion": 4}


@pytest.fixture(scope="module")
def evaluated(predicted, data, invoke, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "result"
    finished = invoke("evaluate", predicted, "--data", data / "labelsTs", "--out", folder)
    assert finished.code == 0, finished.err
    assert "lobes" in finished.out
    return folder


@pytest.fixture(scope="module")
def counts(predicted, data):
    """Case -> structure -> true positives, false positives, false negatives."""
    found = {}
    for path in sorted(predicted.glob("*.nii.gz")):
        label, reference = (np.asanyarray(nib.load(p).dataobj) for p in (path, data / "labelsTs" / path.name))
        name = path.name.removesuffix(".nii.gz")
        found[name] = {
            s: [int(((label == i) & (reference == i)).sum()), int(((label == i) & (reference != i)).sum()),
                int(((label != i) & (reference == i)).sum())] for s, i in LABELS.items()
        }  # fmt: skip
    return found


def dice(tp: int, fp: int, fn: int) -> float:
    return 2 * tp / (2 * tp + fp + fn)


def test_dice_is_the_one_computed_by_hand(evaluated, counts):
    result = json.loads((evaluated / "metrics.json").read_text())
    assert result["num_samples"] == len(counts) == 2
    for sample in result["samples"]:
        for name in LABELS:
            assert math.isclose(sample[f"dice/{name}"], dice(*counts[sample["name"]][name]), abs_tol=1e-9)
    means = {name: np.mean([dice(*case[name]) for case in counts.values()]) for name in LABELS}
    for name in LABELS:
        assert math.isclose(result["summary"][f"dice/{name}"], means[name], abs_tol=1e-9)
    assert math.isclose(result["mean_dice"], np.mean(list(means.values())), abs_tol=1e-9)
    assert result["convention"] == "nnunet"


def test_summary_json_has_the_schema_of_nnunet(evaluated, counts):
    summary = json.loads((evaluated / "summary.json").read_text())
    assert sorted(summary) == ["foreground_mean", "mean", "metric_per_case"]
    keys = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}
    assert set(summary["foreground_mean"]) == keys
    assert list(summary["mean"]) == ["1", "2", "3", "4"]
    for entry in summary["metric_per_case"]:
        assert sorted(entry) == ["metrics", "prediction_file", "reference_file"]
        name = entry["prediction_file"].rsplit("/", 1)[-1].removesuffix(".nii.gz")
        for structure, identifier in LABELS.items():
            metrics, (tp, fp, fn) = entry["metrics"][str(identifier)], counts[name][structure]
            assert set(metrics) == keys
            assert (metrics["TP"], metrics["FP"], metrics["FN"]) == (tp, fp, fn)
            assert (metrics["n_pred"], metrics["n_ref"]) == (tp + fp, tp + fn)
            assert sum(metrics[key] for key in ("TP", "FP", "FN", "TN")) == 24 * 28 * 16
    wanted = np.mean([e["metrics"][k]["Dice"] for e in summary["metric_per_case"] for k in "1234"])
    assert math.isclose(summary["foreground_mean"]["Dice"], wanted, abs_tol=1e-9)


def test_the_csv_has_one_line_a_case_and_structure(evaluated, counts):
    with (evaluated / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class_name"]) for row in rows] == [(case, name) for case in counts for name in LABELS]
    for row in rows:
        assert row["class_id"] == str(LABELS[row["class_name"]])
        assert math.isclose(float(row["dice"]), dice(*counts[row["case"]][row["class_name"]]), abs_tol=1e-9)
        assert row["hd95_mm"] == "" or float(row["hd95_mm"]) >= 0


def test_a_picture_a_case_and_a_report(evaluated, counts):
    assert sorted(p.stem for p in (evaluated / "pictures").glob("*.png")) == sorted(counts)
    report = (evaluated / "report.html").read_text()
    assert all(case in report for case in counts)


def test_references_compared_with_themselves_are_perfect(data, invoke, tmp_path):
    finished = invoke("evaluate", data / "labelsTs", "--data", data / "labelsTs", "--out", tmp_path / "out", "--no-pictures")
    assert finished.code == 0, finished.err
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["mean_dice"] == 1
    assert all(value == 0 for name, value in result["summary"].items() if name.startswith("hd95"))


def test_an_earlier_evaluation_is_replaced_and_other_files_are_not(data, invoke, tmp_path):
    command = ("evaluate", data / "labelsTs", "--data", data / "labelsTs", "--out", tmp_path / "out", "--no-pictures")
    assert "in place of" not in invoke(*command).out
    again = invoke(*command)
    assert again.code == 0
    assert "in place of an earlier evaluation" in again.out
    (tmp_path / "out" / "metrics.json").unlink()
    invoke(*command).refused("exists and is not of an earlier evaluation", "--overwrite")
    assert invoke(*command, "--overwrite").code == 0


def test_where_nothing_can_be_compared_nothing_is_written(data, invoke, tmp_path):
    (tmp_path / "maps").mkdir()
    for path in (data / "labelsTs").iterdir():
        (tmp_path / "maps" / path.name).write_bytes(b"no NIfTI")
    finished = invoke("evaluate", tmp_path / "maps", "--data", data / "labelsTs", "--out", tmp_path / "out")
    finished.refused("none of its 2 cases could be compared; first: ", "phantom_9000.nii.gz")
    assert not (tmp_path / "out").exists()


def test_a_missing_prediction_is_told(predicted, data, invoke, tmp_path):
    first = sorted(predicted.glob("*.nii.gz"))[0]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / first.name).write_bytes(first.read_bytes())
    command = ("evaluate", tmp_path / "maps", "--data", data / "labelsTs", "--out", tmp_path / "out", "--no-pictures")
    finished = invoke(*command)
    assert finished.code == 2
    assert "1 of 2 cases could not be compared" in finished.err
    assert invoke(*command, "--missing-as-empty").code == 0
