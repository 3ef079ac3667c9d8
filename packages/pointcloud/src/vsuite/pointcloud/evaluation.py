"""How good detections and classifications are: every figure with its definition, as tables, files and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import write_text
from vsuite.core.terminal import console, new_table
from vsuite.pointcloud.data import boxes_io
from vsuite.pointcloud.data.boxes_io import NOTHING, Boxes
from vsuite.pointcloud.data.clouds import PointCloud
from vsuite.pointcloud.data.detection import read_detection
from vsuite.pointcloud.data.frames import Frame, points_in_box_count
from vsuite.pointcloud.data.nuscenes import sweeps_for
from vsuite.pointcloud.data.shapes import read_shapes, shape_splits
from vsuite.pointcloud.inference import Predictor, named
from vsuite.pointcloud.metrics.detection import Found, Truths
from vsuite.pointcloud.metrics.kitti import kitti_ap, kitti_definition
from vsuite.pointcloud.metrics.nuscenes import nuscenes_ap, nuscenes_definition
from vsuite.pointcloud.metrics.shapes import DEFINITIONS, classification_scores, confusion, mean_ious, shape_ious
from vsuite.pointcloud.metrics.waymo import waymo_ap, waymo_definition
from vsuite.pointcloud.settings import Task

Pair = tuple[Truths, Found]


def truths_of(frame: Frame, cloud: PointCloud | None = None) -> Truths:
    """The labels of a frame, with the points on each object counted where the data set does not say.

    Args:
        cloud: the frame's points, where they have been read already.
    """
    if frame.boxes is None or frame.labels is None:
        raise InputError(f"{frame.name}: has no labels to compare with")
    facts = {name: frame.attributes.get(name) for name in ("truncated", "occluded", "alpha")}
    points = frame.attributes.get("num_points")
    if points is None:
        points = points_in_box_count((cloud or frame.read()).points, frame.boxes)
    return Truths(frame.boxes, frame.labels, num_points=points, image_boxes=frame.attributes.get("image_box"), **facts)


def found_of(boxes: Boxes) -> Found:
    """Boxes read from a file as detections."""
    return Found(boxes.boxes, boxes.scores, boxes.names)


def validation_scores(pairs: Sequence[Pair], classes: Sequence[str]) -> dict[str, float]:
    """What a training is judged by: Waymo-style AP and APH at level 2, in percent; a class that does not occur is left out."""
    rows = waymo_ap([truth for truth, _ in pairs], [found for _, found in pairs])
    chosen = {row.name: row for row in rows if row.level == 2 and row.band == "all"}
    scores = {"map": chosen["mean"].ap, "maph": chosen["mean"].aph}
    scores |= {f"ap/{name}": chosen[name].ap for name in classes if name in chosen}
    return {name: 0.0 if math.isnan(value) else value for name, value in scores.items()}


def _plain_rows(measure: Callable[..., Sequence[Any]]) -> Callable[..., list[dict[str, Any]]]:
    return lambda *frames, **options: [dataclasses.asdict(row) for row in measure(*frames, **options)]


def _nuscenes_rows(truths: Sequence[Truths], found: Sequence[Found], **_: Any) -> list[dict[str, Any]]:
    result = nuscenes_ap(truths, found)
    rows = [
        {"name": row.name, "ap": row.mean_ap, **{f"ap {d:g} m": ap for d, ap in row.ap.items()}, **row.errors, "num_truths": row.num_truths}
        for row in result.rows
    ]
    empty = dict.fromkeys(rows[0], float("nan")) if rows else {}
    return [*rows, empty | {"name": f"mean (score {result.nds:.2f})", "ap": result.mean_ap, **result.errors}]


METRICS: dict[str, tuple[Callable[..., list[dict[str, Any]]], str]] = {
    "waymo": (_plain_rows(waymo_ap), waymo_definition()),
    "kitti": (_plain_rows(kitti_ap), kitti_definition(camera=False)),
    "nuscenes": (_nuscenes_rows, nuscenes_definition(velocity=False)),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Tables by metric: what it is, and its rows as plain dictionaries; and a line for each frame that could not be used."""

    frames: int
    tables: Mapping[str, tuple[str, list[dict[str, Any]]]]
    failed: tuple[str, ...] = ()


