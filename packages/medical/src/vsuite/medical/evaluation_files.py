"""The result files of an evaluation, its table on the terminal, and its report."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.evaluation import EvaluationResult, Row, write_json
from vsuite.core.evaluation.metrics import mean
from vsuite.core.files import write_text
from vsuite.medical.evaluation import CaseResult, Evaluation
from vsuite.medical.metrics import Scores

_OVERLAP = {"Dice": "dice", "IoU": "iou"}  # nnU-Net's names -> ours
_VOXELS = {"FP": "fp", "TP": "tp", "FN": "fn", "TN": "tn", "n_pred": "n_pred", "n_ref": "n_ref"}

MONAI_TABLES = ("dice", "hd95", "nsd")
TABLES = tuple(f"{metric}_{kind}.csv" for metric in MONAI_TABLES for kind in ("raw", "summary"))
FILES = ("summary.json", "metrics.csv", "metrics.json", "report.html", *TABLES)
MOST_ERRORS = 5  # lines on the terminal about cases that could not be compared


def earlier_cases(folder: Path) -> list[str] | None:
    """The cases of the evaluation that lies in a folder; None where there is none."""
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return [str(sample["name"]) for sample in content["samples"]] if "nsd_tolerance_mm" in content else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Refuses a folder where a result would replace a file that is not of an earlier evaluation."""
    taken = [name for name in FILES if (folder / name).exists()]
    if taken and not overwrite and earlier_cases(folder) is None:
        raise InputError(f"{folder / taken[0]}: exists and is not of an earlier evaluation; choose another folder, or --overwrite")


def _remove_outdated(evaluation: Evaluation, folder: Path, *, with_report: bool) -> None:
    """Removes what an earlier evaluation left and this one does not replace, since it would pass for a result of this one."""
    earlier = earlier_cases(folder)
    if earlier is None:
        return
    drawn = {case.name for case in evaluation.compared if not case.no_picture} if with_report else set()
    for path in (folder / "pictures").glob("*.png"):
        if path.stem in set(earlier) - drawn:
            path.unlink()
    if not with_report:
        (folder / "report.html").unlink(missing_ok=True)


def write_evaluation(evaluation: Evaluation, folder: Path, *, with_report: bool) -> None:
    """Writes `summary.json`, `metrics.csv`, `metrics.json`, MONAI's tables and, where asked, `report.html`."""
    _remove_outdated(evaluation, folder, with_report=with_report)
    facts = {
        "convention": evaluation.convention.name,
        "hd95_unit": evaluation.convention.distance_unit,
        "nsd_tolerance_mm": evaluation.nsd_tolerance_mm,
        "mean_dice": None if math.isnan(evaluation.mean_dice) else evaluation.mean_dice,
        "missed": {name: evaluation.count("missed", name) for name in evaluation.labels},
        "false_alarms": {name: evaluation.count("false alarm", name) for name in evaluation.labels},
        "errors": {case.name: case.error for case in evaluation.failed},
        "predictions_without_reference": evaluation.unused,
    }
    write_json(_as_result(evaluation), folder / "metrics.json", facts)  # the first, since it tells an evaluation from other files
    write_text(folder / "summary.json", json.dumps(nnunet_summary(evaluation), indent=4) + "\n")
    write_text(folder / "metrics.csv", tidy_csv(evaluation))
    for metric in MONAI_TABLES:
        raw, summary = monai_csv(evaluation, metric)
        write_text(folder / f"{metric}_raw.csv", raw)
        write_text(folder / f"{metric}_summary.csv", summary)
    if with_report:
        write_text(folder / "report.html", report(evaluation, folder / "pictures"))


def columns(evaluation: Evaluation) -> dict[str, str]:
    """Column of the CSV -> attribute of `Scores`."""
    return {
        "dice": "dice",
        "iou": "iou",
        f"hd95_{evaluation.convention.distance_unit}": "hd95",
        "nsd": "nsd",
        "assd_mm": "assd",
        "volume_pred_ml": "volume_pred_ml",
        "volume_ref_ml": "volume_ref_ml",
        "status": "status",
    }


