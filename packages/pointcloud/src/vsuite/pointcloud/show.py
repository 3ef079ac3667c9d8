"""Files as scenes of the viewer: points, with what was predicted and what is true beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsuite.core.batch import check_failed
from vsuite.core.errors import InputError
from vsuite.core.terminal import console
from vsuite.pointcloud.batch import find_clouds, name_of, scene_of
from vsuite.pointcloud.data.boxes_io import NOTHING, Boxes
from vsuite.pointcloud.data.clouds import Reading, check_is_file
from vsuite.pointcloud.data.detection import read_boxes as read_label_file
from vsuite.pointcloud.evaluation import read_boxes
from vsuite.pointcloud.viewer import LazyScenes, Scene, save_page, save_picture, view
from vsuite.pointcloud.viewer.scene import PAGES, PICTURES, check_ending


def show(
    inputs: Sequence[str | Path],
    *,
    predictions: str | Path | None = None,
    labels: str | Path | None = None,
    save: str | Path | None = None,
    colour: str = "height",
    threshold: float = 0.0,
    port: int = 8080,
    reading: Reading | None = None,
) -> None:
    """Serves the viewer on this machine, or writes a page or a picture. Files that cannot be read are named, and the others shown.

    Args:
        inputs: point clouds, folders and patterns.
        predictions: boxes that were found, by frame: a .json of `predict`, or a folder of KITTI results.
        labels: true boxes, by frame: a .json, or a folder of NAME.txt with lines "x y z length width height yaw class".
        save: a .html (all frames) or a .png (the first one); None serves them.
        colour, threshold, port: see `vsuite.pointcloud.viewer.view`.
        reading: how files are read.

    Raises:
        InputError: for boxes that belong to none of the clouds; and, once the others have been shown, for files that cannot be read.
    """
    if save is not None:
        check_ending(save, (*PAGES, *PICTURES))
    as_page, reading = save is not None and Path(save).suffix.lower() in PAGES, reading or Reading()
    paths, failed = find_clouds(inputs)
    total = len(paths) + len(failed)
    found = {} if predictions is None else read_boxes(predictions)
    truth = {} if labels is None else read_boxes(labels) if Path(labels).suffix == ".json" else _label_files(Path(labels))
    names = [name_of(path) for path in paths]
    for boxes, source in ((found, predictions), (truth, labels)):
        if boxes and not set(boxes) & set(names):
            raise InputError(f"{source}: has boxes of {', '.join(list(boxes)[:4])}, and none of {', '.join(names[:4])}")

    def load(path: Path) -> Scene:
        name = name_of(path)
        return scene_of(name, reading.read(path), found.get(name, NOTHING), truth.get(name, NOTHING))

    shown: list[Path] = []
    for path in paths:
        try:
            if as_page or not shown:  # what goes into a page is read twice, rather than all of it kept in memory
                load(path)
            else:
                check_is_file(path)
            shown.append(path)
        except InputError as error:
            failed.append(str(error))
    if not shown:
        check_failed(failed, total, "files cannot be read")
    for line in failed:
        console(stderr=True).print(f"not shown: {line}", soft_wrap=True, markup=False, highlight=False)
    scenes = LazyScenes([name_of(path) for path in shown], lambda index: load(shown[index]))
    if save is None:
        view(scenes, colour=colour, threshold=threshold, port=port)
    elif as_page:
        save_page(scenes, save, colour=colour, threshold=threshold)
    else:
        save_picture(scenes[0], save, colour=colour, threshold=threshold)
    check_failed(failed, total, "files cannot be read")


def _label_files(folder: Path) -> dict[str, Boxes]:
    """True boxes by frame, of one NAME.txt or a folder of them."""
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else [folder]
    if not paths:
        raise InputError(f"{folder}: holds no .txt files with boxes")
    read = {path.stem: read_label_file(path) for path in paths}
    return {name: Boxes(boxes, names, np.ones(len(boxes), np.float32)) for name, (boxes, names) in read.items()}
