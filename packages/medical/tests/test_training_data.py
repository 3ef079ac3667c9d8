"""Prepared cases, patches, augmentation, label conversions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import Case
from vsuite.medical.data.labels import IGNORE_INDEX, classes_to_ids, encode, ids_in, regions_to_ids, writing_order
from vsuite.medical.data.training_data import CaseStore, TrainingData, ValidationData, ignore_index
from vsuite.medical.data.transforms import (
    AugmentationSettings,
    Placement,
    VoxelAugmentation,
    drop_boxes,
    random_placement,
    rotation_matrix,
    take_patch,
)
from vsuite.medical.inference import restore_label
from vsuite.medical.plan import Normalisation, Plan
from vsuite.medical.recipes import load_recipe

SHAPE = (20, 24, 18)
PLAIN = AugmentationSettings(foreground_share=0.0)


def make_plan(**changes: Any) -> Plan:
    content: dict[str, Any] = {
        "channels": ["MRI"],
        "normalisation": [Normalisation(kind="none")],
        "labels": {"background": 0, "a": 1, "b": 5},
        "patch_size": (16, 16, 16),
    }
    return Plan(**(content | changes))


def make_case(root: Path, name: str = "a", affine: np.ndarray | None = None) -> Case:
    """The image is a number that says where a voxel is; the label a block of 1 and a smaller one of 5."""
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    label[4:10, 4:10, 4:10] = 1
    label[12:14, 12:14, 12:14] = 5
    paths = [root / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return Case(name, (paths[0],), paths[1])


def everything() -> AugmentationSettings:
    """Every kind of augmentation, always."""
    ranges = {"rotation": (0.3, 0.3, 0.3), "scale": (0.8, 1.2), "elastic_magnitude": 1.0, "gain": 0.2, "shift": 0.2, "noise": 0.1}
    volumes = [name for name in AugmentationSettings.model_fields if name.endswith("_probability") and name != "turn_probability"]
    always = dict.fromkeys(volumes, 1.0)
    return AugmentationSettings(**ranges, **always, dropout_holes=2, dropout_size=(0, 3, 3))  # type: ignore[arg-type]


def test_a_sample_has_the_declared_shapes_and_types(tmp_path: Path) -> None:
    data = TrainingData([make_case(tmp_path)], make_plan(), everything(), tmp_path / "cache")
    sample = data.sample(0, np.random.default_rng(0))
    assert sample["image"].shape == sample["label"].shape == (1, 16, 16, 16)
    assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.int64)
    assert set(sample["label"].unique().tolist()) <= {0, 1, 2}
    regions = make_plan(labels={"background": 0, "whole": [1, 5], "core": [5]}, regions_class_order=[1, 5])
    sample = TrainingData([make_case(tmp_path)], regions, everything(), tmp_path / "cache").sample(0, np.random.default_rng(0))
    assert (sample["label"].shape, sample["label"].dtype) == ((2, 16, 16, 16), torch.float32)
    assert (sample["label"][0] >= sample["label"][1]).all()


def test_a_sample_follows_its_generator_alone(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name) for name in "ab"]
    data = TrainingData(cases, make_plan(), everything(), tmp_path / "cache")
    np.random.seed(1)  # noqa: NPY002  the global states must not matter
    torch.manual_seed(1)
    first = data.sample(1, np.random.default_rng(7))
    data.sample(0, np.random.default_rng(3))
    fresh = TrainingData(cases, make_plan(), everything(), tmp_path / "cache")
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    second = fresh.sample(1, np.random.default_rng(7))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["label"], second["label"])
    assert not torch.equal(first["image"], fresh.sample(1, np.random.default_rng(8))["image"])


def test_without_augmentation_a_patch_is_a_piece_of_the_volume(tmp_path: Path) -> None:
    data = TrainingData([make_case(tmp_path)], make_plan(), PLAIN, tmp_path / "cache")
    whole = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    for seed in range(5):
        image = data.sample(0, np.random.default_rng(seed))["image"][0].numpy()
        start = np.unravel_index(int(image[0, 0, 0]), SHAPE)
        np.testing.assert_array_equal(image, whole[tuple(slice(i, i + 16) for i in start)])


def test_a_volume_smaller_than_the_patch_is_padded(tmp_path: Path) -> None:
    data = TrainingData([make_case(tmp_path)], make_plan(patch_size=(24, 16, 32)), PLAIN, tmp_path / "cache")
    sample = data.sample(0, np.random.default_rng(0))
    assert sample["image"].shape[1:] == (24, 16, 32)
    assert int((sample["image"] > 0).sum()) == 20 * 16 * 18


def test_foreground_patches_hold_each_class_about_evenly(tmp_path: Path) -> None:
    plan = make_plan(patch_size=(4, 4, 4))
    data = TrainingData([make_case(tmp_path)], plan, AugmentationSettings(foreground_share=1.0), tmp_path / "cache")
    labels = [data.sample(0, np.random.default_rng(seed))["label"][0] for seed in range(60)]
    centres = [int(label[2, 2, 2]) for label in labels]
    assert 0 not in centres
    assert 18 <= centres.count(2) <= 42  # class b is 27 times smaller than a


def test_axes_crop_and_spacing_reach_the_store(tmp_path: Path) -> None:
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])  # x runs left: the store turns it to RAS
    case = make_case(tmp_path, affine=affine)
    plan = make_plan(axes=(2, 1, 0), crop=((0, 20), (4, 24), (1, 17)))
    stored = CaseStore(tmp_path / "cache", plan).get(case)
    whole = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)[::-1]
    np.testing.assert_array_equal(stored.image[0], whole[:, 4:24, 1:17].transpose(2, 1, 0))
    assert stored.spacing == (2.0, 1.0, 1.0)
    finer = CaseStore(tmp_path / "cache", make_plan(spacing=(1.0, 1.0, 1.0))).get(case)
    assert finer.image.shape == (1, 20, 24, 35)
    assert finer.target.shape == finer.image.shape
    with pytest.raises(InputError, match=r"crops axis z to 10\.\.90, but the volume has 18"):
        CaseStore(tmp_path / "cache", make_plan(crop=((0, 20), (0, 24), (10, 90)))).get(case)


def test_the_store_is_used_again_until_a_file_or_the_plan_changes(tmp_path: Path) -> None:
    case, folder = make_case(tmp_path), tmp_path / "cache"
    CaseStore(folder, make_plan()).prepare([case], progress=False)
    files = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(files) == 4
    CaseStore(folder, make_plan(patch_size=(32, 32, 32))).get(case)  # the patch has no part in it
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == files
    CaseStore(folder, make_plan(normalisation=[Normalisation(kind="zscore")])).get(case)
    assert len(list(folder.iterdir())) == 8
    os.utime(case.images[0], ns=(1, 1))
    CaseStore(folder, make_plan()).get(case)
    assert len(list(folder.iterdir())) == 12


def test_an_interrupted_store_is_finished(tmp_path: Path) -> None:
    case, folder = make_case(tmp_path), tmp_path / "cache"
    CaseStore(folder, make_plan()).get(case)
    next(folder.glob("*.facts.npy")).unlink()
    next(folder.glob("*.image.npy")).write_bytes(b"half")
    assert CaseStore(folder, make_plan()).get(case).image.shape == (1, *SHAPE)


# --- spatial sampling ---


def sampled_by_scipy(volume: np.ndarray, placement: Placement, order: int) -> np.ndarray:
    """The same patch by scipy, with a value of 0 beyond the volume."""
    matrix = np.eye(3) if placement.matrix is None else placement.matrix
    grid = np.indices(placement.size).reshape(3, -1) - (np.array(placement.size)[:, None] - 1) / 2
    points = matrix @ grid + np.array(placement.centre)[:, None]
    padded = np.pad(volume, 40)
    return ndimage.map_coordinates(padded, points + 40, order=order, mode="constant").reshape(placement.size)


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    zoom=st.floats(0.6, 1.6),
    start=st.tuples(*[st.integers(-12, 20)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 2.0)] * 3),
)
def test_rotation_and_scale_agree_with_scipy(
    angles: tuple[float, ...], zoom: float, start: tuple[int, int, int], spacing: tuple[float, ...]
) -> None:
    volume = np.random.default_rng(0).normal(size=(14, 17, 12)).astype(np.float32)
    sides = np.array(spacing)
    placement = Placement(start, (8, 9, 10), rotation_matrix(angles) * sides / sides[:, None] / zoom)
    image, target = take_patch(volume[None], volume[None], placement)
    np.testing.assert_allclose(image[0], sampled_by_scipy(volume, placement, 1), atol=2e-4)
    same = np.isclose(target[0], sampled_by_scipy(volume, placement, 0))
    assert same.mean() > 0.99  # points half-way between two voxels may go either way


def test_rotation_keeps_lengths_in_millimetres() -> None:
    settings_ = AugmentationSettings(rotation_probability=1.0, rotation=(0.5, 0.5, 0.5))
    spacing = np.array([3.0, 1.0, 0.5])
    placement = random_placement((0, 0, 0), (8, 8, 8), spacing, settings_, np.random.default_rng(0))
    assert placement.matrix is not None
    physical = spacing[:, None] * placement.matrix / spacing
    np.testing.assert_allclose(physical @ physical.T, np.eye(3), atol=1e-12)


def test_the_edge_is_repeated_as_monai_does() -> None:
    from monai.transforms import Rotate

    volume = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    placement = Placement((2, 3, 4), (12, 12, 12), rotation_matrix((0.3, 0.0, 0.0)))
    image, target = take_patch(volume, volume, placement, label_interpolation="linear", edge=True)
    crop = volume[:, 2:14, 3:15, 4:16]
    wanted = Rotate(angle=(0.3, 0.0, 0.0), keep_size=True, mode="bilinear", padding_mode="border")(crop)
    np.testing.assert_allclose(image, np.asarray(wanted), atol=1e-4)
    assert torch.equal(image, target)


def test_deformation_moves_image_and_label_together() -> None:
    volume = np.zeros((1, 30, 30, 30), np.float32)
    volume[:, 8:22, 8:22, 8:22] = 1
    settings_ = AugmentationSettings(elastic_probability=1.0, elastic_magnitude=2.0, elastic_spacing=10)
    placement = random_placement((0, 0, 0), (30, 30, 30), (1, 1, 1), settings_, np.random.default_rng(1))
    image, target = take_patch(volume, volume, placement)
    assert ((image > 0.5) == (target > 0.5)).float().mean() > 0.995
    assert 100 < float((image - torch.from_numpy(volume)).abs().sum()) < 3000


def test_mirroring_turns_only_the_plan_s_axes(tmp_path: Path) -> None:
    plan, always = make_plan(patch_size=SHAPE, mirror_axes=(1,)), AugmentationSettings(foreground_share=0.0, mirror_probability=1.0)
    image = TrainingData([make_case(tmp_path)], plan, always, tmp_path / "cache").sample(0, np.random.default_rng(0))["image"][0]
    np.testing.assert_array_equal(image, np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)[:, ::-1])


# --- voxel values ---


def test_boxes_are_dropped_from_image_and_label_as_published() -> None:
    augmentation = load_recipe("brats2017").augmentation
    dropped = 0
    for seed in range(20):
        image, label = torch.ones(4, 12, 96, 96), torch.ones(3, 12, 96, 96)
        drop_boxes(image, label, augmentation, np.random.default_rng(seed))
        assert torch.equal(image[0], label[0])
        assert torch.equal(image[0, 0], image[3, 11])  # holes go through the whole first axis
        holes = int((image[0, 0] == 0).sum())
        assert holes == 0 or 49 <= holes <= 20 * 49
        dropped += holes > 0
    assert 5 <= dropped <= 15


def test_gibbs_is_monai_s_and_always_on_in_brats() -> None:
    from monai.transforms import GibbsNoise

    image = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 12, 16, 12)).astype(np.float32))
    result = VoxelAugmentation(load_recipe("brats2017").augmentation)(image, np.random.default_rng(0))
    np.testing.assert_allclose(result, np.asarray(GibbsNoise(alpha=0.5)(image)), atol=1e-5)
    assert type(result) is torch.Tensor


@pytest.mark.parametrize("kind", ["smooth", "low_resolution", "gain", "shift", "contrast", "gamma", "noise", "gibbs"])
def test_each_voxel_augmentation_changes_values_and_nothing_else(kind: str) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 12, 16, 12)).astype(np.float32))
    settings_ = AugmentationSettings(**{f"{kind}_probability": 1.0}, gain=0.2, shift=0.2, noise=0.1, gibbs=(0.3, 0.5))  # type: ignore[arg-type]
    result = VoxelAugmentation(settings_)(image.clone(), np.random.default_rng(0))
    assert (result.shape, result.dtype) == (image.shape, torch.float32)
    assert result.isfinite().all()
    change = float((result - image).abs().mean())
    assert 0.001 < change < 1.0
    assert torch.equal(VoxelAugmentation(AugmentationSettings())(image.clone(), np.random.default_rng(0)), image)


def test_training_needs_cases() -> None:
    with pytest.raises(InputError, match="no training cases"):
        TrainingData([], make_plan(), PLAIN, "unused")


def test_linear_labels_of_classes_follow_a_turned_border_more_closely() -> None:
    """A ball stays a ball however it is turned; half a voxel off, the largest interpolated mask is nearer to it than the nearest voxel."""
    points = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")).astype(np.float64)

    def ball(centre: float) -> np.ndarray:
        return (((points - centre) ** 2).sum(0, keepdims=True) <= 64).astype(np.int16)

    turn = rotation_matrix((0.4, 0.3, 0.2))
    placement = Placement((0, 0, 0), (24, 24, 24), matrix=turn)
    wrong = {}
    for interpolation in ("nearest", "linear"):
        target = ball(11.5)
        _, label = take_patch(target.astype(np.float32), target, placement, label_interpolation=interpolation, num_classes=2)
        assert set(np.unique(label)) == {0.0, 1.0}
        wrong[interpolation] = int((label.numpy() != ball(11.5)).sum())
    assert wrong["linear"] < 0.8 * wrong["nearest"]


# --- labels ---


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_ids_are_found_in_any_type(dtype: type[np.generic], order: Any) -> None:
    label = np.zeros((1, 3, 4, 5), dtype, order=order)
    label[0, 0, 1, 2], label[0, 2, 3, 4] = 7, np.iinfo(dtype).max
    assert ids_in(label) == {0, 7, int(np.iinfo(dtype).max)}


def test_ids_become_outputs_and_outputs_ids() -> None:
    plan = make_plan(labels={"background": 0, "a": 7, "b": 3, "ignore": 9})
    label = np.array([0, 3, 7, 9], np.uint8)
    np.testing.assert_array_equal(encode(label, plan), [[0, 2, 1, IGNORE_INDEX]])
    np.testing.assert_array_equal(classes_to_ids(np.array([0, 1, 2]), plan), [0, 7, 3])
    assert classes_to_ids(np.array([1]), plan).dtype == np.uint8
    assert ignore_index(plan) == IGNORE_INDEX
    assert ignore_index(make_plan()) is None


def test_brats_regions_and_back() -> None:
    recipe = load_recipe("brats2017").plan
    plan = make_plan(labels=recipe.labels, regions_class_order=recipe.regions_class_order)
    label = np.array([0, 1, 2, 3])
    masks = encode(label, plan)
    np.testing.assert_array_equal(masks, [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]])  # TC, WT, ET
    assert writing_order(plan) == [1, 0, 2]
    np.testing.assert_array_equal(regions_to_ids(masks, plan), label)


def test_nnunet_regions_are_written_as_listed() -> None:
    plan = make_plan(labels={"background": 0, "a": [1, 2], "b": [2, 3, 4], "c": [4]}, regions_class_order=[1, 3, 4])
    assert writing_order(plan) == [0, 1, 2]
    np.testing.assert_array_equal(regions_to_ids(np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]]), plan), [1, 3, 4])


# --- validation ---


def test_validation_keeps_the_file_s_own_grid(tmp_path: Path) -> None:
    case = make_case(tmp_path, affine=np.diag([-1.0, 1.0, 2.0, 1.0]))
    data = ValidationData([case], make_plan(spacing=(1.0, 1.0, 1.0)))
    item = data[0]
    assert len(data) == 1
    assert item.label.array.shape == (1, *SHAPE)
    assert item.prepared.tensor.shape == (1, 20, 24, 35)
    assert item.prepared.file_shape == SHAPE
    assert data[0] is item
    assert ValidationData([case], make_plan(), memory=0)[0] is not ValidationData([case], make_plan(), memory=0)[0]
    with pytest.raises(IndexError):
        data[1]
    with pytest.raises(InputError, match="no label to validate on"):
        ValidationData([Case("x", case.images)], make_plan())


def test_validation_scores_the_plan_s_crop_alone(tmp_path: Path) -> None:
    case = make_case(tmp_path, affine=np.diag([-1.0, 1.0, 1.0, 1.0]))
    plan = make_plan(axes=(2, 1, 0), crop=((2, 17), (3, 12), (4, 18)), normalisation=[Normalisation(kind="slice_minmax")])
    whole, item = ValidationData([case], plan.model_copy(update={"crop": None}))[0], ValidationData([case], plan)[0]
    assert torch.equal(item.prepared.tensor, whole.prepared.tensor[:, 4:18, 3:12, 2:17])  # normalised before it is cut
    flipped = whole.label.array[:, ::-1]  # the file runs to the left
    assert np.array_equal(item.label.array, flipped[:, 2:17, 3:12, 4:18])
    assert np.array_equal(item.image.array[0], item.prepared.tensor[0].permute(2, 1, 0).numpy())
    assert item.prepared.file_shape == (15, 9, 14)
    assert np.allclose(item.label.affine @ [0, 0, 0, 1], whole.label.affine @ [19 - 2, 3, 4, 1])
    ids = torch.from_numpy(item.label.array[0].astype(np.int64)).permute(2, 1, 0)  # a network that knows: D, H, W of the crop
    logits = torch.stack([ids == i for i in (0, 1, 5)]).float()
    assert np.array_equal(restore_label([logits], 0, item.prepared, plan), item.label.array[0])
