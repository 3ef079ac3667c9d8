"""The demo: streets are simulated, the shipped detector finds who is in them, and solids get names; tables, pictures and a 3D page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.batch import counts_of, scene_of
from vsuite.pointcloud.data import boxes_io
from vsuite.pointcloud.data.boxes_io import Boxes
from vsuite.pointcloud.data.clouds import PointCloud
from vsuite.pointcloud.evaluation import Evaluation, evaluate_boxes, evaluate_classes, found_of, print_evaluation, write_evaluation
from vsuite.pointcloud.inference import SHIPPED, Predictor, named
from vsuite.pointcloud.metrics.detection import Truths

FRAMES = 6
SHAPES = 64
PAGE = "streets.html"


def run_demo(out: str | Path, *, overwrite: bool = False, seed: int = 7, say: Callable[[str], None] = print) -> Evaluation:
    """Simulates streets and solids, predicts both with the shipped models, and compares with what they are.

    Args:
        out: gets `streets.html` (sweeps, found and true boxes in 3D), a picture of each sweep and of the shapes, `boxes.json`,
            and `metrics.json` of both tasks.
        overwrite: replace an earlier demo.
        seed: of the streets and solids; those that the models learnt from had another.

    Returns:
        Average precision on the streets.
    """
    out, began = Path(out), time.monotonic()
    if (out / PAGE).exists() and not overwrite:
        raise InputError(f"{out}: holds an earlier demo; --overwrite replaces it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; the demo needs a folder")
    detector = Predictor(SHIPPED["detect"], device="cpu")
    say(f"1/3 simulating {FRAMES} streets and looking for {', '.join(detector.note.classes)}")
    found = _streets(detector, out, seed, say)
    say(f"2/3 naming {SHAPES} solids")
    named_shapes = _solids(out, seed)
    say("3/3 comparing")
    print_evaluation(found, {"band": "all", "level": 2})
    print_evaluation(named_shapes)
    write_evaluation(found, out / "streets")
    write_evaluation(named_shapes, out / "shapes")
    say(f"{time.monotonic() - began:.0f} s; the streets in 3D: {out / PAGE}")
    return found


def _streets(detector: Predictor, out: Path, seed: int, say: Callable[[str], None]) -> Evaluation:
    from vsuite.pointcloud.simulate.frames import simulate_sweep
    from vsuite.pointcloud.viewer import save_page, save_picture

    scenes, pairs, frames = [], [], {}
    for index in range(FRAMES):
        sweep = simulate_sweep(np.random.default_rng([seed, 0, index]), "hdl32", classes={"Van": "Car", "Truck": None})
        cloud = PointCloud(sweep.points[:, :3], {"intensity": sweep.points[:, 3]})
        name = f"street_{index}"
        frames[name] = named(detector.detect(cloud), detector.note.classes)
        truth = Boxes(sweep.boxes, sweep.names, np.ones(len(sweep.boxes), np.float32))
        say(f"    {name}: {len(cloud)} points, {counts_of(frames[name].names)}")
        scenes.append(scene_of(name, cloud, frames[name], truth))
        pairs.append((Truths(sweep.boxes, sweep.names, num_points=sweep.num_points), found_of(frames[name])))
        save_picture(scenes[-1], out / f"{name}.png", threshold=0.3, view="top")
    boxes_io.write_json(out / "boxes.json", frames)
    save_page(scenes, out / PAGE, threshold=0.3, title="Simulated streets")
    return evaluate_boxes(pairs, ["waymo"])


def _solids(out: Path, seed: int) -> Evaluation:
    from PIL import Image

    from vsuite.pointcloud.simulate.solids import make_solids
    from vsuite.pointcloud.viewer.sheet import shape_sheet

    classifier = Predictor(SHIPPED["classify"], device="cpu")
    classes = classifier.note.classes
    clouds, labels = make_solids(SHAPES, classifier.note.points, seed=seed)
    scores = classifier.classify([PointCloud(cloud) for cloud in clouds])
    predicted = scores.argmax(axis=1).tolist()
    titles = [f"{classes[true]}: {classes[guess]}" for true, guess in zip(labels[:16].tolist(), predicted, strict=False)]
    with atomic_path(out / "shapes.png") as temporary:
        Image.fromarray(shape_sheet(list(clouds[:16]), titles)).save(temporary)
    return evaluate_classes(predicted, labels.tolist(), classes)
