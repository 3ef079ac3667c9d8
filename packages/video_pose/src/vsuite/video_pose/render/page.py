"""A player of 3D poses: one HTML file that plays, scrubs and orbits by itself, without a network or a server."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.video_pose.render.stage import LEFT, MIDDLE, PERSON_COLOURS, RIGHT, People, Up, grid_step, set_stage
from vsuite.video_pose.skeletons import Skeleton

ABSENT = -32768  # stands for a joint that is not there


def write_player(
    people: People,
    path: str | Path,
    *,
    skeleton: Skeleton,
    fps: float,
    title: str,
    up: Up = "-y",
    names: Sequence[str] | None = None,
) -> Path:
    """Writes poses as one HTML file. It asks for nothing from any network.

    Places are kept as 16-bit integers, exact to a 30,000th of the room that the poses fill:
    5 s of one person at 50 frames a second take 35 kB.

    Args:
        people: (T, J, 3) each, all of one T, NaN where a joint is absent; an array of this shape is one person.
        path: ends in .html.
        skeleton: the layout of the joints.
        fps: frames a second at speed 1.
        title: of the page.
        up: the axis that points up: "-y" in a camera's frame (y down, z ahead), "y" or "z" in a world's.
        names: of the people; "person 0" and so on where there are none.

    Raises:
        InputError: for other shapes, poses without one finite joint, another number of names than people, and where the file cannot be
            written.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise InputError(f"{path}: a player's name ends in .html")
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise InputError(f"fps is in (0, 1000] frames a second; got {fps}")
    stage = set_stage(people, skeleton, up)
    shown = [f"person {number}" for number in range(len(stage.people))] if names is None else list(names)
    if len(shown) != len(stage.people):
        raise InputError(f"there are {len(stage.people)} people and {len(shown)} names")
    scale = 30_000 / stage.radius / 2
    data = {
        "fps": fps,
        "frames": len(stage.people[0]),
        "joints": list(skeleton.names),
        "bones": [list(bone) for bone in skeleton.bones],
        "sides": [1 if joint in skeleton.left else 2 if joint in skeleton.right else 0 for joint in range(skeleton.num_joints)],
        "side_colours": [MIDDLE, LEFT, RIGHT],
        "colours": PERSON_COLOURS,
        "scale": scale,
        "centre": stage.centre.tolist(),
        "radius": stage.radius,
        "step": grid_step(stage.radius),
        "people": [
            {"name": name, "places": _packed(person, stage.centre, scale)} for name, person in zip(shown, stage.people, strict=True)
        ],
    }
    here = resources.files("vsuite.video_pose.render")
    parts = {"title": html.escape(title), "data": _json(data), "script": here.joinpath("player.js").read_text("utf-8")}
    template = here.joinpath("player.html").read_text("utf-8")
    # In one pass, so that a name which looks like a placeholder stays a name.
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))
    return path


def _packed(person: NDArray[np.float32], centre: NDArray[np.float64], scale: float) -> str:
    """Little-endian 16-bit integers, about the middle of the stage, in base64."""
    places = np.round((person - centre) * scale)
    absent = np.isnan(places).any(axis=-1, keepdims=True)
    return base64.b64encode(np.where(absent, ABSENT, np.nan_to_num(places)).astype("<i2").tobytes()).decode("ascii")


def _json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever names it holds."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
