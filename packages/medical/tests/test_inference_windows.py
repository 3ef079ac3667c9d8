"""Sliding windows and the way back to the file's grid, against dense computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from vsuite.core.errors import InputError
from vsuite.medical.data.geometry import ras_view, resample_to
from vsuite.medical.data.nifti import Volume
from vsuite.medical.inference import keep_largest_component, remove_small_components, restore_label, sliding_window, stream_slabs
from vsuite.medical.inference.sliding_window import _Sums, thinnest_slab, window_starts
from vsuite.medical.plan import Normalisation, Plan
from vsuite.medical.preprocess import preprocess

PLAN = {"channels": ["x"], "normalisation": [Normalisation(kind="none")]}
SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.7])


def position_dependent(windows: torch.Tensor) -> torch.Tensor:
    """Two outputs that depend on the place within the window, so that positions and weights show."""
    ramp = torch.linspace(-1, 1, windows[0, 0].numel()).reshape(windows.shape[2:])
    return torch.cat([windows * (1 + ramp), windows.sin() - ramp], 1)


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.integers(1, 17)] * 3),
    st.tuples(*[st.integers(1, 8)] * 3),
    SHARES,
    st.sampled_from(["constant", "gaussian"]),
    st.integers(0, 2),
    st.integers(1, 5),
)
def test_slabs_put_together_are_monais_result(size, window, overlap, blend, axis, batch_size):
    volume = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    expected = sliding_window_inference(volume[None], window, 3, position_dependent, overlap, blend)[0]
    slabs = stream_slabs(volume, window, position_dependent, overlap, blend, axis=axis, batch_size=batch_size)
    got = torch.cat([slab.clone() for slab in slabs], axis + 1)
    assert torch.allclose(got, expected, atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 20), st.floats(0, 0.95))
def test_windows_cover_the_axis(size, window, overlap):
    size = max(size, window)
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert all(0 < b - a <= window for a, b in itertools.pairwise(starts))


def test_an_identity_is_returned_as_it_is_and_progress_counts_windows():
    volume, seen = torch.randn(2, 1, 9, 10, 5), []
    got = sliding_window(volume, (4, 4, 8), lambda w: w, 0.5, progress=lambda done, total: seen.append((done, total)))
    assert torch.allclose(got, volume, atol=1e-6)
    assert seen[-1] == (16, 16)
    assert [done for done, _ in seen[:16]] == list(range(1, 17))


def test_outputs_larger_than_the_window_are_cropped():
    volume = torch.randn(1, 7, 7, 7)
    got = sliding_window(volume, (5, 5, 5), lambda w: torch.nn.functional.pad(w, (0, 3, 0, 3, 0, 3)))
    assert torch.allclose(got, volume, atol=1e-6)
    with pytest.raises(InputError, match="B x K x window is expected"):
        sliding_window(volume, (5, 5, 5), lambda w: w[..., :4])


@pytest.mark.parametrize(
    ("change", "what"),
    [({"overlap": 1.0}, "overlap"), ({"blend": "cubic"}, "blend"), ({"batch_size": 0}, "batch_size"), ({"window": (0, 4, 4)}, "window")],
)
def test_options_out_of_range(change, what):
    with pytest.raises(InputError, match=what):
        sliding_window(torch.zeros(1, 8, 8, 8), **{"window": (4, 4, 4), "network": lambda w: w, **change})


def test_a_full_device_is_an_error_in_words():
    def full(windows: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(InputError, match=r"2 windows of 4 x 4 x 4 voxels do not fit .* batch size"):
        sliding_window(torch.zeros(1, 8, 8, 8), (4, 4, 4), full, batch_size=2)


def test_a_full_device_hands_the_sums_to_the_host(monkeypatch):
    calls, moved = [], []

    def full_once(windows: torch.Tensor) -> torch.Tensor:
        calls.append(len(windows))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("full")
        return windows

    monkeypatch.setattr(_Sums, "to_host", lambda self: moved.append(True) or True)
    volume = torch.randn(1, 8, 8, 8)
    assert torch.allclose(sliding_window(volume, (4, 4, 4), full_once, batch_size=3), volume, atol=1e-6)
    assert len(moved) == 1


def test_sums_that_do_not_fit_the_device_are_kept_on_the_host(monkeypatch):
    zeros = torch.zeros

    def no_room(*size, device=None):
        if device is not None:
            raise torch.OutOfMemoryError("full")
        return zeros(*size)

    monkeypatch.setattr(torch, "zeros", no_room)
    volume = torch.randn(1, 8, 8, 8)
    assert torch.allclose(sliding_window(volume, (4, 4, 4), lambda w: w), volume, atol=1e-6)


def test_the_slab_is_across_the_longest_axis_in_windows():
    assert thinnest_slab((512, 512, 100), (96, 128, 96)) == 0
    assert thinnest_slab((20, 20, 100), (96, 96, 96)) == 2


# --- the way back ---


def affine_of(signs, order, spacing, angle=0.2):
    directions = np.eye(3)[:, list(order)] * np.array(signs)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ directions @ np.diag(spacing)
    affine[:3, 3] = 5, -6, 7
    return affine


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.permutations(range(3)),
    st.tuples(*[st.floats(0.5, 2.5)] * 3),
    st.one_of(st.none(), st.tuples(*[st.floats(0.5, 2.5)] * 3)),
    st.permutations(range(3)),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(["linear", "nearest"]),
)
def test_plane_by_plane_is_the_dense_way(shape, signs, order, spacing, wanted, axes, axis, regions, interpolation):
    labels = {"background": 0, "whole": [1, 2], "core": [2]} if regions else {"background": 0, "a": 3, "b": 1}
    plan = Plan(**PLAN, labels=labels, regions_class_order=[1, 2] if regions else None, spacing=wanted, axes=axes, patch_size=(3, 4, 5))
    affine = affine_of(signs, order, spacing)
    rng = np.random.default_rng(0)
    prepared = preprocess(Volume(rng.normal(size=(1, *shape)).astype(np.float32), affine), plan)
    logits = rng.normal(size=(plan.num_outputs, *prepared.tensor.shape[1:])).astype(np.float32)
    cuts = torch.split(torch.from_numpy(logits), 2, dim=axis + 1)
    scores = np.zeros((plan.num_outputs, *shape), np.float32)
    got = restore_label(cuts, axis, prepared, plan, interpolation=interpolation)
    assert np.array_equal(got, restore_label(cuts, axis, prepared, plan, interpolation=interpolation, probabilities=scores))

    # Dense: all logits to the file's grid (one axis after the other by geometry's own resampling), then the decision.
    in_ras = logits.transpose(0, *(np.argsort(axes) + 1))
    mode = interpolation
    in_file = np.zeros((plan.num_outputs, *shape), np.float32)
    ras_view(in_file, affine)[...] = resample_to(in_ras, prepared.affine, prepared.ras_file_shape, prepared.ras_file_affine, mode)
    if regions:
        expected, chances = np.where(in_file[1] > 0, 2, np.where(in_file[0] > 0, 1, 0)), 1 / (1 + np.exp(-in_file))
    else:
        expected, chances = np.array([0, 3, 1])[in_file.argmax(0)], np.exp(in_file) / np.exp(in_file).sum(0)
    assert got.dtype == np.uint8
    # Rounding may turn the decision only where two classes tie.
    top = np.sort(in_file, 0)
    certain = np.abs(in_file).min(0) > 1e-5 if regions else top[-1] - top[-2] > 1e-5
    assert np.array_equal(got[certain], expected[certain])
    assert np.allclose(scores, chances, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.permutations(range(3)), st.permutations(range(3))
)
def test_a_round_trip_without_resampling_is_bit_equal(shape, signs, order, axes):
    plan = Plan(**PLAN, labels={"background": 0, "a": 1, "b": 2, "c": 7}, axes=axes, patch_size=(4, 4, 4))
    classes = np.random.default_rng(1).integers(0, 4, shape)
    affine = affine_of(signs, order, (1, 2, 3))
    prepared = preprocess(Volume(classes[None].astype(np.float32), affine), plan)
    logits = torch.nn.functional.one_hot(prepared.tensor[0].long(), 4).movedim(-1, 0).float()
    assert np.array_equal(restore_label([logits], 0, prepared, plan), np.array([0, 1, 2, 7])[classes])


# --- cleaning ---


def test_components_are_cleaned_class_by_class():
    label = np.zeros((9, 3, 3), np.uint8)
    label[0:2], label[3:4], label[5:9, 0] = 1, 1, 2
    label[4, 2, 2] = 2
    largest = keep_largest_component(label)
    assert np.array_equal(largest == 1, (np.arange(9) < 2)[:, None, None] & (label == 1))
    assert (largest == 2).sum() == 12
    assert np.array_equal(keep_largest_component(label, [2]) == 1, label == 1)
    small = remove_small_components(label, 10, (1, 1, 1.0))
    assert [(small == i).sum() for i in (1, 2)] == [18, 12]
    assert np.array_equal(remove_small_components(label, 10, (10, 1, 1)), label)  # every voxel is 10 mm^3


def test_of_two_parts_of_one_size_one_is_kept():
    label = np.zeros((5, 2, 2), np.uint8)
    label[0], label[4] = 3, 3
    assert (keep_largest_component(label) == 3).sum() == 4


def test_ids_that_count_as_one_are_cleaned_as_one():
    label = np.array([1, 2, 2, 0, 1, 1, 0, 3], np.uint8).reshape(8, 1, 1)
    assert keep_largest_component(label, [[1, 2]]).ravel().tolist() == [1, 2, 2, 0, 0, 0, 0, 3]
    assert keep_largest_component(label, [1, 2]).ravel().tolist() == [0, 2, 2, 0, 1, 1, 0, 3]


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("largest", [300, 70_000])
def test_large_ids_are_written(interpolation, largest):
    plan = Plan(channels=["a"], normalisation=[{"kind": "none"}], labels={"background": 0, "organ": largest}, patch_size=(4, 4, 4))
    volume = Volume(np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    prepared = preprocess(volume, plan.model_copy(update={"spacing": (2.0, 2.0, 2.0)}))
    logits = torch.zeros(2, *prepared.tensor.shape[1:])
    logits[1] = 1
    label = restore_label([logits], 0, prepared, plan, interpolation=interpolation)
    assert label.shape == (4, 5, 6)
    assert set(label.ravel().tolist()) == {largest}