def tidy_csv(evaluation: Evaluation) -> str:
    """One line a case and structure. Empty cells are undefined; a case that failed has one line with its error as status."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    chosen = columns(evaluation)
    writer.writerow(["case", "class_id", "class_name", *chosen])
    for case in evaluation.cases:
        for name, scores in case.scores.items():
            values = [getattr(scores, attribute) for attribute in chosen.values()]
            cells = ["" if isinstance(v, float) and math.isnan(v) else v for v in values]
            writer.writerow([case.name, _key(evaluation.labels[name]), name, *cells])
        if case.error:
            writer.writerow([case.name, "", "", *[""] * (len(chosen) - 1), f"error: {case.error}"])
    return text.getvalue()


def monai_csv(evaluation: Evaluation, metric: str) -> tuple[str, str]:
    """What MONAI's `MetricsSaver` writes as `<metric>_raw.csv` (a line a case) and `<metric>_summary.csv` (a line a structure).

    The last column and line, "mean", are of each case's mean over structures. Undefined values are nan and left out.

    Args:
        metric: an attribute of `Scores`.
    """
    values = np.array([evaluation.values(metric, name) for name in evaluation.labels])  # structures, cases
    table = np.vstack([values, [mean(case) for case in values.T]])
    names, raw, summary = [*evaluation.labels, "mean"], io.StringIO(), io.StringIO()
    writer = csv.writer(raw, lineterminator="\n")
    writer.writerow(["filename", *names])
    for case, row in zip(evaluation.compared, table.T, strict=True):
        writer.writerow([case.prediction or case.reference, *map("{:.4f}".format, row)])
    writer = csv.writer(summary, lineterminator="\n")
    writer.writerow(["class", "mean", "median", "max", "min", "90percentile", "std", "notnans"])
    for name, row in zip(names, table, strict=True):
        known = row[~np.isnan(row)]
        shown = [f(known) if known.size else math.nan for f in (np.mean, np.median, np.max, np.min, _percentile_90, np.std)]
        writer.writerow([name, *map("{:.4f}".format, [*shown, known.size])])
    return raw.getvalue(), summary.getvalue()


def _percentile_90(values: np.ndarray) -> float:
    return float(np.percentile(values, 90))


def nnunet_summary(evaluation: Evaluation) -> dict[str, Any]:
    """The content of nnU-Net's `summary.json`: keys are ids, "(1, 2)" for a region; undefined values are NaN, as there.

    `foreground_mean` leaves structures without any value out, where nnU-Net's becomes NaN.
    """

    def metrics(scores: Scores) -> dict[str, float]:
        overlap = {theirs: getattr(scores, ours) for theirs, ours in _OVERLAP.items()}
        return overlap | {theirs: getattr(scores.counts, ours) for theirs, ours in _VOXELS.items()}

    def case_entry(case: CaseResult) -> dict[str, Any]:
        by_id = {_key(evaluation.labels[name]): metrics(scores) for name, scores in case.scores.items()}
        return {"metrics": by_id, "prediction_file": str(case.prediction or ""), "reference_file": str(case.reference)}

    per_case = [case_entry(case) for case in evaluation.compared]
    keys = [_key(ids) for ids in evaluation.labels.values()]
    names = [*_OVERLAP, *_VOXELS]
    means = {key: {name: mean([entry["metrics"][key][name] for entry in per_case]) for name in names} for key in keys}
    foreground = {name: mean([means[key][name] for key in keys]) for name in names}
    return {"foreground_mean": foreground, "mean": means, "metric_per_case": per_case}


def _key(ids: int | Sequence[int]) -> str:
    return str(ids) if isinstance(ids, int) else str(tuple(ids))


def _as_result(evaluation: Evaluation) -> EvaluationResult:
    """The form that the core's writers take: columns such as "dice/liver"."""
    numbers = {column: attribute for column, attribute in columns(evaluation).items() if attribute != "status"}
    rows = [
        Row(i, case.name, {f"{c}/{name}": getattr(s, a) for name, s in case.scores.items() for c, a in numbers.items()})
        for i, case in enumerate(evaluation.compared)
    ]
    every = {f"{c}/{name}": evaluation.values(a, name) for name in evaluation.labels for c, a in numbers.items()}
    counts = {column: sum(not math.isnan(v) for v in values) for column, values in every.items()}
    return EvaluationResult(rows, {column: mean(values) for column, values in every.items()}, counts)


