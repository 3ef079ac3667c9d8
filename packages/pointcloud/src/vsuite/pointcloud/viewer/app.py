"""The live viewer: a viser server on the loopback address, with controls for frames, colours, boxes and the camera."""

from __future__ import annotations

import contextlib
import html
import io
import math
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.viewer.colours import (
    BACKGROUNDS,
    ERRORS,
    TRUTH_COLOURS,
    ClassColours,
    Colour,
    check_choice,
    colour_choices,
    colour_range,
    hidden_points,
    point_categories,
    point_colours,
    point_values,
)
from vsuite.pointcloud.viewer.geometry import FIELD_OF_VIEW, box_lines, first_camera, thinning_order
from vsuite.pointcloud.viewer.picking import Facts, box_facts, pick_box, pick_point, point_facts
from vsuite.pointcloud.viewer.ports import check_port, free_port
from vsuite.pointcloud.viewer.scene import Scene, box_text, check_scenes

MOST_POINTS = 1_000_000  # shown at rest
MOVING_POINTS = 40_000  # shown while the camera moves or frames play
REST = 0.3  # seconds without a move until all points are shown again
MOST_TEXTS = 100  # names beside boxes; each is an object of its own in the browser


class Viewer:
    """Serves scenes to a browser until it is stopped.

    While the camera moves, or frames play, an evenly thinned cloud stands in for the whole one; both are in the browser, so that
    changing between them costs nothing.

    Args:
        scenes: the frames; a lazy sequence is read as they are shown.
        colour: one of the first frame's `colour_choices`.
        threshold: where the score slider stands first.
        port: of 127.0.0.1; 0 takes a free one.
        dark: dark background first.

    Raises:
        InputError: without frames, for a colour that the first frame does not have, or a port that is taken.
    """

    def __init__(
        self, scenes: Sequence[Scene], *, colour: str = "height", threshold: float = 0.0, port: int = 8080, dark: bool = True
    ) -> None:
        import viser

        check_scenes(scenes)
        self.scenes = scenes
        self.scene = scenes[0]
        self.index = -1
        self.whole = np.zeros(0, np.int64)
        check_choice(self.scene, colour)
        self.classes = ClassColours()
        self.class_boxes: dict[str, Any] = {}
        self.texts: list[Any] = []
        self.lines: list[Any] = []
        self.lock = threading.RLock()
        self.last_move = -math.inf
        self.playing = False
        self.spans: dict[str, tuple[float, float]] = {}
        self.stopped = threading.Event()
        check_port(port)
        with contextlib.redirect_stdout(io.StringIO()):  # viser greets even where it is told to be quiet
            self.server = viser.ViserServer(host="127.0.0.1", port=port or free_port(), label="vsuite-pointcloud", verbose=False)
        self.server.scene.set_up_direction("+z")
        self._build_controls(colour, threshold, dark)
        self._aim(self.server.initial_camera, "up")
        self.server.on_client_connect(self._connect)
        self.server.scene.on_click()(self._pick)
        self._theme()
        self.show(0)
        threading.Thread(target=self._run, name="viewer", daemon=True).start()

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.server.get_port()}"

    def stop(self) -> None:
        """Ends the server."""
        self.stopped.set()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _build_controls(self, colour: str, threshold: float, dark: bool) -> None:
        gui, several = self.server.gui, len(self.scenes) > 1
        self.name = gui.add_html("")
        self.frame: Any = gui.add_slider("Frame", 1, max(len(self.scenes), 2), 1, 1, visible=several)
        self.play = gui.add_button("Play", visible=several)
        self.colour: Any = gui.add_dropdown("Colour by", colour_choices(self.scene), initial_value=colour)
        self.span = gui.add_multi_slider("Colour range, %", 0, 100, 1, (0, 100))
        self.legend = gui.add_html("")
        self.size = gui.add_slider("Point size, cm", 1, 30, 1, self._first_size())
        self.score = gui.add_slider("Score at least", 0.0, 1.0, 0.01, round(float(np.clip(threshold, 0, 1)), 2))
        self.truth = gui.add_checkbox("True boxes", True)
        self.text = gui.add_checkbox("Names and scores", True)
        self.facts = gui.add_html("")
        self.views = gui.add_button_group("View", ("Reset", "From above"))
        self.dark = gui.add_checkbox("Dark", dark)
        self.screenshot = gui.add_button("Screenshot")
        self.class_folder = gui.add_folder("Classes")
        self.frame.on_update(lambda _: self.show(self.frame.value - 1))
        self.play.on_click(lambda _: self._toggle_play())
        for control in (self.colour, self.span):
            control.on_update(lambda _: self._locked(self._paint))
        self.size.on_update(lambda _: self._locked(self._resize))
        self.score.on_update(lambda _: self._locked(self._filter))
        self.truth.on_update(lambda _: self._locked(self._filter))
        self.text.on_update(lambda _: self._locked(self._filter))
        self.dark.on_update(lambda _: self._locked(self._theme))
        self.views.on_click(self._change_view)
        self.screenshot.on_click(self._screenshot)

    def _first_size(self) -> int:
        """Point size in centimetres that suits how far the camera stands off."""
        position, target = first_camera(self.scene)
        return int(np.clip(round(float(np.linalg.norm(position - target)) * 0.22), 1, 30))

    def _locked(self, action: Any) -> None:
        with self.lock:
            action()

    def show(self, index: int) -> None:
        """Shows a frame, counted from 0. One that cannot be read is said in its place, and the former one stays."""
        with self.lock:
            if index == self.index:
                return
            self.index = index
            try:
                scene = self.scenes[index]
            except InputError as error:
                self.name.content = _paragraph(str(error))
                return
            self.scene = scene
            for name in scene.class_names:
                if name not in self.class_boxes:
                    self._add_class(name)
            self.facts.content = ""
            with self.server.atomic():
                self.server.scene.remove_by_name("/picked")
                self.whole = self._rows()
                self._add_points()
                self._add_texts()
                self._draw_boxes()
                self._describe()
            choices = tuple(colour_choices(scene))
            if choices != tuple(self.colour.options):
                self.colour.options = choices  # viser falls back to the first, height, where the former choice is gone

    def _add_class(self, name: str) -> None:
        with self.class_folder:
            box = self.server.gui.add_checkbox(name, True)
        box.on_update(lambda _: self._locked(self._filter))
        self.class_boxes[name] = box

    def _hidden(self) -> list[str]:
        return [name for name, box in self.class_boxes.items() if not box.value]

    def _rows(self) -> np.ndarray:
        """Rows of the points to show, in the order of thinning: without those whose own label is of a hidden class."""
        order = thinning_order(len(self.scene.points), MOST_POINTS)
        return order[~hidden_points(self.scene, self.colour.value, self._hidden())[order]]

    def _add_points(self) -> None:
        colours = self._colours()
        for name, rows in self._levels():
            # float32: the default, float16, moves points by centimetres 70 m away.
            self.server.scene.add_point_cloud(
                f"/points/{name}",
                self.scene.points[rows],
                colours[rows],
                point_size=self._size(name),
                point_shape="circle",
                precision="float32",
                point_shading="flat",
                visible=(name == "some") == self._thinned(),
            )

    def _levels(self) -> list[tuple[str, np.ndarray]]:
        return [("whole", self.whole), ("some", self.whole[:MOVING_POINTS])]

    def _size(self, name: str) -> float:
        return self.size.value / 100 * (1.5 if name == "some" and len(self.whole) > MOVING_POINTS else 1.0)

    def _resize(self) -> None:
        for name in ("whole", "some"):
            self._points(name).point_size = self._size(name)

    def _points(self, name: str) -> Any:
        return self.server.scene.get_handle_by_name(f"/points/{name}")

    def _colours(self) -> np.ndarray:
        by = self.colour.value if self.colour.value in colour_choices(self.scene) else "height"
        values = point_values(self.scene, by)
        self.span.visible = values is not None
        span = None
        if values is not None:
            low, high = self.spans.setdefault(by, colour_range(values))  # one range for all frames, or playing would flicker
            start, end = (low + (high - low) * share / 100 for share in self.span.value)
            span = start, max(end, start + (high - low) / 1000)
        self._explain(by, span)
        return point_colours(self.scene, by, self.classes, threshold=self.score.value, hidden=self._hidden(), span=span)

    def _explain(self, by: str, span: tuple[float, float] | None) -> None:
        """What the colours of the points mean, and those of the classes."""
        colours = {name: self.classes[name] for name in self.scene.class_names}
        categories = point_categories(self.scene, by)
        if by == "error" and categories is not None:
            colours = {name: ERRORS[name] for name in categories.names} | colours
        text = "" if span is None else f"{html.escape(by)} from {span[0]:.4g} (blue) to {span[1]:.4g} (red)<br>"
        marks = [f'<span style="color:rgb{colour}">&#9632;</span> {html.escape(name)}' for name, colour in colours.items()]
        self.legend.content = _paragraph(text + " &ensp; ".join(marks), escape=False)

    def _paint(self) -> None:
        rows = self._rows()
        if not np.array_equal(rows, self.whole):
            self.whole = rows
            self._add_points()
            return
        colours = self._colours()
        for name, chosen in self._levels():
            self._points(name).colors = colours[chosen]

    def _add_texts(self) -> None:
        """Names and scores beside the boxes that the score and the classes let through, the highest scores first."""
        for handle in self.texts:
            handle.remove()
        self.texts = []
        if not self.text.value:
            return
        scene, found = self.scene, len(self.scene.boxes) > 0
        shown = np.flatnonzero(scene.shown_boxes(self.score.value, self._hidden()) if found else self._shown_truth())
        for row in shown[:MOST_TEXTS].tolist():
            box = (scene.boxes if found else scene.truth_boxes)[row]
            name = box_text(scene.box_labels[row], float(scene.box_scores[row])) if found else scene.truth_labels[row]
            place = (float(box[0]), float(box[1]), float(box[2] + box[5] / 2 + 0.3))
            label = self.server.scene.add_label(f"/texts/{row}", name, position=place, anchor="bottom-center", font_screen_scale=0.8)
            self.texts.append(label)

    def _shown_truth(self) -> np.ndarray:
        hidden = self._hidden()
        return np.array([self.truth.value and name not in hidden for name in self.scene.truth_labels], bool)

    def _draw_boxes(self) -> None:
        """Draws the lines of all boxes of a colour as one object: a change of the slider sends them anew, which is little."""
        for handle in self.lines:
            handle.remove()
        self.lines = []
        scene, both = self.scene, len(self.scene.boxes) > 0
        truth = [TRUTH_COLOURS[self.dark.value] if both else self.classes[name] for name in scene.truth_labels]
        self._add_lines(scene.truth_boxes, truth, self._shown_truth(), 1.5)
        found = [self.classes[name] for name in scene.box_labels]
        self._add_lines(scene.boxes, found, scene.shown_boxes(self.score.value, self._hidden()), 2.5)

    def _add_lines(self, boxes: np.ndarray, colours: list[Colour], shown: np.ndarray, thickness: float) -> None:
        # viser takes one colour of an object as it is meant, but colours of each line as linear light, which turn out pale.
        for colour in dict.fromkeys(colours):
            chosen = shown & np.array([other == colour for other in colours], bool)
            if chosen.any():
                lines, name = box_lines(boxes[chosen]).reshape(-1, 2, 3), f"/boxes/{len(self.lines)}"
                self.lines.append(self.server.scene.add_line_segments(name, lines, colour, thickness=thickness, thickness_units="screen"))

    def _filter(self) -> None:
        """After a change of the score or the classes."""
        with self.server.atomic():
            self._draw_boxes()
            self._add_texts()
            self._describe()
            if self.colour.value in ("label", "prediction", "error"):
                self._paint()

    def _describe(self) -> None:
        scene = self.scene
        parts = [f"{len(scene.points):,} points"]
        if len(scene.points) > MOST_POINTS:
            parts[0] += f", thinned to {MOST_POINTS:,}"
        if self._thinned() and len(self.whole) > MOVING_POINTS:
            parts.append(f"{MOVING_POINTS:,} while moving")
        if len(scene.boxes):
            parts.append(f"{int(scene.shown_boxes(self.score.value, self._hidden()).sum())} of {len(scene.boxes)} boxes")
        if len(scene.truth_boxes):
            parts.append(f"{len(scene.truth_boxes)} true boxes")
        self.name.content = _paragraph(f"<b>{html.escape(scene.name)}</b><br>{', '.join(parts)}", escape=False)

    def _thinned(self) -> bool:
        return self.playing or time.monotonic() - self.last_move < REST

    def _connect(self, client: Any) -> None:
        started = time.monotonic()

        def moved(_: Any) -> None:
            if time.monotonic() - started < 1:  # the first camera is no move
                return
            self.last_move = time.monotonic()
            self._locked(self._level)

        client.camera.on_update(moved)

    def _level(self) -> None:
        """Shows the thinned cloud or the whole one, whichever it is time for."""
        thinned = self._thinned()
        if self._points("some").visible == thinned:
            return
        with self.server.atomic():
            self._points("some").visible, self._points("whole").visible = thinned, not thinned
        self._describe()

    def _run(self) -> None:
        """Plays frames, and brings the whole cloud back when the camera has come to rest."""
        while not self.stopped.wait(0.2 if self.playing else 0.1):
            if self.playing:
                self.show((self.index + 1) % len(self.scenes))
                self.frame.value = self.index + 1
            else:
                self._locked(self._level)

    def _toggle_play(self) -> None:
        self.playing = not self.playing
        self.play.label = "Pause" if self.playing else "Play"

    def _aim(self, camera: Any, up: str, above: bool = False) -> None:
        """Turns a camera of viser to where all is in view; its upward direction is called `up` or `up_direction`."""
        position, target = first_camera(self.scene)
        if above:  # a trace of slant keeps ahead at the top
            height = float(np.linalg.norm(position - target))
            position = target + np.array([-1e-3 * height, 0.0, height])
        setattr(camera, up, (0.0, 0.0, 1.0))
        camera.position, camera.look_at, camera.fov = tuple(position), tuple(target), FIELD_OF_VIEW

    def _change_view(self, event: Any) -> None:
        if event.client is not None:
            with event.client.atomic():
                self._aim(event.client.camera, "up_direction", above=self.views.value == "From above")

    def _pick(self, event: Any) -> None:
        origin, direction = np.array(event.ray_origin), np.array(event.ray_direction)
        with self.lock:
            self._show_facts(origin, direction)

    def _show_facts(self, origin: np.ndarray, direction: np.ndarray) -> None:
        scene, facts = self.scene, Facts()
        point = pick_point(scene.points, origin, direction)
        self.server.scene.remove_by_name("/picked")
        if point is not None:
            facts += point_facts(scene, point)
            radius = float(np.linalg.norm(scene.points[point] - origin)) * 0.006
            self.server.scene.add_icosphere("/picked", radius, color=(255, 0, 200), position=tuple(scene.points[point]))
        found = pick_box(scene.boxes, scene.shown_boxes(self.score.value, self._hidden()), origin, direction)
        truth = pick_box(scene.truth_boxes, self._shown_truth(), origin, direction)
        if found and not (truth and truth[1] < found[1]):
            facts += box_facts(scene, found[0])
        elif truth:
            facts += box_facts(scene, truth[0], truth=True)
        rows = "".join(f"<tr><td>{html.escape(name)}&ensp;</td><td>{html.escape(value)}</td></tr>" for name, value in facts)
        self.facts.content = _paragraph(f"<table>{rows}</table>", escape=False) if facts else ""

    def _theme(self) -> None:
        dark = self.dark.value
        self.server.gui.configure_theme(dark_mode=dark, show_logo=False, show_share_button=False, control_layout="collapsible")
        self.server.scene.set_background_image(np.full((2, 2, 3), BACKGROUNDS[dark], np.uint8), format="png")
        if self.index >= 0:
            self._draw_boxes()

    def _screenshot(self, event: Any) -> None:
        from PIL import Image

        if event.client is None:
            return
        camera = event.client.camera
        pixels = event.client.get_render(camera.image_height or 720, camera.image_width or 1280, transport_format="png")
        page = Image.new("RGBA", (pixels.shape[1], pixels.shape[0]), (*BACKGROUNDS[self.dark.value], 255))
        page.alpha_composite(Image.fromarray(pixels).convert("RGBA"))
        buffer = io.BytesIO()
        page.convert("RGB").save(buffer, format="PNG")
        name = re.sub(r"[^\w.-]+", "_", self.scene.name)
        event.client.send_file_download(f"{name}.png", buffer.getvalue(), save_immediately=True)


def _paragraph(text: str, escape: bool = True) -> str:
    return f'<div style="padding:0 0.8em; font-size:0.85em; overflow-wrap:anywhere">{html.escape(text) if escape else text}</div>'
