from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vsuite.core.errors import InputError
from vsuite.medical.data import geometry

ORIENTATIONS = ["".join(letters) for order in itertools.permutations(["LR", "PA", "IS"]) for letters in itertools.product(*order)]


def affine_of(codes: str, spacing=(0.8, 1.1, 2.5), angles=(0.0, 0.0, 0.0), origin=(12.0, -7.0, 30.0)) -> np.ndarray:
    """An affine of the given orientation, turned by `angles` in degrees about the world's axes."""
    directions = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        world = next(w for w, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        directions[world, axis] = 1 if code in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ directions @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


volumes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31)).map(
    lambda t: np.random.default_rng(t[3]).normal(size=(2, *t[:3])).astype(np.float32)
)
angles = st.tuples(*[st.floats(-40, 40)] * 3)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_orientations_are_named_by_the_closest_axes(codes):
    assert geometry.orientation_of(affine_of(codes, angles=(10, -15, 20))) == codes


@settings(max_examples=60, deadline=None)
@given(volumes, st.sampled_from(ORIENTATIONS), angles)
def test_reorienting_keeps_every_voxel_in_its_place(volume, codes, turned):
    affine = affine_of(codes, angles=turned)
    oriented, new = geometry.reorient_to_ras(volume, affine)
    assert geometry.orientation_of(new) == "RAS"
    # A voxel is found at the same place in the world, with the same values, in both arrays.
    index = np.array([s // 2 for s in volume.shape[1:]])
    moved = np.rint(np.linalg.solve(new, affine @ [*index, 1.0]))[:3].astype(int)
    assert np.allclose(new @ [*moved, 1.0], affine @ [*index, 1.0])
    assert np.array_equal(oriented[(slice(None), *moved)], volume[(slice(None), *index)])


@settings(max_examples=60, deadline=None)
@given(volumes, st.sampled_from(ORIENTATIONS), angles)
def test_filling_the_view_undoes_the_reorientation(volume, codes, turned):
    affine = affine_of(codes, angles=turned)
    back = np.zeros_like(volume)
    geometry.ras_view(back, affine)[...] = geometry.reorient_to_ras(volume, affine)[0]
    assert np.array_equal(back, volume)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.floats(0.4, 3)] * 3), st.tuples(*[st.floats(0.4, 3)] * 3), angles)
def test_linear_resampling_is_exact_for_linear_images(shape, spacing, wanted, turned):
    affine = affine_of("RAS", spacing, turned)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    slope = np.array([0.3, -0.2, 0.5])
    world = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    volume = np.tensordot(slope, world, 1)[None]
    resampled, new = geometry.resample(volume, affine, wanted)
    assert np.allclose(geometry.spacing_of(new), geometry.spacing_of(affine) if new is affine else wanted)
    assert np.allclose(new[:3, 3], affine[:3, 3])
    new_index = np.stack(np.meshgrid(*map(np.arange, resampled.shape[1:]), indexing="ij"))
    inside = np.all(new_index * (np.array(wanted) / spacing).reshape(3, 1, 1, 1) <= (np.array(shape) - 1).reshape(3, 1, 1, 1), axis=0)
    new_world = np.tensordot(new[:3, :3], new_index, 1) + new[:3, 3].reshape(3, 1, 1, 1)
    assert np.allclose(resampled[0][inside], np.tensordot(slope, new_world, 1)[inside], atol=1e-8)


def test_the_border_is_repeated():
    volume = np.arange(4.0).reshape(1, 4, 1, 1)
    resampled, _ = geometry.resample(volume, np.eye(4), (0.8, 1, 1))  # positions 0, 0.8, 1.6, 2.4, 3.2
    assert np.allclose(resampled.ravel(), [0, 0.8, 1.6, 2.4, 3])


def test_resampling_is_skipped_where_the_spacing_is_there_already():
    volume = np.ones((1, 3, 4, 5), np.float32)
    assert geometry.resample(volume, np.eye(4), (1.0004, 1, 1))[0] is volume
    assert geometry.resample(volume, np.eye(4), (2, 1, 1))[0].shape == (1, 2, 4, 5)


def test_labels_are_never_interpolated():
    label = np.array([0, 7, 0], np.uint8).reshape(1, 3, 1, 1)
    with pytest.raises(InputError, match="nearest"):
        geometry.resample(label, np.eye(4), (0.4, 1, 1))
    resampled, _ = geometry.resample(label, np.eye(4), (0.4, 1, 1), "nearest")
    assert resampled.dtype == np.uint8
    assert resampled.ravel().tolist() == [0, 0, 7, 7, 0, 0]


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, np.nan, 1), (1, 1)])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(InputError, match="spacing must be three positive"):
        geometry.resample(np.ones((1, 3, 3, 3)), np.eye(4), spacing)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ORIENTATIONS), angles, st.integers(0, 2**31))
def test_grids_that_differ_by_rounding_are_the_same(codes, turned, seed):
    affine = affine_of(codes, angles=turned)
    noise = np.zeros((4, 4))
    noise[:3] = np.random.default_rng(seed).uniform(-1, 1, (3, 4)) * 1e-5
    assert geometry.difference((3, 4, 5), affine, (3, 4, 5), affine + noise) == ""
    assert geometry.difference((3, 4, 5), affine, (3, 4, 5), affine.astype(np.float32)) == ""


def test_a_difference_says_what_and_by_how_much():
    a, moved = affine_of("RAS"), affine_of("RAS", origin=(12.0, -7.0, 32.5))
    assert geometry.difference((3, 4, 5), a, (3, 4, 6), a) == "shape differs (3 x 4 x 5 against 3 x 4 x 6)"
    assert geometry.difference((3, 4, 5), a, (3, 4, 5), moved) == "origin differs by 2.5 mm (12 x -7 x 30 against 12 x -7 x 32.5)"
    wider = geometry.difference((3, 4, 5), a, (3, 4, 5), affine_of("RAS", (0.8, 1.1, 3.0)))
    assert wider == "spacing differs by 0.5 mm (0.8 x 1.1 x 2.5 against 0.8 x 1.1 x 3)"
    turned = geometry.difference((3, 4, 5), a, (3, 4, 5), affine_of("RAS", angles=(0, 0, 5)))
    assert turned == "direction differs by up to 5 degrees (RAS against RAS)"
    both = geometry.difference((3, 4, 5), a, (3, 4, 6), moved)
    assert "shape" in both
    assert "origin" in both


def test_shear_is_measured_in_degrees():
    affine = affine_of("LPS", angles=(20, 30, 10))
    assert geometry.shear_angle(affine) < 1e-6
    affine[:3, 1] += np.tan(np.radians(7)) * affine[:3, 2] / 2.5 * 1.1
    assert geometry.shear_angle(affine) == pytest.approx(7)


def test_regions_overlap():
    label = np.array([0, 1, 2, 3]).reshape(4, 1, 1)
    regions = geometry.label_to_regions(label, [[2, 3], [1, 2, 3], [3]])
    assert regions.dtype == np.uint8
    assert regions[:, :, 0, 0].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
