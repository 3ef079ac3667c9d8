"""Good inputs to spoil, and commands that are given them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from vsuite.core import create_model, save_weights
from vsuite.medical.plan import Normalisation, Plan

SHAPE = (18, 16, 14)
AFFINE = np.array([[0, -1.0, 0, 10], [1.5, 0, 0, -4], [0, 0, 2.0, 3], [0, 0, 0, 1.0]])
LABELS = {"background": 0, "organ": 1, "lesion": 2}
RECIPE = {
    "name": "tiny",
    "training": {"steps": 1, "batch_size": 2},
    "validation": {"fraction": 0},
}


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)


def blocks() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[4:12, 4:12, 3:10] = 1
    label[6:9, 6:9, 5:8] = 2
    return label


@pytest.fixture
def save() -> Callable[..., Path]:
    """Writes an array as NIfTI; `change` may spoil the image's header first."""

    def write(
        path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE, change: Callable[[Any], None] | None = None
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(noise() if array is None else array, affine)
        if change is not None:
            change(image)
        nib.save(image, path)
        return path

    return write


@pytest.fixture(scope="session")
def weights(tiny_segformer3d: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights with a plan: one channel, two labels."""
    plan = Plan(
        channels=["T1"], normalisation=[Normalisation()], labels=LABELS, patch_size=(16, 16, 16),
        options=tiny_segformer3d | {"in_channels": 1, "num_classes": 3},
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "good.safetensors"
    save_weights(create_model(plan.model, **plan.options), path, metadata={"plan": plan.model_dump(mode="json")})
    return path


@pytest.fixture
def dataset(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """A data set of two cases in nnU-Net's layout."""
    root = tmp_path / "data"
    for name in ("a", "b"):
        save(root / "imagesTr" / f"{name}_0000.nii.gz")
        save(root / "labelsTr" / f"{name}.nii.gz", blocks())
    description = {"channel_names": {"0": "T1"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="session")
def recipe(tiny_segformer3d: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    plan = {"options": tiny_segformer3d, "patch_size": [16, 16, 16]}
    path.write_text(json.dumps(RECIPE | {"plan": plan}))  # JSON is YAML
    return path


@pytest.fixture
def train(invoke: Callable[..., Any], dataset: Path, recipe: Path, tmp_path: Path) -> Callable[..., Any]:
    """`vsuite-medical train` on the data set into tmp_path / "run", with further arguments."""

    def execute(*arguments: object, out: Path = tmp_path / "run") -> Any:
        return invoke("train", "--data", dataset, "--recipe", recipe, "--out", out, "--device", "cpu", *arguments)

    return execute


@pytest.fixture
def predict(invoke: Callable[..., Any], weights: Path, tmp_path: Path) -> Callable[..., Any]:
    """`vsuite-medical predict` into tmp_path / "out", with further arguments."""

    def execute(*arguments: object, out: Path = tmp_path / "out", weights: Path = weights) -> Any:
        return invoke("predict", "--weights", weights, *arguments, "--out", out, "--device", "cpu", "--overlap", 0)

    return execute


def leavings(folder: Path) -> list[str]:
    """Result files and temporaries in a folder; what says why there is none (the journal) does not count."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    return sorted(str(p) for p in found if p.name not in ("predictions.json", "labels.json"))


@pytest.fixture(name="leavings")
def leavings_() -> Callable[[Path], list[str]]:
    return leavings
