"""The demo: streets and solids are simulated, shown, and given to models; pictures, tables and a page in 3D."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.batch import counts_of, scene_of
from vsuite.pointcloud.data import boxes_io
from vsuite.pointcloud.data.boxes_io import Boxes
from vsuite.pointcloud.data.clouds import PointCloud
from vsuite.pointcloud.evaluation import Evaluation, evaluate_boxes, evaluate_classes, found_of, print_evaluation, write_evaluation
from vsuite.pointcloud.inference import Predictor, named
from vsuite.pointcloud.metrics.detection import Truths

FRAMES = 6
SHAPES = 64
SHOWN = 16
PAGE = "streets.html"
THRESHOLD = 0.2  # score of the boxes that are shown


def run_demo(
    out: str | Path,
    *,
    detector: str | Path | None = None,
    classifier: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 7,
    say: Callable[[str], None] = print,
) -> None:
    """Simulates streets and solids, shows them, finds boxes in the streets, names the solids, and says how good that is.

    Args:
        out: gets `streets.html` (sweeps with their boxes in 3D), `boxes.json`, tables in `streets/` and `shapes/`, a picture of each
            sweep and one of some solids.
        detector, classifier: weights; None takes those that come with the package.
        overwrite: replace an earlier demo.
        seed: of the streets and solids.
    """
    out, began = Path(out), time.monotonic()
    if (out / PAGE).exists() and not overwrite:
        raise InputError(f"{out}: holds an earlier demo; --overwrite replaces it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; the demo needs a folder")
    finder = Predictor(detector, task="detect", device="cpu")
    namer = Predictor(classifier, task="classify", device="cpu")
    say(f"1/2 simulating {FRAMES} streets")
    _streets(finder, out, seed, say)
    say(f"2/2 simulating {SHAPES} solids")
    _solids(namer, out, seed)
    say(f"{time.monotonic() - began:.0f} s; the streets in 3D: {out / PAGE}")


def _streets(detector: Predictor, out: Path, seed: int, say: Callable[[str], None]) -> None:
    from vsuite.pointcloud.simulate.frames import simulate_sweep
    from vsuite.pointcloud.viewer import save_page, save_picture

    scenes, pairs, frames = [], [], {}
    for index in range(FRAMES):
        sweep = simulate_sweep(np.random.default_rng([seed, 0, index]), "hdl64", classes={"Van": "Car", "Truck": None})
        cloud, name = PointCloud(sweep.points[:, :3], {"intensity": sweep.points[:, 3]}), f"street_{index}"
        truth = Boxes(sweep.boxes, sweep.names, np.ones(len(sweep.boxes), np.float32))
        found = frames[name] = named(detector.detect(cloud), detector.note.classes)
        pairs.append((Truths(sweep.boxes, sweep.names, num_points=sweep.num_points), found_of(found)))
        sure = [label for label, score in zip(found.names, found.scores.tolist(), strict=True) if score >= THRESHOLD]
        say(f"    {name}: {len(cloud)} points; {counts_of(sweep.names)}; found {counts_of(sure)}")
        scenes.append(scene_of(name, cloud, found, truth))
        save_picture(scenes[-1], out / f"{name}.png", threshold=THRESHOLD, view="top")
    save_page(scenes, out / PAGE, threshold=THRESHOLD, title="Simulated streets")
    boxes_io.write_json(out / "boxes.json", frames)
    _report(evaluate_boxes(pairs, ["waymo"]), out / "streets")


def _report(found: Evaluation, folder: Path) -> None:
    print_evaluation(found, {"band": "all"})
    write_evaluation(found, folder)


def _solids(classifier: Predictor, out: Path, seed: int) -> None:
    from vsuite.pointcloud.simulate.solids import CLASSES, make_solids

    clouds, labels = make_solids(SHAPES, classifier.note.points, seed=seed)
    names = classifier.note.classes
    predicted = classifier.classify([PointCloud(cloud) for cloud in clouds]).argmax(axis=1).tolist()
    _report(evaluate_classes(predicted, labels.tolist(), names), out / "shapes")
    titles = [f"{CLASSES[label]}: {names[guess]}" for label, guess in zip(labels[:SHOWN].tolist(), predicted, strict=False)]
    _write_sheet(out / "shapes.png", list(clouds[:SHOWN]), titles)


def _write_sheet(path: Path, clouds: Sequence[NDArray[np.float32]], titles: Sequence[str]) -> None:
    from PIL import Image

    from vsuite.pointcloud.viewer.sheet import shape_sheet

    with atomic_path(path) as temporary:
        Image.fromarray(shape_sheet(clouds, titles)).save(temporary)
