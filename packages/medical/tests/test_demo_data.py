"""The demo's data: what it promises about files, grids, structures and contrast."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import check_case, read_dataset
from vsuite.medical.data.geometry import orientation_of, reorient_to_ras, spacing_of
from vsuite.medical.data.nifti import read_label
from vsuite.medical.demo_data import LABELS, make_demo_dataset, make_phantom


def phantom(number: int, **options: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return make_phantom(np.random.default_rng((0, number)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["nnunet", "decathlon"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_reader_takes_it(layout: str, channels: int, tmp_path: Path) -> None:
    folder = make_demo_dataset(tmp_path / "data", cases=3, test_cases=1, size=(24, 28, 14), channels=channels, layout=layout)  # type: ignore[arg-type]
    description = read_dataset(folder)
    assert description.layout == layout
    assert description.labels == LABELS
    assert len(description.channels) == channels
    assert [c.name for c in description.training] == ["phantom_0001", "phantom_0002", "phantom_0003"]
    assert [c.name for c in description.test] == ["phantom_9000"]
    for case in description.training:
        image, label = check_case(case, description)
        assert label is not None
        assert image.array.shape == (channels, *label.array.shape[1:])
    assert set(np.unique(read_label(folder / "labelsTs" / "phantom_9000.nii.gz").array)) == set(LABELS.values())


def test_it_follows_from_the_seed(tmp_path: Path) -> None:
    options = {"cases": 2, "test_cases": 1, "size": (24, 28, 14)}
    first, second, other = (make_demo_dataset(tmp_path / name, seed=seed, **options) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    files = sorted(p.relative_to(first) for p in first.rglob("*.nii.gz"))
    assert len(files) == 6
    larger = make_demo_dataset(tmp_path / "d", seed=1, **(options | {"cases": 3}))
    for file in files:
        arrays = [read_label(folder / file) for folder in (first, second, larger, other)]
        assert np.array_equal(arrays[0].array, arrays[1].array)
        assert np.array_equal(arrays[0].array, arrays[2].array)
        assert arrays[0].array.shape != arrays[3].array.shape or not np.array_equal(arrays[0].array, arrays[3].array)


def test_grids_are_oblique_anisotropic_and_of_several_orientations() -> None:
    affines = [phantom(n, size=(12, 14, 8))[2] for n in range(24)]
    assert len({orientation_of(a) for a in affines}) >= 4
    for affine in affines:
        directions = affine[:3, :3] / spacing_of(affine)
        assert np.allclose(directions.T @ directions, np.eye(3))  # no shear
        assert 0.9 < np.abs(directions).max(0).min() < 0.99999  # oblique, but still near its axis
    spacings = np.array([spacing_of(phantom(n)[2]) for n in range(3)])
    assert (spacings.max(1) / spacings.min(1) > 1.6).all()


def test_structures_differ_by_case_and_are_whole() -> None:
    labels = []
    for number in range(1, 6):
        _, label, affine = phantom(number)
        label = reorient_to_ras(label[None], affine)[0][0]
        assert label.shape == (48, 56, 28)
        labels.append(label)
        ml = np.bincount(label.reshape(-1), minlength=5)[1:] * np.prod(spacing_of(affine)) / 1000
        assert (ml > [10, 1.5, 1, 0.6]).all(), ml
        for name in ("stem", "lesion", "ventricle"):
            parts, _ = ndimage.label(label == LABELS[name])
            sizes = np.bincount(parts.reshape(-1))[1:]
            assert sizes.max() > 0.85 * sizes.sum(), name
    for a, b in itertools.pairwise(labels):
        lobes = a == 1, b == 1
        assert 0.4 < 2 * (lobes[0] & lobes[1]).sum() / (lobes[0].sum() + lobes[1].sum()) < 0.97


@pytest.mark.parametrize("channel", [0, 1])
def test_tissues_can_be_told_apart_but_not_by_a_threshold_alone(channel: int) -> None:
    for number in range(1, 5):
        image, label, _ = phantom(number, channels=2)
        values = image[channel].astype(float)
        means = {name: values[label == i].mean() for name, i in LABELS.items() if i}
        spread = values[ndimage.binary_erosion(label == 1)].std()
        assert 0.03 < spread / means["lobes"] < 0.25  # noise and bias field
        order = sorted(means.values())
        assert min(b - a for a, b in itertools.pairwise(order)) > spread
        alike = (values > means["lobes"] - spread) & (values < means["lobes"] + spread)
        assert (alike & (label != 1)).sum() > 0.03 * alike.sum()


def test_the_manifest_is_nnunets(tmp_path: Path) -> None:
    folder = make_demo_dataset(tmp_path, cases=1, test_cases=0, size=(8, 8, 8))
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"]["background"] == 0
    assert content["numTraining"] == 1
    assert (folder / "imagesTr" / "phantom_0001_0000.nii.gz").exists()


def test_impossible_options() -> None:
    for options in ({"cases": 0}, {"test_cases": -1}, {"size": (4, 20, 20)}, {"channels": 3}, {"layout": "zip"}):
        with pytest.raises(InputError, match="a demo data set needs"):
            make_demo_dataset("nowhere", **options)  # type: ignore[arg-type]
    assert not Path("nowhere").exists()
