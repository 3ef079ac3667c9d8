from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.restoration.resize import crop_to_multiple, imresize, resize_weights

sides = st.integers(1, 40)
scales = st.floats(0.1, 5)
kernels = st.sampled_from(["bicubic", "lanczos"])


@settings(max_examples=60, deadline=None)
@given(sides, sides, scales, kernels, st.booleans(), st.integers(0, 255))
def test_a_flat_picture_stays_flat(height, width, scale, kernel, antialias, value):
    flat = np.full((height, width, 3), value, np.uint8)
    for convention in ("A", "B"):
        result = imresize(flat, scale, kernel=kernel, antialias=antialias, convention=convention)
        assert result.shape == (int(np.ceil(height * scale)), int(np.ceil(width * scale)), 3)
        assert (result == value).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.sampled_from([0.25, 1 / 3, 0.5, 2, 3, 4]), kernels, st.sampled_from(["A", "B"]))
def test_mirrored_pictures_give_mirrored_results(blocks, scale, kernel, convention):
    image = np.random.default_rng(blocks).integers(0, 256, (12, 12 * blocks), dtype=np.uint8)
    straight = imresize(image, scale, kernel=kernel, convention=convention)
    mirrored = imresize(image[:, ::-1], scale, kernel=kernel, convention=convention)[:, ::-1]
    assert np.abs(straight.astype(int) - mirrored.astype(int)).max() <= 1  # sums in another order may round otherwise


def test_a_ramp_keeps_its_slope():
    ramp = np.tile(np.arange(32.0), (8, 1))
    doubled = imresize(ramp, 2)
    assert np.allclose(doubled[4, 8:-8], (np.arange(64) + 0.5)[8:-8] / 2 - 0.5)
    assert np.allclose(imresize(ramp, 0.5)[2, 4:-4], (np.arange(16) * 2 + 0.5)[4:-4])


def test_scale_1_changes_nothing():
    image = np.random.default_rng(1).integers(0, 65536, (9, 7), dtype=np.uint16)
    assert np.array_equal(imresize(image, 1), image)
    assert np.array_equal(imresize(image, size=(9, 7), convention="B"), image)


def test_floats_may_overshoot_and_whole_numbers_may_not():
    edge = np.zeros((8, 8))
    edge[:, 4:] = 1.0
    assert imresize(edge, 4).max() > 1.01
    whole = imresize((edge * 255).astype(np.uint8), 4)
    assert whole.dtype == np.uint8
    assert (whole.min(), whole.max()) == (0, 255)


def test_edges_are_mirrored_in_a_and_clamped_in_b():
    indices, weights = resize_weights(4, 1, 0.25)
    assert sorted(set(indices.ravel())) == [0, 1, 2, 3]
    assert weights.sum() == pytest.approx(1)
    ramp = np.arange(0, 160, 10, dtype=np.uint8)[None].repeat(4, axis=0)
    assert not np.array_equal(imresize(ramp, 0.25), imresize(ramp, 0.25, convention="B"))


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="convention B"):
        imresize(np.zeros((4, 4)), 2, convention="B")
    with pytest.raises(InputError, match="cannot resize 4 x 0"):
        imresize(np.zeros((0, 4)), 2)
    with pytest.raises(InputError, match="resize kernel"):
        imresize(np.zeros((4, 4)), 2, kernel="cubic")


def test_crop_to_multiple():
    assert crop_to_multiple(np.zeros((17, 12, 3)), 4).shape == (16, 12, 3)
