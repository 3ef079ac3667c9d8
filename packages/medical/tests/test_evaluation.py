"""Evaluating folders: pairing, errors of single cases, label names, and the result files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.core.weights import save_weights
from vsuite.medical.evaluation import Evaluation, evaluate_folder, read_labels
from vsuite.medical.evaluation_files import print_evaluation, summary_table

LABELS = {"background": 0, "organ": 1, "lesion": 2}
SPACING = (1.0, 1.0, 2.0)


def write(path: Path, array: np.ndarray, origin: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0])
    affine[0, 3] = origin
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def organ(shift: int = 0, lesion: bool = True) -> np.ndarray:
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    if lesion:
        label[3:6, 3:6, 3:6] = 2
    return np.roll(label, shift, axis=0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four references; predictions: perfect, shifted, lesion missed, and lesion made up."""
    predictions, references = tmp_path / "predictions", tmp_path / "labelsTr"
    for name, (prediction, reference) in {
        "a": (organ(), organ()),
        "b": (organ(1), organ()),
        "c": (organ(lesion=False), organ()),
        "d": (organ(), organ(lesion=False)),
    }.items():
        write(predictions / f"{name}.nii.gz", prediction)
        write(references / f"{name}.nii.gz", reference)
    return predictions, references


def evaluate(folders: tuple[Path, Path], **options: object) -> Evaluation:
    return evaluate_folder(*folders, **({"labels": LABELS, "workers": 2} | options))  # type: ignore[arg-type]