def evaluate_boxes(pairs: Sequence[Pair], metrics: Sequence[str], overlaps: Mapping[str, float] | None = None) -> Evaluation:
    """Compares detections with truth.

    Args:
        pairs: truth and detections of each frame.
        metrics: of "waymo", "kitti" and "nuscenes".
        overlaps: class -> IoU that a match needs, in place of 0.7 for vehicles and 0.5 for others; for "waymo" and "kitti".

    Raises:
        InputError: where no frame has a box, and for damaged boxes.
    """
    if not any(len(truth.boxes) for truth, _ in pairs):
        raise InputError("no frame has a labelled box to compare with")
    truths, found = [truth for truth, _ in pairs], [detections for _, detections in pairs]
    tables = {}
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
        measure, definition = METRICS[name]
        tables[name] = definition, measure(truths, found, overlaps=overlaps)
    return Evaluation(len(pairs), tables)


def evaluate_classes(predicted: Sequence[int], true: Sequence[int], classes: Sequence[str]) -> Evaluation:
    """Overall and mean class accuracy, and the recall of each class, in percent."""
    scores = classification_scores(predicted, true, len(classes))
    counts = confusion(predicted, true, len(classes)).sum(axis=1)
    rows = [
        {"name": name, "recall": 100 * recall, "shapes": int(n)} for name, recall, n in zip(classes, scores["recall"], counts, strict=True)
    ]
    means = [{"figure": name, "percent": 100 * scores[name]} for name in ("oa", "macc")]
    about = "; ".join(f"{name}: {DEFINITIONS[name]}" for name in ("oa", "macc"))
    return Evaluation(
        len(true), {"accuracy": (about, means), "classes": ("recall: correct shapes of the class / shapes of the class", rows)}
    )


def evaluate_parts(predictor: Predictor, shapes: Iterable[PointCloud], categories: Sequence[int]) -> Evaluation:
    """IoU of the parts of shapes with a column "label", all of their points compared: means, and a row a category, in percent."""
    parts, names, ious = predictor.note.parts, predictor.note.classes, []
    for shape, category in zip(shapes, categories, strict=True):
        found = predictor.label_parts(shape, names[category])
        ious.append(shape_ious(found[None], shape.columns["label"][None].astype(np.int64), [category], parts)[0])
    scores = mean_ious(ious, categories)
    means = [{"figure": name, "percent": 100 * scores[name]} for name in ("instance_miou", "class_miou")]
    rows = [{"name": names[kind], "iou": 100 * iou, "shapes": categories.count(kind)} for kind, iou in scores["categories"].items()]
    about = "; ".join(f"{name}: {DEFINITIONS[name]}" for name in ("instance_miou", "class_miou"))
    return Evaluation(len(ious), {"parts": (about, means), "categories": ("iou: mean IoU of the category's shapes", rows)})


def print_evaluation(evaluation: Evaluation, shown: Mapping[str, Any] | None = None) -> None:
    """Prints each table, and its definition below. `shown` limits rows to those with these values, such as {"band": "all"}."""
    for title, (definition, rows) in evaluation.tables.items():
        kept = [row for row in rows if all(row.get(key, value) == value for key, value in (shown or {}).items())]
        names = list(kept[0]) if kept else []
        table = new_table(*names, right=[n for n in names if not isinstance(kept[0][n], str)], title=f"{title}, {evaluation.frames} in all")
        for row in kept:
            table.add_row(*(_text(value) for value in row.values()))
        console().print(table)
        console().print(definition, style="dim")


def _text(value: Any) -> str:
    return "-" if isinstance(value, float) and math.isnan(value) else f"{value:.2f}" if isinstance(value, float) else str(value)


