from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.medical.data.nifti import Volume
from vsuite.medical.plan import Normalisation, Plan
from vsuite.medical.preprocess import normalise, preprocess, preprocess_label


def plan_of(**changes) -> Plan:
    facts = {"channels": ["a", "b"], "normalisation": [Normalisation(kind="none")] * 2, "labels": {"background": 0, "organ": 1}}
    return Plan(**{**facts, "patch_size": (8, 8, 8), **changes})


@pytest.fixture
def volume() -> Volume:
    affine = np.array([[-0.9, 0, 0, 40], [0, 0, 3, -20], [0, 0.8, 0, -10], [0, 0, 0, 1.0]])  # LSA
    return Volume(np.random.default_rng(0).normal(100, 20, size=(2, 6, 7, 5)).astype(np.float32), affine)


def test_the_tensor_follows_ras_and_the_axes_of_the_plan(volume):
    prepared = preprocess(volume, plan_of(axes=(2, 1, 0)))
    ras = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(volume.array[1], volume.affine)).dataobj)  # x, y, z
    assert prepared.tensor.is_contiguous()
    assert np.array_equal(prepared.tensor[1].numpy(), ras.transpose(2, 1, 0))
    assert prepared.shape == ras.shape == prepared.ras_file_shape == (6, 5, 7)
    assert np.allclose(prepared.affine, nib.as_closest_canonical(nib.Nifti1Image(volume.array[1], volume.affine)).affine)
    assert prepared.file_shape == (6, 7, 5)


def test_the_volume_is_left_as_it_is(volume):
    before = volume.array.copy()
    preprocess(volume, plan_of(normalisation=[Normalisation(kind="zscore")] * 2, spacing=(1, 1, 1)))
    assert np.array_equal(volume.array, before)


def test_spacing_is_in_ras_order(volume):
    prepared = preprocess(volume, plan_of(spacing=(1.8, 1.0, 1.6)))
    # x: 5 steps of 0.9 = 4.5 mm; y (the file's last axis): 4 of 3 = 12 mm; z: 6 of 0.8 = 4.8 mm
    assert prepared.shape == (4, 13, 4)  # 3.5 and 13 and 4 voxels, rounded


def test_labels_follow_their_image(volume):
    plan = plan_of(spacing=(1.1, 2.0, 0.9), axes=(1, 2, 0))
    label = (volume.array[:1] > 100).astype(np.uint8) * 3
    prepared, target = preprocess(volume, plan), preprocess_label(Volume(label, volume.affine), plan)
    assert target.shape == tuple(prepared.tensor.shape[1:])
    assert target.dtype == np.uint8
    assert set(np.unique(target)) == {0, 3}


def test_another_number_of_channels_names_those_expected(volume):
    with pytest.raises(InputError, match=r"has 2 channels, expected are 3 \(FLAIR, T1w, T2w\)"):
        preprocess(volume, plan_of(channels=["FLAIR", "T1w", "T2w"], normalisation=[Normalisation()] * 3))


def test_zscore():
    values = np.random.default_rng(1).normal(1000, 5, size=(1, 20, 21, 22)).astype(np.float32)
    result = normalise(values, [Normalisation(kind="zscore")])
    expected = (values.astype(np.float64) - values.astype(np.float64).mean()) / values.astype(np.float64).std()
    assert result.dtype == np.float32
    assert np.allclose(result, expected, atol=2e-5)


def test_ct_clips_then_scales():
    values = np.array([-2000, 0, 50, 3000], np.float32).reshape(1, 4, 1, 1)
    rule = Normalisation(kind="ct", lower=-100, upper=200, mean=50, std=25)
    assert normalise(values, [rule]).ravel().tolist() == [-6, -2, 0, 6]


def test_rescale_and_none_and_constant_channels():
    values = np.stack([np.array([2.0, 4, 6]), np.array([5.0, 5, 5])]).reshape(2, 3, 1, 1).astype(np.float32)
    assert normalise(values, [Normalisation(kind="rescale_to_0_1")] * 2).reshape(2, 3).tolist() == [[0, 0.5, 1], [0, 0, 0]]
    assert normalise(values, [Normalisation(kind="zscore")] * 2)[1].ravel().tolist() == [0, 0, 0]
    assert np.array_equal(normalise(values, [Normalisation(kind="none")] * 2), values)


def test_slices_are_those_of_the_file(volume):
    prepared = preprocess(volume, plan_of(normalisation=[Normalisation(kind="slice_minmax")] * 2))
    slices = prepared.tensor.permute(0, 2, 1, 3).flatten(2)  # the file's last axis is y
    assert np.allclose(slices.amin(-1), 0)
    assert np.allclose(slices.amax(-1), 1)
