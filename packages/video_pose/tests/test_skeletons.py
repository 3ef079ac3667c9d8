"""Joint layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsuite.core import InputError
from vsuite.video_pose.skeletons import (
    BODY25,
    COCO17,
    H36M17,
    HALPE26,
    NTU25,
    OPENPOSE18,
    PENN13,
    SKELETONS,
    Skeleton,
    body25_to_h36m,
    coco_to_h36m,
    convert,
    halpe_to_h36m,
    openpose18_to_h36m,
    skeleton,
)

layouts = pytest.mark.parametrize("layout", SKELETONS.values(), ids=SKELETONS.keys())


@layouts
def test_a_layout_is_one_tree(layout: Skeleton) -> None:
    assert layout.num_joints == int(layout.name[-2:]) == len(layout.parents) == len(set(layout.names))
    assert layout.parents.count(-1) == 1
    assert len(layout.bones) == layout.num_joints - 1
    for joint in range(layout.num_joints):
        seen = set()
        while joint != layout.root:
            assert joint not in seen
            seen.add(joint)
            joint = layout.parents[joint]


@layouts
def test_sides(layout: Skeleton) -> None:
    for left, right in zip(layout.left, layout.right, strict=True):
        assert layout.names[left].removeprefix("left_") == layout.names[right].removeprefix("right_")
        mirrored = layout.parents[right]
        assert layout.mirror[layout.parents[left]] == mirrored
    assert all(name.startswith(("left_", "right_")) == (i in (*layout.left, *layout.right)) for i, name in enumerate(layout.names))


@layouts
def test_flipping_twice_changes_nothing(layout: Skeleton) -> None:
    poses = np.random.default_rng(0).normal(size=(2, 4, layout.num_joints, 3)).astype(np.float32)
    before = poses.copy()
    flipped = layout.flip(poses)
    assert np.array_equal(poses, before)
    assert np.array_equal(layout.flip(flipped), poses)
    assert np.array_equal(flipped[..., layout.left, 0], -poses[..., layout.right, 0])
    assert np.array_equal(flipped[..., layout.left, 1:], poses[..., layout.right, 1:])
    assert np.array_equal(layout.flip(torch.from_numpy(poses)).numpy(), flipped)


def test_orders() -> None:
    assert COCO17.names[:6] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder")
    assert HALPE26.names[:17] == COCO17.names
    assert HALPE26.names[17:20] == ("head", "neck", "pelvis")
    assert (COCO17.left, COCO17.right) == (tuple(range(1, 17, 2)), tuple(range(2, 17, 2)))
    assert NTU25.names[20] == "spine_shoulders"
    assert (NTU25.names[7], NTU25.names[11], NTU25.names[15], NTU25.names[24]) == ("left_hand", "right_hand", "left_foot", "right_thumb")
    assert OPENPOSE18.names[1:3] == ("neck", "right_shoulder")
    assert OPENPOSE18.names[13:] == ("left_ankle", "right_eye", "left_eye", "right_ear", "left_ear")
    assert PENN13.names[:3] == ("head", "left_shoulder", "right_shoulder")
    assert H36M17.names[10:12] == ("head", "left_shoulder")


def test_conversions_keep_the_sides() -> None:
    rng = np.random.default_rng(0)
    changes = ((COCO17, coco_to_h36m), (HALPE26, halpe_to_h36m), (OPENPOSE18, openpose18_to_h36m), (BODY25, body25_to_h36m))
    for layout, change in changes:
        poses = rng.normal(size=(5, layout.num_joints, 2))
        found = change(poses)
        np.testing.assert_allclose(change(layout.flip(poses)), H36M17.flip(found), atol=1e-12)
        for name in ("left_hip", "right_knee", "left_wrist", "right_ankle", "left_elbow", "right_shoulder"):
            assert np.array_equal(found[:, H36M17.names.index(name)], poses[:, layout.names.index(name)])
        assert np.array_equal(convert(poses, layout, H36M17), found)
    assert convert(found, H36M17, H36M17) is found


def test_what_is_refused() -> None:
    poses = np.zeros((4, 18, 2))
    with pytest.raises(InputError, match=r"layout coco17 are \(..., 17, C\); got \(4, 18, 2\)"):
        coco_to_h36m(poses)
    with pytest.raises(InputError, match=r"layout halpe26 are \(..., 26, C\)"):
        convert(poses, HALPE26, H36M17)
    with pytest.raises(InputError, match="no conversion from the layout openpose18 to coco17; there is coco17 -> h36m17"):
        convert(poses, OPENPOSE18, COCO17)
    with pytest.raises(InputError, match="h36m17"):
        skeleton("h36m_17")
    assert skeleton("ntu25") is NTU25