# --- for people ---


def summary_table(evaluation: Evaluation) -> tuple[list[str], list[list[Any]]]:
    """Header and one row a structure: means (medians) over the cases that entered, and what was missed or made up."""
    unit = evaluation.convention.distance_unit
    header = ["structure", "Dice mean", "median", "cases", f"HD95 {unit} mean", "median", "cases"]
    header += [f"NSD at {evaluation.nsd_tolerance_mm:g} mm", "ASSD mm", "missed", "false alarms"]
    rows: list[list[Any]] = []
    for name in evaluation.labels:
        dice, hd95 = _spread(evaluation.values("dice", name)), _spread(evaluation.values("hd95", name))
        others = [_or_none(mean(evaluation.values(metric, name))) for metric in ("nsd", "assd")]
        rows.append([name, *dice, *hd95, *others, evaluation.count("missed", name), evaluation.count("false alarm", name)])
    if len(rows) > 1:
        means = [_or_none(mean([math.nan if row[i] is None else row[i] for row in rows])) for i in (1, 4, 7, 8)]
        rows.append(["mean", means[0], None, None, means[1], None, None, *means[2:], sum(r[9] for r in rows), sum(r[10] for r in rows)])
    return header, rows


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the table, the convention, and every case that could not be compared."""
    from vsuite.core.terminal import console, new_table

    header, rows = summary_table(evaluation)
    table = new_table(*header, right=header[1:])
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    terminal = console()
    terminal.print(table)
    terminal.print(explanation(evaluation))
    for case in evaluation.failed[:MOST_ERRORS]:
        terminal.print(f"not compared: {case.error}")
    if len(evaluation.failed) > MOST_ERRORS:
        terminal.print(f"not compared: {len(evaluation.failed) - MOST_ERRORS} more; metrics.csv names all")
    for case in evaluation.compared:
        if case.no_picture:
            terminal.print(f"no picture of {case.name}: {case.no_picture}")
    if evaluation.unused:
        terminal.print(f"predictions without a reference, left out: {', '.join(evaluation.unused)}")


def explanation(evaluation: Evaluation) -> str:
    """One line that says how the figures were made."""
    count = len(evaluation.compared)
    failed = f", {len(evaluation.failed)} could not be compared" if evaluation.failed else ""
    return (
        f"{count} case{'' if count == 1 else 's'}{failed}. Convention {evaluation.convention.name}: {evaluation.convention.describe()}. "
        f"NSD at {evaluation.nsd_tolerance_mm:g} mm. Means leave undefined values out; 'cases' says how many entered."
    )


def report(evaluation: Evaluation, pictures: Path) -> str:
    """The HTML report: the table, each case's Dice, and the pictures, worst first."""
    from vsuite.core.training.report import MOST_PICTURES, page, picture, table

    ranked = sorted(evaluation.compared, key=lambda case: (math.isnan(case.mean_dice), case.mean_dice))
    header, rows = summary_table(evaluation)
    by_case = [[case.name, _or_none(case.mean_dice), *(_cell(case.scores[name]) for name in evaluation.labels)] for case in ranked]
    drawn = [case for case in ranked if (pictures / f"{case.name}.png").is_file()]
    shown = [picture(pictures / f"{case.name}.png", case.name) for case in drawn[:MOST_PICTURES]]
    heading = "Cases, worst first" if len(drawn) <= MOST_PICTURES else f"The {MOST_PICTURES} worst of {len(drawn)} cases"
    sections = [
        ("Structures", table(header, rows)),
        ("Not compared", table(["case", "why"], [[case.name, case.error] for case in evaluation.failed]) if evaluation.failed else ""),
        (heading, "".join(shown)),
        ("Dice by case, worst first", table(["case", "mean", *evaluation.labels], by_case)),
    ]
    return page("Evaluation", sections, subtitle=explanation(evaluation))


def _cell(scores: Scores) -> str:
    return f"{scores.dice:.3f}" if scores.status == "ok" else scores.status


def _spread(values: Sequence[float]) -> list[Any]:
    """Mean, median and number of the values that are defined."""
    defined = [v for v in values if not math.isnan(v)]
    return [mean(defined), statistics.median(defined), len(defined)] if defined else [None, None, 0]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