def write_evaluation(evaluation: Evaluation, folder: str | Path, **facts: Any) -> None:
    """Writes `metrics.json`: the definitions, all rows, and further facts."""
    tables = {title: {"definition": definition, "rows": rows} for title, (definition, rows) in evaluation.tables.items()}
    content = _finite({**facts, "count": evaluation.frames, "not_used": evaluation.failed, **tables})
    write_text(Path(folder) / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_finite(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def judge_model(
    weights: str | Path | None,
    data: str | Path,
    *,
    task: Task | None = None,
    split: str | None = None,
    metrics: Sequence[str] = ("waymo",),
    overlaps: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
    votes: int = 1,
    remove_close: float | None = None,
    device: str = "auto",
) -> Evaluation:
    """A model's answers to a data set, compared with its labels. A model that reads `time` gets ten sweeps of nuScenes in a frame.

    Sweeps that cannot be used do not count and are named in the result.

    Args:
        weights: see `Predictor`.
        split: of the data set; None takes val, else test, else everything.
        metrics, overlaps: see `evaluate_boxes`. classes: which count; None takes those that the model knows.
        votes: scaled copies that vote on each shape; see `vsuite.pointcloud.voting`.
        remove_close: metres; points of sweeps nearer to the sensor are left out. None: as the data set has it, 1 for nuScenes.

    Raises:
        InputError: for data without labels, of other classes than the model's, or without a sweep that can be used.
    """
    predictor = Predictor(weights, task=task, device=device)
    if predictor.note.task == "detect":
        frames = labelled_frames(data, split, sweeps=sweeps_for(predictor.note.columns))

        def detect(frame: Frame) -> Pair:
            cloud = (frame if remove_close is None else dataclasses.replace(frame, remove_close=remove_close)).read()
            found = named(predictor.detect(cloud, score_threshold=0.05, remove_close=0.0), predictor.note.classes)
            return truths_of(known(frame, classes or predictor.note.classes), cloud), found_of(found)

        return _judge_frames(frames, detect, metrics, overlaps)
    shapes = read_shapes(data, split or _default_split(shape_splits(data)))
    if list(shapes.class_names) != predictor.note.classes:
        raise InputError(f"{data}: its classes {', '.join(shapes.class_names)} are not the model's, {', '.join(predictor.note.classes)}")
    if predictor.note.task == "parts":
        return evaluate_parts(predictor, [shapes[i] for i in range(len(shapes))], shapes.labels.tolist())
    scores = [predictor.classify([shapes[i]], votes=votes)[0] for i in range(len(shapes))]
    return evaluate_classes([int(row.argmax()) for row in scores], shapes.labels.tolist(), predictor.note.classes)


def judge_predictions(
    predictions: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    metrics: Sequence[str] = ("waymo",),
    overlaps: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Boxes in a file (or a folder of KITTI results), compared with a data set's labels; frames without predictions count as empty.

    Sweeps that cannot be used do not count and are named in the result: labels may not say how many points are in a box.

    Args:
        classes: which count; None takes all of the data set. The others as in `judge_model`.

    Raises:
        InputError: where no frame of the data set is in the predictions.
    """
    found = read_boxes(predictions)
    frames = labelled_frames(data, split)
    if not any(Path(frame.name).name in found for frame in frames):
        raise InputError(f"{predictions}: has no frame of {data}; it has {', '.join(list(found)[:4]) or 'none'}")

    def look_up(frame: Frame) -> Pair:
        truth = truths_of(frame if classes is None else known(frame, classes))
        return truth, found_of(found.get(Path(frame.name).name, NOTHING))

    return _judge_frames(frames, look_up, metrics, overlaps)


def _judge_frames(
    frames: Sequence[Frame], pair: Callable[[Frame], Pair], metrics: Sequence[str], overlaps: Mapping[str, float] | None
) -> Evaluation:
    """Compares what `pair` makes of each frame: truth and detections."""
    pairs, failed = [], []
    with console(stderr=True).status("") as status:
        for number, frame in enumerate(frames, 1):
            status.update(f"{number} of {len(frames)}: {frame.name}")
            try:
                pairs.append(pair(frame))
            except InputError as error:
                failed.append(str(error))
    if not pairs:
        raise InputError(f"none of {len(frames)} frames can be used; the first: {failed[0]}")
    return dataclasses.replace(evaluate_boxes(pairs, metrics, overlaps), failed=tuple(failed))


def read_boxes(path: str | Path) -> dict[str, Boxes]:
    """Boxes by frame, from a JSON file of ours or a folder of KITTI results in the lidar's frame."""
    return boxes_io.read_kitti(path) if Path(path).is_dir() else boxes_io.read_json(path)


def labelled_frames(data: str | Path, split: str | None, *, sweeps: int = 1) -> list[Frame]:
    """The frames with labels of a split; without one of val, else test, else all. `sweeps`: see `read_detection`."""
    root = Path(data)
    chosen = split or _default_split([path.stem for path in (root / "ImageSets").glob("*.txt")])
    frames = [frame for frame in read_detection(root, chosen, sweeps=sweeps).frames if frame.boxes is not None]
    if not frames:
        raise InputError(f"{root}: has no labels to compare with" + (f" in the split {chosen!r}" if chosen else ""))
    return frames


def _default_split(splits: Sequence[str]) -> str | None:
    return next((split for split in ("val", "test") if split in splits), None)


def known(frame: Frame, classes: Sequence[str]) -> Frame:
    """The frame with the boxes of these classes alone; vans count as cars where only cars are among them."""
    return frame.of_classes(classes, {"Van": "Car"} if "Car" in classes and "Van" not in classes else {})
