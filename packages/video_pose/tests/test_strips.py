"""Strips and animations of predicted frames: where what stands, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from vsuite.core.errors import InputError
from vsuite.video_pose.render.strips import GAP, LABEL, write_animation, write_strip

SIDE = 32  # shown three times as large


def clip(frames: int, value: float, channels: int = 1) -> np.ndarray:
    return np.full((frames, channels, SIDE, SIDE), value, np.float32)


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """The middle of a frame in a strip."""
    y, x = GAP + row * (3 * SIDE + GAP) + 48, LABEL + column * (3 * SIDE + GAP) + 48
    return picture[y, x]


def test_a_strip_has_rows_of_what_was_seen_what_came_what_was_predicted_and_the_error(tmp_path: Path) -> None:
    path = write_strip(tmp_path / "a.png", clip(3, 0.2), clip(2, 0.6), clip(2, 1.0))
    picture = np.asarray(Image.open(path))
    assert picture.shape == (GAP + 4 * (3 * SIDE + GAP), LABEL + 3 * (3 * SIDE + GAP), 3)
    assert (cell(picture, 0, 2) == 51).all()
    assert (cell(picture, 1, 1) == 255).all()
    assert (cell(picture, 2, 0) == 153).all()
    assert (cell(picture, 1, 2) == (16, 18, 22)).all(), "there are two later frames"
    assert cell(picture, 3, 0).astype(int).sum() > 300, "an error of 0.4 is bright"
    exact = np.asarray(Image.open(write_strip(tmp_path / "b.png", clip(3, 0.2), clip(2, 1.0), clip(2, 1.0))))
    assert cell(exact, 3, 0).astype(int).sum() < 30


def test_without_the_truth_there_are_two_rows_and_colours_stay(tmp_path: Path) -> None:
    colours = clip(2, 0.0, 3)
    colours[:, 0] = 1
    picture = np.asarray(Image.open(write_strip(tmp_path / "a.png", colours, colours)))
    assert picture.shape[0] == GAP + 2 * (3 * SIDE + GAP)
    assert (cell(picture, 1, 1) == (255, 0, 0)).all()


def test_values_in_a_unit_of_their_own_span_black_to_white(tmp_path: Path) -> None:
    observed, truth = clip(1, 250.0), clip(1, 300.0)
    picture = np.asarray(Image.open(write_strip(tmp_path / "a.png", observed, clip(1, 400.0), truth)))
    assert (cell(picture, 0, 0) == 0).all()
    assert (cell(picture, 1, 0) == 255).all()
    assert (cell(picture, 2, 0) == 255).all(), "what lies beyond the true values is shown as these"


@pytest.mark.parametrize("with_truth", [True, False])
def test_an_animation_shows_the_observed_and_then_the_predicted_frames(tmp_path: Path, with_truth: bool) -> None:
    truth = clip(2, 1.0) if with_truth else None
    path = write_animation(tmp_path / "a.gif", clip(3, 0.2), clip(2, 0.6), truth, fps=5)
    with Image.open(path) as image:
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)]
        assert image.info["duration"] == 200
    assert len(frames) == 5
    middle = 24 + 48
    right = frames[0].shape[1] - 52
    assert np.abs(frames[0][middle, right] - 51).max() <= 12
    assert np.abs(frames[4][middle, right] - 153).max() <= 12
    assert frames[0].shape[1] == (2 if with_truth else 1) * (3 * SIDE + 2 * GAP)
    if with_truth:
        assert frames[4][middle, 52].min() >= 240


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for wrong in ((clip(2, 0), clip(2, 0, 3), None), (clip(2, 0), clip(2, 0), clip(3, 0)), (clip(2, 0)[0], clip(2, 0), None)):
        with pytest.raises(InputError):
            write_strip(tmp_path / "a.png", *wrong)
        with pytest.raises(InputError):
            write_animation(tmp_path / "a.gif", *wrong)
    assert not list(tmp_path.iterdir())
