"""BVH: the motion format that Blender, Maya and others read; joint rotations from the places of joints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.video_pose.skeletons import Skeleton

Array = NDArray[np.float64]

CHANNELS = "Zrotation Xrotation Yrotation"
CENTIMETRES = 100.0


@dataclass
class Node:
    """A joint of the file: it turns everything that hangs on it.

    Attributes:
        name: in the file. joint: of the layout, whose place it has.
        points_at: the one joint of the layout whose direction it sets; None for one that turns several nodes, or nothing.
        offset: from the node that it hangs on, at rest, metres.
    """

    name: str
    joint: int
    points_at: int | None
    offset: Array
    children: list[Node] = field(default_factory=list)


def write_bvh(poses: NDArray[np.floating], path: str | Path, *, skeleton: Skeleton, fps: float) -> None:
    """Writes a motion as BVH: centimetres, y up, facing as the camera saw it; the order of the rotations is Z, X, Y.

    A BVH has bones of fixed length, the mean of each one's here: where the bones of `poses` change their length, the joints come back as
    near as that allows, else exactly. Where several bones start in one joint each has a node of its own there, as bones of no length turn
    them one by one (the usual files of CMU's motions have them too).

    Args:
        poses: (T, J, 3) camera space (x right, y down, z ahead), metres, with or without the place of the root.
        fps: frames a second.

    Raises:
        InputError: for poses of other shapes, and NaN.
    """
    skeleton.check(poses)
    if poses.ndim != 3 or poses.shape[2] != 3 or not len(poses) or not np.isfinite(poses).all():
        raise InputError(f"a motion is (T, J, 3), finite, of one or more frames; got {poses.shape}")
    if not (fps > 0 and np.isfinite(fps)):
        raise InputError(f"fps must be above 0; got {fps}")
    upright = poses.astype(np.float64) * [1, -1, -1]  # half a turn about x: y up, and no mirror
    root = _hierarchy(upright, skeleton)
    text = ["HIERARCHY", *_described(root, 0), "MOTION", f"Frames: {len(poses)}", f"Frame Time: {1 / fps:.8f}"]
    columns = [CENTIMETRES * upright[:, root.joint], *_rotations(upright, root, skeleton)]
    text += [" ".join(f"{value:.5f}" for value in line) for line in np.concatenate(columns, axis=1)]
    write_text(path, "\n".join(text) + "\n")


def _hierarchy(poses: Array, skeleton: Skeleton) -> Node:
    """The nodes, with the mean lengths of the bones; at rest the body stands with its arms stretched sidewards."""
    children = {joint: [child for child, parent in skeleton.bones if parent == joint] for joint in range(skeleton.num_joints)}
    lengths = {child: float(np.linalg.norm(poses[:, child] - poses[:, parent], axis=1).mean()) for child, parent in skeleton.bones}

    def make(joint: int, offset: Array) -> Node:
        below, name = children[joint], skeleton.names[joint]
        if len(below) == 1:
            return Node(name, joint, below[0], offset, [make(below[0], lengths[below[0]] * _rest(skeleton, below[0]))])
        node = Node(name, joint, None, offset)
        for child in below:
            bone = make(child, lengths[child] * _rest(skeleton, child))
            node.children.append(Node(f"{name}_to_{skeleton.names[child]}", joint, child, np.zeros(3), [bone]))
        return node

    return make(skeleton.root, np.zeros(3))


def _rest(skeleton: Skeleton, joint: int) -> Array:
    """Where a bone points at rest, seen from the front: the left side of the body is at +x, as it faces +z."""
    name = skeleton.names[joint]
    side = 1.0 if name.startswith("left_") else -1.0 if name.startswith("right_") else 0.0
    if any(part in name for part in ("shoulder", "elbow", "wrist", "hip")):
        return np.array([side, 0.0, 0.0])
    return np.array([0.0, -1.0, 0.0]) if side else np.array([0.0, 1.0, 0.0])


def _described(node: Node, depth: int) -> list[str]:
    indent = "  " * depth
    offset = " ".join(f"{value:.5f}" for value in CENTIMETRES * node.offset)
    channels = f"CHANNELS 6 Xposition Yposition Zposition {CHANNELS}" if depth == 0 else f"CHANNELS 3 {CHANNELS}"
    kind = "ROOT" if depth == 0 else "JOINT"
    inside = [f"{indent}  OFFSET {offset}", f"{indent}  {channels}"]
    for child in node.children:
        inside += _described(child, depth + 1)
    if not node.children:  # the last joint of a limb: an end is asked for, and must have a length
        inside += [f"{indent}  End Site", f"{indent}  {{", f"{indent}    OFFSET 0.00000 5.00000 0.00000", f"{indent}  }}"]
    return [f"{indent}{kind} {node.name}", f"{indent}{{", *inside, f"{indent}}}"]


def _rotations(poses: Array, root: Node, skeleton: Skeleton) -> list[Array]:
    """Angles (T, 3) of every node in the order of the file, degrees."""
    found: list[Array] = []

    def visit(node: Node, above: Rotation) -> None:
        """`above` turns the node's parent into the world."""
        turn = Rotation.identity(len(poses))
        if node.points_at is not None:
            wanted = above.inv().apply(poses[:, node.points_at] - poses[:, node.joint])
            turn = _swing(node.children[0].offset, wanted)
        elif len(node.children) > 1:
            turn = _body_turn(poses, node, above)
        found.append(turn.as_euler("ZXY", degrees=True))  # capitals: about the axes as turned so far, which is what BVH means
        for child in node.children:
            visit(child, above * turn)

    visit(root, Rotation.identity(len(poses)))
    return found


def _swing(rest: Array, wanted: Array) -> Rotation:
    """The smallest turns that bring a direction (3) to others (T, 3)."""
    start = rest / max(float(np.linalg.norm(rest)), 1e-12)
    norms = np.linalg.norm(wanted, axis=1, keepdims=True)
    end = np.where(norms > 1e-12, wanted / np.maximum(norms, 1e-12), start)
    axis = np.cross(start, end)
    sine, cosine = np.linalg.norm(axis, axis=1), end @ start
    across = np.eye(3)[np.abs(start).argmin()]  # any axis across, for half a turn
    across = np.cross(start, across) / np.linalg.norm(np.cross(start, across))
    axis = np.where(sine[:, None] > 1e-9, axis / np.maximum(sine, 1e-12)[:, None], across)
    return Rotation.from_rotvec(axis * np.arctan2(sine, cosine)[:, None])


def _body_turn(poses: Array, node: Node, above: Rotation) -> Rotation:
    """The turn that fits all bones which start in a joint best, so that hips and shoulders turn with the body."""
    rest = np.stack([child.children[0].offset for child in node.children])
    joints = [child.children[0].joint for child in node.children]
    wanted = poses[:, joints] - poses[:, node.joint, None]
    fits = []
    for frame, local in enumerate(wanted):
        u, _, vt = np.linalg.svd(above[frame].inv().apply(local).T @ rest)
        fits.append(u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt)
    return Rotation.from_matrix(np.array(fits))