def test_figures(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(folders)
    assert not evaluation.failed
    assert [case.name for case in evaluation.cases] == ["a", "b", "c", "d"]
    scores = {case.name: case.scores for case in evaluation.cases}
    assert scores["a"]["organ"].dice == 1
    assert scores["b"]["lesion"].dice == pytest.approx(2 / 3)
    assert scores["b"]["lesion"].hd95 == 1
    assert scores["b"]["lesion"].volume_ref_ml == pytest.approx(27 * 2 / 1000)
    assert [scores[name]["lesion"].status for name in "abcd"] == ["ok", "ok", "missed", "false alarm"]
    assert (evaluation.count("missed", "lesion"), evaluation.count("false alarm", "lesion")) == (1, 1)
    assert np.nanmean(evaluation.values("dice", "lesion")) == pytest.approx((1 + 2 / 3) / 4)
    header, rows = summary_table(evaluation)
    assert header[4] == "HD95 mm mean"
    assert rows[1][:7] == ["lesion", pytest.approx(5 / 12), pytest.approx(1 / 3), 4, 0.5, 0.5, 2]
    assert rows[1][-2:] == [1, 1]
    assert rows[2][0] == "mean"
    assert evaluation.mean_dice == pytest.approx(rows[2][1])


@pytest.mark.parametrize(
    ("convention", "lesion"),
    [
        ("monai", (1 + 2 / 3 + 0) / 3),
        ("brats", (1 + 2 / 3) / 4),
        ("paper:transunet", (2 + 2 / 3) / 4),
        ("paper:segformer3d", (1 + 2 / 3) / 4),
    ],
)
def test_conventions_differ_where_masks_are_empty(folders: tuple[Path, Path], convention: str, lesion: float) -> None:
    _, rows = summary_table(evaluate(folders, convention=convention))
    assert rows[1][1] == pytest.approx(lesion)


def test_one_bad_case_stops_no_other(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = folders
    write(predictions / "a.nii.gz", organ(), origin=3.0)
    stray = organ()
    stray[0, 0, 0] = 7
    write(predictions / "b.nii.gz", stray)
    (predictions / "c.nii.gz").write_bytes(b"not a volume")
    write(references / "e.nii.gz", organ())
    write(predictions / "f.nii.gz", organ())
    out = predictions.parent / "out"
    evaluation = evaluate(folders, out=out, pictures=False)
    errors = {case.name: case.error for case in evaluation.failed}
    assert errors.keys() == {"a", "b", "c", "e"}
    assert "origin differs by 3 mm" in errors["a"]
    assert str(predictions / "a.nii.gz") in errors["a"]
    assert str(references / "a.nii.gz") in errors["a"]
    assert "label ids 7 are not in the label map, which has [0, 1, 2]" in errors["b"]
    assert str(predictions / "c.nii.gz") in errors["c"]
    assert errors["e"] == f"e: no prediction for the reference {references / 'e.nii.gz'}"
    assert evaluation.unused == ["f"]
    assert [case.name for case in evaluation.compared] == ["d"]
    assert json.loads((out / "metrics.json").read_text())["errors"] == errors
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert [r["status"] for r in rows if r["case"] == "b"] == [f"error: {errors['b']}"]
    print_evaluation(evaluation)
    printed = capsys.readouterr().out
    assert "1 case, 4 could not be compared" in printed
    assert all(error in printed for error in errors.values())
    assert "predictions without a reference, left out: f" in printed


def test_missing_predictions_as_empty(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.nii.gz").unlink()
    assert [case.name for case in evaluate(folders).failed] == ["a"]
    evaluation = evaluate(folders, missing_as_empty=True)
    assert not evaluation.failed
    assert evaluation.cases[0].scores["organ"].status == "missed"
    assert evaluation.cases[0].scores["organ"].dice == 0


def test_summary_json_is_nnunets(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(folders, labels={"organ": 1, "whole": [1, 2]}, out=tmp_path / "out", pictures=False)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    names = {"Dice", "IoU", "FP", "FN", "TP", "TN", "n_pred", "n_ref"}
    assert summary.keys() == {"foreground_mean", "mean", "metric_per_case"}
    assert summary["mean"].keys() == {"1", "(1, 2)"}
    assert summary["foreground_mean"].keys() == summary["mean"]["1"].keys() == names
    first = summary["metric_per_case"][0]
    assert first.keys() == {"metrics", "prediction_file", "reference_file"}
    assert first["prediction_file"] == str(folders[0] / "a.nii.gz")
    assert first["metrics"]["(1, 2)"] == {"Dice": 1, "IoU": 1, "FP": 0, "FN": 0, "TP": 216, "TN": 12**3 - 216, "n_pred": 216, "n_ref": 216}
    b = [entry["metrics"]["(1, 2)"] for entry in summary["metric_per_case"]][1]
    assert (b["FP"], b["FN"], b["TP"]) == (36, 36, 180)
    assert summary["mean"]["(1, 2)"]["FP"] == 9
    assert summary["foreground_mean"]["FP"] == (summary["mean"]["1"]["FP"] + 9) / 2


def test_the_summary_leaves_undefined_values_out(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.nii", organ(lesion=False))
    write(tmp_path / "r" / "a.nii", organ(lesion=False))
    evaluate((tmp_path / "p", tmp_path / "r"), out=tmp_path / "out", pictures=False)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert math.isnan(summary["metric_per_case"][0]["metrics"]["2"]["Dice"])
    assert math.isnan(summary["mean"]["2"]["Dice"])
    assert summary["foreground_mean"]["Dice"] == 1
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert figures["summary"]["dice/lesion"] is None
    assert figures["counts"]["dice/lesion"] == 0


def test_the_tidy_csv(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(folders, out=tmp_path / "out", pictures=False)
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert list(rows[0]) == [
        *("case", "class_id", "class_name", "dice", "iou", "hd95_mm", "nsd", "assd_mm", "volume_pred_ml", "volume_ref_ml", "status")
    ]
    assert len(rows) == 8
    assert [(r["case"], r["class_id"], r["class_name"]) for r in rows[:2]] == [("a", "1", "organ"), ("a", "2", "lesion")]
    missed = next(r for r in rows if r["case"] == "c" and r["class_id"] == "2")
    assert (missed["dice"], missed["hd95_mm"], missed["status"]) == ("0", "", "missed")
    evaluate(folders, out=tmp_path / "voxels", pictures=False, convention="paper:transunet")
    assert "hd95_voxels" in (tmp_path / "voxels" / "metrics.csv").read_text().splitlines()[0]


def test_pictures_and_report_worst_first(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "imagesTr" / "a_0000.nii.gz", np.random.default_rng(0).random((12, 12, 12)).astype(np.float32))
    evaluate(folders, out=tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "pictures").iterdir()) == ["a.png", "b.png", "c.png", "d.png"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    positions = [text.index(f'alt="{name}"') for name in "cdba"]  # mean Dice: c and d below 0.5, b 0.74, a 1
    assert positions[2] == max(positions[:3])
    assert positions[3] == max(positions)
    assert "Convention nnunet" in text
    assert "NSD at 1 mm" in text


def test_two_files_of_different_names(tmp_path: Path) -> None:
    prediction, reference = write(tmp_path / "p.nii.gz", organ(1)), write(tmp_path / "r.nii.gz", organ())
    evaluation = evaluate((prediction, reference))
    assert evaluation.cases[0].scores["organ"].dice < 1
    assert evaluation.cases[0].prediction == prediction


def test_ignored_voxels(tmp_path: Path) -> None:
    reference = organ(lesion=False)
    reference[:, :, 5:] = 3
    write(tmp_path / "p" / "a.nii.gz", organ(lesion=False))
    write(tmp_path / "r" / "a.nii.gz", reference)
    scores = evaluate((tmp_path / "p", tmp_path / "r"), labels=LABELS | {"ignore": 3}).cases[0].scores
    assert scores.keys() == {"organ", "lesion"}
    assert scores["organ"].dice == 1
    assert scores["organ"].counts.tn == 12 * 12 * 5 - 6 * 6 * 3


# --- names of labels ---


@pytest.mark.parametrize(
    "content",
    [
        {"labels": LABELS},
        {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 1, "file_ending": ".nii.gz"},
        {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ", "2": "lesion"}},
        LABELS,
    ],
)
def test_label_files(content: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps(content))
    assert read_labels(tmp_path / "names.json") == {"organ": 1, "lesion": 2}


def test_labels_from_weights(tmp_path: Path) -> None:
    import torch

    plan = {"labels": LABELS}
    save_weights(torch.nn.Linear(1, 1), tmp_path / "best.safetensors", metadata={"plan": plan})
    assert read_labels(tmp_path / "best.safetensors") == {"organ": 1, "lesion": 2}


def test_labels_are_found_beside_the_files(folders: tuple[Path, Path]) -> None:
    assert evaluate(folders, labels=None).labels == {"label 1": 1, "label 2": 2}
    (folders[1].parent / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    assert evaluate(folders, labels=None).labels == {"organ": 1, "lesion": 2}
    (folders[0] / "labels.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2]}}))
    assert evaluate(folders, labels=None).labels == {"whole": [1, 2]}


def test_unusable_label_names(tmp_path: Path) -> None:
    for content, message in (
        ("{", "cannot be read"),
        ("[1]", "names no labels"),
        ('{"background": 0}', "no label beside"),
        ('{"a": "x"}', "'x'"),
    ):
        (tmp_path / "l.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / "l.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "none.json")


# --- what ends it before the first case ---


def test_wrong_input(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label maps"):
        evaluate((tmp_path / "empty", folders[1]))
    with pytest.raises(InputError, match="no such file or folder"):
        evaluate((tmp_path / "nowhere", folders[1]))
    with pytest.raises(InputError, match="did you mean 'nnunet'"):
        evaluate(folders, convention="nnnet")
    with pytest.raises(InputError, match="tolerance"):
        evaluate(folders, nsd_tolerance_mm=-1.0)
    with pytest.raises(InputError, match="no such folder of images"):
        evaluate(folders, images=tmp_path / "nowhere")
    write(tmp_path / "others" / "z.nii.gz", organ())
    with pytest.raises(InputError, match=r"none of its 1 cases \(z\) is among the 4 references"):
        evaluate((tmp_path / "others", folders[1]))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(folders, out=tmp_path / "file" / "out")


def test_a_picture_that_cannot_be_drawn_costs_no_score(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "imagesTr"
    for name in "abcd":
        write(images / f"{name}.nii.gz", np.arange(12**3, dtype=np.float32).reshape(12, 12, 12))
    (images / "b.nii.gz").write_bytes(b"damaged")
    evaluation = evaluate(folders, out=tmp_path / "out", images=images)
    assert not evaluation.failed
    cases = {case.name: case for case in evaluation.cases}
    assert cases["b"].scores["lesion"].dice == pytest.approx(2 / 3)
    assert "b.nii.gz" in cases["b"].no_picture
    assert [cases[name].no_picture for name in "acd"] == ["", "", ""]
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == ["a.png", "c.png", "d.png"]
    print_evaluation(evaluation)
    assert "no picture of b: " in capsys.readouterr().out


def test_monai_s_tables_are_monai_s(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from monai.handlers.utils import write_metrics_reports

    evaluation = evaluate(folders, out=tmp_path / "ours", pictures=False)
    details = {m: np.array([evaluation.values(m, name) for name in evaluation.labels]).T for m in ("dice", "hd95", "nsd")}
    files = [str(case.prediction) for case in evaluation.cases]
    write_metrics_reports(tmp_path / "monai", files, None, details, "*", class_labels=list(evaluation.labels))  # type: ignore[arg-type]

    def cells(path: Path) -> list[list[str]]:
        with path.open() as file:
            rows = list(csv.reader(file))
        return [[f"{float(cell):.4f}" if cell.replace(".", "").isdigit() else cell for cell in row] for row in rows]

    for name in (f"{m}_{kind}.csv" for m in details for kind in ("raw", "summary")):
        assert cells(tmp_path / "ours" / name) == cells(tmp_path / "monai" / name), name


def test_an_id_without_name_or_with_two_is_refused() -> None:
    with pytest.raises(InputError, match="label id 0 is named 'organ'"):
        read_labels({"organ": 0, "lesion": 1})
    with pytest.raises(InputError, match="ids with two names: 1"):
        read_labels({"organ": 1, "lesion": 1})
    assert read_labels({"whole": (1, 2), "core": 2, "ignore": 3}) == {"whole": [1, 2], "core": 2, "ignore": 3}


# --- what is in the way ---


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_evaluation_is_replaced_with_all_that_it_left(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(folders, out=out)
    (out / "notes.txt").write_text("mine")
    (out / "pictures" / "mine.png").write_bytes(b"mine")
    for name in "cd":
        (folders[0] / f"{name}.nii.gz").unlink()
        (folders[1] / f"{name}.nii.gz").unlink()
    evaluate(folders, out=out)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["a.png", "b.png", "mine.png"]
    assert json.loads((out / "metrics.json").read_text())["num_samples"] == 2
    evaluate(folders, out=out, pictures=False)
    assert [path.name for path in (out / "pictures").iterdir()] == ["mine.png"]
    assert not (out / "report.html").exists(), "the report was of the earlier evaluation"
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["summary.json", "metrics.csv", "metrics.json", "dice_raw.csv", "report.html"])
@pytest.mark.parametrize("text", ["{}", '{"samples": []}', "nothing of ours"])
def test_other_files_are_not_replaced(folders: tuple[Path, Path], tmp_path: Path, name: str, text: str) -> None:
    """nnU-Net's own summary.json beside the predictions, say."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    before = content(out)
    with pytest.raises(InputError, match=rf"out/{name}: exists and is not of an earlier evaluation; .*--overwrite"):
        evaluate(folders, out=out, pictures=False)
    assert content(out) == before
    evaluate(folders, out=out, pictures=False, overwrite=True)
    assert json.loads((out / "metrics.json").read_text())["num_samples"] == 4


def test_nothing_is_written_where_nothing_can_be_compared(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(folders, out=tmp_path / "earlier")
    before = content(tmp_path / "earlier")
    for name in "abcd":
        write(folders[0] / f"{name}.nii.gz", organ(), origin=50)
    for out in (tmp_path / "new" / "inner" / "out", tmp_path / "earlier"):
        with pytest.raises(
            InputError, match=r"predictions: none of its 4 cases could be compared; first: .*a\.nii\.gz: not on the grid"
        ) as caught:
            evaluate(folders, out=out)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert content(tmp_path / "earlier") == before
    with pytest.raises(InputError, match=r"^\S*a\.nii\.gz: not on the grid"):
        evaluate_folder(folders[0] / "a.nii.gz", folders[1] / "a.nii.gz", labels=LABELS)


def test_a_label_picture_takes_the_grid_of_what_was_predicted(tmp_path: Path) -> None:
    """References of DICOM pictures are PNG files, which have no place in space; what is predicted lies where the DICOM file does."""
    from PIL import Image

    from vsuite.medical.data.files import write_label
    from vsuite.medical.data.nifti import Volume

    label = organ()[:, :, 5:6]
    for folder in ("predictions", "references"):
        (tmp_path / folder).mkdir()
    affine = np.array([[-0.2, 0, 0, 7], [0, 0, 1, 3], [0, -0.2, 0, 9], [0, 0, 0, 1.0]])
    write_label(tmp_path / "predictions" / "a.nii.gz", label, Volume(label[None], affine))
    Image.fromarray(np.roll(label, 1, 0)[:, :, 0].T).save(tmp_path / "references" / "a.png")
    found = evaluate_folder(tmp_path / "predictions", tmp_path / "references", labels=LABELS, pictures=False)
    assert not found.failed
    assert found.cases[0].scores["organ"].hd == pytest.approx(0.2)
