"""The demo: somebody walks, a camera films it, and what the lifter makes of the 2D poses is shown and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.video_pose.cameras import denormalize_screen
from vsuite.video_pose.lift.evaluate import judge, print_report
from vsuite.video_pose.lift.mocap import Sequence3D, make_videos
from vsuite.video_pose.lift.predict import SHIPPED, Options, Predictor, predict_files
from vsuite.video_pose.lift.settings import LiftSettings
from vsuite.video_pose.lift.walk import make_walk
from vsuite.video_pose.skeletons import H36M17

SECONDS = 3.0
NOISE = 5.0  # pixels
DETECTIONS = "walk.npz"


def run_demo(out: str | Path, *, overwrite: bool = False, seed: int = 7, say: Callable[[str], None] = print) -> None:
    """Makes a walk and its 2D poses, lifts these with the shipped weights, and measures and shows what comes out.

    Args:
        out: gets `walk.npz` (the 2D poses), `lifted/walk.{npz,json,bvh,mp4,html}`.
        overwrite: replace an earlier demo.
        seed: of the walk, and of the error of the 2D poses.
    """
    out, began = Path(out), time.monotonic()
    if (out / DETECTIONS).exists() and not overwrite:
        raise InputError(f"{out}: holds an earlier demo; --overwrite replaces it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; the demo needs a folder")
    settings = LiftSettings(cameras_per_shot=1, validation_shot=round(60 * SECONDS))
    videos = make_videos([Sequence3D("walking/walk", make_walk(SECONDS, seed=seed))], settings)
    say(f"1/3 somebody walks for {SECONDS:g} s; a camera films it, 2D poses with an error of {NOISE:g} pixels -> {out / DETECTIONS}")
    size = (settings.cameras.width, settings.cameras.height)
    seen = denormalize_screen(videos[0].with_noise(NOISE, seed).poses_2d, *size)
    with atomic_path(out / DETECTIONS) as temporary:
        np.savez_compressed(temporary, poses_2d=seen, layout=H36M17.name, size=size, fps=videos[0].fps)
    say(f"2/3 lifting to 3D with {SHIPPED}")
    predictor = Predictor(device="cpu")
    options = Options(formats=("npz", "json", "bvh"), render="mp4", page=True, overwrite=overwrite)
    done = predict_files(predictor, [out / DETECTIONS], out / "lifted", options)
    if done.failed:
        raise InputError(done.failed[0])
    say(f"    {done.lines[0]}")
    say("3/3 measuring")
    print_report(judge(predictor, videos, NOISE), f"a walk that no model has seen, noise {NOISE:g} px")
    say(f"{time.monotonic() - began:.0f} s; the film: {out / 'lifted/walk.mp4'}; in the browser: {out / 'lifted/walk.html'}")
