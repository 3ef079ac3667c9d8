"""Predicting files: what was asked is checked first, and one bad file does not stop the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsuite.core.batch import Summary, check_names, check_results, find_files, refuse_existing
from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path, write_csv
from vsuite.core.terminal import console
from vsuite.pointcloud.data import boxes_io
from vsuite.pointcloud.data.boxes_io import NOTHING, Boxes
from vsuite.pointcloud.data.clouds import PointCloud, Reading, check_sweep, is_cloud, list_clouds, write_cloud
from vsuite.pointcloud.inference import Predictor, named
from vsuite.pointcloud.viewer.scene import PAGES, Scene, check_ending

SHAPES_AT_ONCE = 16


@dataclass(frozen=True)
class Outputs:
    """What is written.

    Attributes:
        folder: where results go.
        formats: of boxes: "json" (boxes.json), "kitti" (kitti/NAME.txt in the lidar's frame) and "nuscenes" (nuscenes.json).
        threshold: lowest score of a box.
        turn: degrees by which sweeps are turned about z before they are looked at, and boxes turned back.
        remove_close: metres; points on the sensor's own vehicle are left out (see `data.clouds.without_close`).
        pictures: draw each sweep from above.
        page: a page with sweeps and boxes in 3D, or None.
        overwrite: replace results that are there.
    """

    folder: Path
    formats: tuple[str, ...] = ("json",)
    threshold: float = 0.2
    turn: float = 0.0
    remove_close: float | None = None
    pictures: bool = True
    page: Path | None = None
    overwrite: bool = False


def find_clouds(inputs: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """The point clouds in files, directly in folders, and patterns such as "sweeps/*.bin"; see `vsuite.core.batch.find_files`."""
    return find_files(inputs, list_clouds, is_cloud, "point clouds")


def name_of(path: Path) -> str:
    """A cloud's name: its file's without the endings, such as "lidar_top_0" of lidar_top_0.pcd.bin."""
    return path.name.removesuffix("".join(path.suffixes[-2:])) if path.name.endswith(".pcd.bin") else path.stem


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    outputs: Outputs,
    *,
    reading: Reading | None = None,
    category: str | None = None,
) -> Summary:
    """Predicts every file, and writes what its task gives: boxes, classes, or labels of points.

    Args:
        reading: how files are read. category: the class of the shapes, for their parts.

    Raises:
        InputError: where nothing that was given is there, two inputs have one name, or results are there: before anything is computed.
    """
    paths, missing = find_clouds(inputs)
    names = [name_of(path) for path in paths]
    check_names(names)
    work = {"detect": _detect, "classify": _classify, "parts": _label_parts}[predictor.note.task]
    summary = work(predictor, dict(zip(names, paths, strict=True)), outputs, reading or Reading(), category)
    summary.failed += missing
    return summary


def _detect(predictor: Predictor, paths: dict[str, Path], outputs: Outputs, reading: Reading, category: str | None) -> Summary:
    targets = {"json": "boxes.json", "kitti": "kitti", "nuscenes": "nuscenes.json"}
    for name in outputs.formats:
        if name not in targets:
            raise unknown("--format", name, targets)
    check_results(outputs.folder, (targets[name] for name in outputs.formats), overwrite=outputs.overwrite)
    if outputs.page is not None:
        check_ending(outputs.page, PAGES)
        refuse_existing(outputs.page, overwrite=outputs.overwrite)
    summary, frames, shown = Summary(), {}, []
    with console(stderr=True).status("") as status:
        for number, (name, path) in enumerate(paths.items(), 1):
            status.update(f"{number} of {len(paths)}: {name}")
            try:
                cloud = reading.read(path)
                check_sweep(cloud)
                found = predictor.detect(cloud, score_threshold=outputs.threshold, turn=outputs.turn, remove_close=outputs.remove_close)
                frames[name] = named(found, predictor.note.classes)
            except InputError as error:
                summary.failed.append(str(error))
                continue
            summary.lines.append(f"{path}: {counts_of(frames[name].names)}")
            scene = scene_of(name, cloud, frames[name])
            if outputs.pictures:
                _write_picture(outputs.folder / f"{name}.png", scene)
            if outputs.page is not None:
                shown.append(scene)
    if frames:
        writers = {"json": boxes_io.write_json, "kitti": boxes_io.write_kitti, "nuscenes": boxes_io.write_nuscenes}
        for name in outputs.formats:
            writers[name](outputs.folder / targets[name], frames)  # type: ignore[operator]
    if shown:
        from vsuite.pointcloud.viewer.page import save_page

        assert outputs.page is not None
        save_page(shown, outputs.page)
    return summary


def counts_of(names: Sequence[str]) -> str:
    """ "3 Car, 1 Cyclist"."""
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing found"


def scene_of(name: str, cloud: PointCloud, found: Boxes = NOTHING, truth: Boxes = NOTHING) -> Scene:
    """A cloud with the boxes that were found in it, and the true ones, for the viewer."""
    return Scene(
        name,
        cloud.points,
        dict(cloud.columns),
        boxes=found.boxes,
        box_labels=found.names,
        box_scores=found.scores,
        truth_boxes=truth.boxes,
        truth_labels=truth.names,
        label_names=cloud.class_names,
    )


def _write_picture(path: Path, scene: Scene) -> None:
    from PIL import Image

    from vsuite.pointcloud.viewer.picture import bird_eye

    drawn = bird_eye(scene.points, found=scene.boxes, found_labels=scene.box_labels, scores=scene.box_scores, size=(1000, 1000))
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary)


def _classify(predictor: Predictor, paths: dict[str, Path], outputs: Outputs, reading: Reading, category: str | None) -> Summary:
    check_results(outputs.folder, ("classes.csv",), overwrite=outputs.overwrite)
    summary, classes = Summary(), predictor.note.classes
    rows: list[list[str]] = [["file", "class", "probability", *classes]]
    for start in range(0, len(paths), SHAPES_AT_ONCE):
        clouds = []
        for path in list(paths.values())[start : start + SHAPES_AT_ONCE]:
            try:
                cloud = reading.read(path)
                predictor.check_shape(cloud)
                clouds.append(cloud)
            except InputError as error:
                summary.failed.append(str(error))
        for cloud, scores in zip(clouds, predictor.classify(clouds) if clouds else (), strict=True):
            best = int(scores.argmax())
            summary.lines.append(f"{cloud.path}: {classes[best]} ({100 * scores[best]:.0f} %)")
            rows.append([str(cloud.path), classes[best], f"{scores[best]:.6f}", *(f"{s:.6f}" for s in scores)])
    if summary.lines:
        write_csv(outputs.folder / "classes.csv", rows)
    return summary


def _label_parts(predictor: Predictor, paths: dict[str, Path], outputs: Outputs, reading: Reading, category: str | None) -> Summary:
    if category is None:
        raise InputError(f"--category says what the shapes are; the model knows {', '.join(predictor.note.classes)}")
    check_results(outputs.folder, (f"{name}.ply" for name in paths), overwrite=outputs.overwrite)
    summary = Summary()
    for name, path in paths.items():
        try:
            cloud = reading.read(path)
            labels = predictor.label_parts(cloud, category)
        except InputError as error:
            summary.failed.append(str(error))
            continue
        target = outputs.folder / f"{name}.ply"
        write_cloud(target, PointCloud(cloud.points, cloud.columns | {"label": labels.astype(np.int32)}))
        summary.lines.append(f"{path} -> {target}: parts {', '.join(map(str, np.unique(labels)))}")
    return summary
