"""Evaluation of classifiers of medical pictures: AUC per finding with bootstrap intervals, tables, a picture and a report."""

from __future__ import annotations

import math
from pathlib import Path

from vsuite.core.batch import check_failed
from vsuite.core.files import atomic_path, write_text
from vsuite.core.images import evaluation as core
from vsuite.core.images.evaluation import ClassifierEvaluation
from vsuite.core.images.predictor import Predictor
from vsuite.medical.classification.datasets import read_dataset

RESAMPLES = 1000


def evaluate(
    predictor: Predictor, data: str | Path, *, split: str | None = None, out: str | Path | None = None, resamples: int = RESAMPLES
) -> ClassifierEvaluation:
    """The core's `evaluate` with intervals of the AUCs, drawn by patient (`group`) where the data set knows it.

    A finding that no picture or every picture has gets no AUC and does not enter the mean.

    Args:
        out: folder for the core's files, `auc.png` and `report.html`; None writes none.
        resamples: draws of the intervals; 0 computes none.
    """
    found = core.evaluate(predictor, data, split=split, out=out, resamples=resamples, read=read_dataset)
    if out is not None:
        _write_pictures(found, Path(out))
    return found


def evaluate_file(
    predictions: str | Path, data: str | Path, *, split: str | None = None, out: str | Path | None = None, resamples: int = RESAMPLES
) -> ClassifierEvaluation:
    """Compares a `predictions.csv` with labelled pictures; see `evaluate`."""
    found = core.evaluate_file(predictions, data, split=split, out=out, resamples=resamples, read=read_dataset)
    if out is not None:
        _write_pictures(found, Path(out))
    return found


def _write_pictures(found: ClassifierEvaluation, out: Path) -> None:
    auc_picture(found, out / "auc.png")
    write_text(out / "report.html", _report(found, out))


def auc_picture(found: ClassifierEvaluation, path: str | Path) -> None:
    """Writes a PNG of each finding's AUC with its interval; findings without an AUC are named without a mark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = [found.summary[f"auc/{name}"] for name in found.classes]
    figure = Figure(figsize=(7, 1.4 + 0.32 * len(values)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, (name, value) in enumerate(zip(found.classes, values, strict=True)):
        if math.isnan(value):
            axes.text(0.01, row, "not defined", color="0.5", va="center", fontsize=8, transform=axes.get_yaxis_transform())
            continue
        interval = found.intervals.get(f"auc/{name}")
        if interval is not None and not math.isnan(interval.low):
            axes.plot([interval.low, interval.high], [row, row], color="#2a78c2", linewidth=2)
        axes.plot(value, row, "o", color="#123a63", markersize=5)
    mean = found.summary["auc"]
    if not math.isnan(mean):
        axes.axvline(mean, color="0.6", linewidth=1, linestyle="--")
    lows = [interval.low for interval in found.intervals.values() if not math.isnan(interval.low)]
    axes.set_xlim(max(0.0, min([0.5, *[v for v in values if not math.isnan(v)], *lows]) - 0.02), 1.01)
    axes.set_yticks(range(len(values)), found.classes, parse_math=False)
    axes.set_ylim(len(values) - 0.5, -0.5)
    of_mean = "" if math.isnan(mean) else f"; dashed: the mean, {mean:.3f}"
    axes.set_xlabel("AUC" + (", with 95 % intervals" if found.intervals else "") + of_mean)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _report(found: ClassifierEvaluation, out: Path) -> str:
    from vsuite.core.training.report import page, picture, table

    rows: list[list[object]] = []
    for k, name in enumerate(found.classes):
        value, interval = found.summary[f"auc/{name}"], found.intervals.get(f"auc/{name}")
        ends = [None, None] if interval is None or math.isnan(interval.low) else [interval.low, interval.high]
        rows.append([name, int(found.truth[:, k].sum()), None if math.isnan(value) else value, *ends])
    overall = [[name.replace("_", " "), None if math.isnan(value) else value] for name, value in found.summary.items() if "/" not in name]
    sections = [
        ("Overall", table(["metric", "value"], overall)),
        ("Findings", table(["finding", "pictures", "AUC", "low", "high"], rows) + picture(out / "auc.png")),
    ]
    if found.undefined:
        sections.append(("Not defined", f"<p>Findings of no or of every picture, left out of the mean: {_escaped(found.undefined)}</p>"))
    if (out / "contact_sheet.png").exists():
        sections.append(("Pictures", picture(out / "contact_sheet.png")))
    facts = ", ".join(f"{key} {value}" for key, value in found.facts.items())
    return page("Evaluation", sections, subtitle=f"{len(found.samples)} pictures; {facts}")


def _escaped(names: list[str]) -> str:
    import html

    return html.escape(", ".join(names))


def check_complete(found: ClassifierEvaluation) -> None:
    """Raises `InputError` where pictures could not be compared."""
    check_failed([*found.failed.values()], len(found.failed) + len(found.samples), "pictures could not be compared")
