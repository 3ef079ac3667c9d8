"""Looking at point clouds: a live viewer in the browser, a stand-alone page, and pictures without a display.

from vsuite.pointcloud.viewer import Scene, save_page, save_picture, view

scene = Scene("sweep", points, columns={"intensity": intensity}, boxes=boxes, box_labels=names, box_scores=scores)
save_picture(scene, "sweep.png")
save_page([scene], "sweep.html", threshold=0.3)
view([scene])
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence

from vsuite.pointcloud.viewer.colours import ClassColours, colour_choices
from vsuite.pointcloud.viewer.page import save_page
from vsuite.pointcloud.viewer.picture import bird_eye, render, save_picture
from vsuite.pointcloud.viewer.scene import LazyScenes, Scene

__all__ = ["ClassColours", "LazyScenes", "Scene", "bird_eye", "colour_choices", "render", "save_page", "save_picture", "view"]


def view(
    scenes: Sequence[Scene],
    *,
    colour: str = "height",
    threshold: float = 0.0,
    port: int = 8080,
    dark: bool = True,
    open: bool = False,
) -> None:
    """Serves the viewer on 127.0.0.1 and blocks until Ctrl-C. Through ssh: `ssh -L 8080:127.0.0.1:8080 host`.

    Args:
        open: also opens the browser. The others are those of `Viewer`.
    """
    from vsuite.pointcloud.viewer.app import Viewer

    viewer = Viewer(scenes, colour=colour, threshold=threshold, port=port, dark=dark)
    print(f"{viewer.address}  (Ctrl-C ends it)", flush=True)
    if open:
        webbrowser.open(viewer.address)
    try:
        viewer.stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        viewer.stop()
