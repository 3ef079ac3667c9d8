"""Fingerprints and the plans that follow from them."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import Case, DatasetDescription, read_dataset
from vsuite.medical.data.planning import (
    CaseFacts,
    Fingerprint,
    Intensities,
    PlanSettings,
    fingerprint,
    load_fingerprint,
    load_plan,
    make_plan,
    save_fingerprint,
    save_plan,
)
from vsuite.medical.plan import Normalisation, Plan
from vsuite.medical.recipes import load_recipe

LABELS: dict[str, int | list[int]] = {"background": 0, "organ": 1, "tumour": 2}
BRATS = ["FLAIR", "T1w", "t1gd", "T2w"]


def describe(channels: list[str], labels: dict[str, int | list[int]] | None = None, cases: list[Case] | None = None) -> DatasetDescription:
    return DatasetDescription("toy", Path("toy"), "folders", channels, labels or LABELS, cases or [])


def facts(*cases: tuple[tuple[int, int, int], tuple[float, float, float]], channels: tuple[str, ...] = ("MRI",)) -> Fingerprint:
    values = Intensities(mean=50, std=20, minimum=-100, percentile_00_5=-80, median=48, percentile_99_5=300, maximum=900)
    listed = [CaseFacts(name=f"c{i}", shape=shape, spacing=spacing, orientation="RAS") for i, (shape, spacing) in enumerate(cases)]
    return Fingerprint(dataset="toy", channels=dict.fromkeys(channels, values), label_fractions={"background": 1.0}, cases=listed)


def write_case(root: Path, name: str, value: float, affine: np.ndarray) -> Case:
    image = np.zeros((10, 12, 14), np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:6, 2:6, 2:6] = 1
    label[6:8, 2:6, 2:6] = 2
    image[label > 0] = value
    image[0, 0, 0] = 1000.0  # background: must not enter the intensities
    paths = [root / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    return Case(name, (paths[0],), paths[1])


def test_fingerprint_measures_in_ras_and_inside_the_foreground(tmp_path: Path) -> None:
    plain = np.diag([1.0, 2.0, 3.0, 1.0])
    turned = np.array([[0, 0, -3.0, 5], [1.0, 0, 0, 6], [0, 2.0, 0, 7], [0, 0, 0, 1]])  # axes run A, S, L
    cases = [write_case(tmp_path, "a", 10.0, plain), write_case(tmp_path, "b", 20.0, turned)]
    found = fingerprint(describe(["MRI"], cases=cases), progress=False)
    assert found.cases[0] == CaseFacts(name="a", shape=(10, 12, 14), spacing=(1, 2, 3), orientation="RAS")
    assert found.cases[1] == CaseFacts(name="b", shape=(14, 10, 12), spacing=(3, 1, 2), orientation="ASL")
    values = found.channels["MRI"]
    assert (values.mean, values.std, values.minimum, values.maximum) == (15.0, 5.0, 10.0, 20.0)
    total = 10 * 12 * 14
    assert found.label_fractions == pytest.approx({"background": 1 - 96 / total, "organ": 64 / total, "tumour": 32 / total})
    save_fingerprint(found, tmp_path / "dataset_fingerprint.json")
    assert load_fingerprint(tmp_path / "dataset_fingerprint.json") == found


def test_fingerprint_reports_every_bad_case(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, name, 1.0, np.eye(4)) for name in "abc"]
    assert cases[1].label is not None
    cases[1].label.write_bytes(cases[1].label.read_bytes()[:60])
    cases[2].images[0].write_text("no image")
    with pytest.raises(InputError, match=r"2 of 3 cases cannot be used: .*b_label.*; .*c_image") as error:
        fingerprint(describe(["MRI"], cases=cases), progress=False)
    assert "\n" not in str(error.value)


def test_median_spacing_and_a_patch_no_larger_than_the_volumes() -> None:
    result = facts(((36, 50, 35), (1, 1, 1)), ((34, 52, 36), (1, 1, 1)), ((38, 49, 34), (1, 1, 1)))
    plan = make_plan(describe(["MRI"]), result)
    assert plan.spacing == (1.0, 1.0, 1.0)
    assert plan.patch_size == (40, 56, 40)
    assert plan.options == {"in_channels": 1, "num_classes": 3}
    assert plan.normalisation == [Normalisation(kind="zscore")]


def test_large_volumes_are_cut_to_the_budget_in_whole_strides() -> None:
    plan = make_plan(describe(["CT"]), facts(((512, 512, 300), (0.8, 0.8, 1.5)), channels=("CT",)))
    assert np.prod(plan.patch_size) <= 96**3
    assert np.prod(plan.patch_size) > 96**3 / 4
    assert all(side % 32 == 0 for side in plan.patch_size)
    extents = np.array(plan.patch_size) * (0.8, 0.8, 1.5)
    assert extents.max() / extents.min() < 1.8  # near a cube in mm
    assert plan.normalisation == [Normalisation(kind="ct", lower=-80, upper=300, mean=50, std=20)]


def test_the_patch_follows_the_axes_and_the_strides_of_the_options() -> None:
    settings = PlanSettings(axes=(2, 1, 0), options={"patch_stride": [2, 2, 2, 2]})
    plan = make_plan(describe(["MRI"]), facts(((33, 50, 70), (1, 1, 1))), settings)
    assert plan.patch_size == (80, 64, 48)


def test_a_coarse_axis_takes_its_finer_cases() -> None:
    cases = [((400, 400, 40), (0.7, 0.7, z)) for z in (3.0, 5.0, 5.0, 5.0, 6.0)]
    plan = make_plan(describe(["CT"]), facts(*cases, channels=("CT",)))
    assert plan.spacing == pytest.approx((0.7, 0.7, 3.8))
    isotropic = make_plan(describe(["CT"]), facts(((400, 400, 300), (0.7, 0.7, 1.0)), channels=("CT",)))
    assert isotropic.spacing == pytest.approx((0.7, 0.7, 1.0))


def test_normalisation_follows_the_names() -> None:
    names = ["CT", "noNorm", "rescale_to_0_1", "T2"]
    plan = make_plan(describe(names), facts(((64, 64, 64), (1, 1, 1)), channels=tuple(names)))
    assert [rule.kind for rule in plan.normalisation] == ["ct", "none", "rescale_to_0_1", "zscore"]


def test_axes_along_which_labels_tell_sides_apart_are_not_mirrored() -> None:
    result = facts(((64, 64, 64), (1, 1, 1)))
    assert make_plan(describe(["MRI"]), result).mirror_axes == (0, 1, 2)
    kidneys: dict[str, int | list[int]] = {"background": 0, "Kidney_left": 1, "kidney right": 2}
    assert make_plan(describe(["MRI"], kidneys), result).mirror_axes == (1, 2)
    assert make_plan(describe(["MRI"], kidneys), result, PlanSettings(axes=(2, 1, 0))).mirror_axes == (0, 1)
    assert make_plan(describe(["MRI"], {"background": 0, "Anterior": 1, "Posterior": 2}), result).mirror_axes == (0, 2)
    assert make_plan(describe(["MRI"]), result, PlanSettings(mirror_axes=())).mirror_axes == ()
    assert make_plan(describe(["MRI"], {"background": 0, "LeftKidney": 1, "RightKidney": 2}), result).mirror_axes == (1, 2)


def test_the_published_brats_plan() -> None:
    labels: dict[str, int | list[int]] = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
    result = facts(((240, 240, 155), (1, 1, 1)), channels=tuple(BRATS))
    plan = make_plan(describe(BRATS, labels), result, load_recipe("brats2017").plan)
    assert plan.options == {"in_channels": 4, "num_classes": 3, "attention_scale": "num_heads"}
    assert list(plan.foreground) == ["tumour core", "whole tumour", "enhancing tumour"]
    assert plan.spacing is None
    assert {rule.kind for rule in plan.normalisation} == {"slice_minmax"}


def test_a_recipe_for_other_data_is_refused() -> None:
    recipe, result = load_recipe("brats2017").plan, facts(((240, 240, 155), (1, 1, 1)))
    with pytest.raises(InputError, match=r"for the channels \['FLAIR'.*has \['MRI'\]"):
        make_plan(describe(["MRI"]), result, recipe)
    with pytest.raises(InputError, match=r"ids \[3\]"):
        make_plan(describe(BRATS, {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4}), result, recipe)


def test_a_plan_is_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    labels: dict[str, int | list[int]] = {"background": 0, "edema": 1, "core": 2, "enhancing": 3}
    for plan in (
        make_plan(describe(["MRI"]), facts(((36, 50, 35), (1, 1, 1)))),
        make_plan(describe(BRATS, labels), facts(((240, 240, 155), (1, 1, 1)), channels=tuple(BRATS)), load_recipe("brats2017").plan),
    ):
        save_plan(plan, path)
        assert load_plan(path) == plan
        assert "# The network's grid." in path.read_text()
    path.write_text(path.read_text().replace("patch_size:", "patchsize:"))
    with pytest.raises(InputError, match=r"plan\.yaml.*'patchsize'.*'patch_size'"):
        load_plan(path)


def test_hippocampus_is_planned_in_seconds() -> None:
    root = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[3] / "../shared/data")) / "medical" / "hippocampus"
    if not root.is_dir():
        pytest.skip(f"the Decathlon hippocampus set is not at {root}; set VSUITE_DATA")
    description = read_dataset(root)
    assert len(description.training) == 200
    result = fingerprint(description, description.training[:25], progress=False)
    plan = make_plan(description, result, load_recipe("generic").plan)
    assert plan.spacing == (1.0, 1.0, 1.0)
    assert plan.patch_size == (40, 56, 40)
    assert plan.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert 0.01 < result.label_fractions["Anterior"] < 0.06


def test_ignored_voxels_are_no_foreground(tmp_path: Path) -> None:
    labels: dict[str, int | list[int]] = {"background": 0, "organ": 1, "ignore": 2}
    case = write_case(tmp_path, "a", 10.0, np.eye(4))
    image = nib.load(case.images[0]).get_fdata()
    image[6:8, 2:6, 2:6] = 500.0  # where the label is 2
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), case.images[0])
    assert fingerprint(describe(["MRI"], labels, [case]), progress=False).channels["MRI"].maximum == 10.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mirror_axes": (0, 3)}, "mirror_axes"),
        ({"mirror_axes": (1, 1)}, "mirror_axes"),
        ({"labels": {"background": 0, "ignore": [1]}}, "ignore"),
    ],
)
def test_plans_that_contradict_themselves(change: dict[str, object], said: str) -> None:
    facts = {"channels": ["MRI"], "normalisation": [{"kind": "none"}], "labels": LABELS, "patch_size": (16, 16, 16)}
    with pytest.raises(ValueError, match=said):
        Plan.model_validate(facts | change)
