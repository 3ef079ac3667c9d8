"""Files as scenes of the viewer: points, with what was predicted and what is true beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.batch import find_clouds, name_of, scene_of
from vsuite.pointcloud.data.boxes_io import NOTHING, Boxes
from vsuite.pointcloud.data.clouds import read_cloud
from vsuite.pointcloud.data.detection import read_boxes as read_label_file
from vsuite.pointcloud.evaluation import read_boxes
from vsuite.pointcloud.viewer import LazyScenes, Scene, save_page, save_picture, view


def show(
    inputs: Sequence[str | Path],
    *,
    predictions: str | Path | None = None,
    labels: str | Path | None = None,
    save: str | Path | None = None,
    colour: str = "height",
    threshold: float = 0.0,
    port: int = 8080,
    columns: Sequence[str] | None = None,
) -> None:
    """Serves the viewer on this machine, or writes a page or a picture.

    Args:
        inputs: point clouds, folders and patterns.
        predictions: boxes that were found, by frame: a .json of `predict`, or a folder of KITTI results.
        labels: true boxes, by frame: a .json, or a folder of NAME.txt with lines "x y z length width height yaw class".
        save: a .html (all frames) or a .png (the first one); None serves them.
        colour, threshold, port: see `vsuite.pointcloud.viewer.view`.
        columns: of files that do not name them.

    Raises:
        InputError: for files that cannot be read, and boxes that belong to none of the clouds.
    """
    paths = find_clouds(inputs)
    found = {} if predictions is None else read_boxes(predictions)
    truth = {} if labels is None else read_boxes(labels) if Path(labels).suffix == ".json" else _label_files(Path(labels))
    names = [name_of(path) for path in paths]
    for boxes, source in ((found, predictions), (truth, labels)):
        if boxes and not set(boxes) & set(names):
            raise InputError(f"{source}: has boxes of {', '.join(list(boxes)[:4])}, and none of {', '.join(names[:4])}")

    def load(index: int) -> Scene:
        return scene_of(
            names[index], read_cloud(paths[index], columns=columns), found.get(names[index], NOTHING), truth.get(names[index], NOTHING)
        )

    scenes = LazyScenes(names, load)
    if save is None:
        view(scenes, colour=colour, threshold=threshold, port=port)
    elif Path(save).suffix.lower() in (".html", ".htm"):
        save_page(scenes, save, colour=colour, threshold=threshold)
    elif Path(save).suffix.lower() == ".png":
        save_picture(scenes[0], save, colour=colour, threshold=threshold)
    else:
        raise InputError(f"--save {save}: its name must end in .html or .png")


def _label_files(folder: Path) -> dict[str, Boxes]:
    """True boxes by frame, of one NAME.txt or a folder of them."""
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else [folder]
    if not paths:
        raise InputError(f"{folder}: holds no .txt files with boxes")
    read = {path.stem: read_label_file(path) for path in paths}
    return {name: Boxes(boxes, names, np.ones(len(boxes), np.float32)) for name, (boxes, names) in read.items()}
