"""Good inputs to spoil, a way to give a command as a user would, and what must hold when it is refused."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch

from vsuite.core import create_model, save_weights
from vsuite.medical.plan import Normalisation, Plan

SHAPE = (18, 16, 14)
AFFINE = np.array([[0, -1.0, 0, 10], [1.5, 0, 0, -4], [0, 0, 2.0, 3], [0, 0, 0, 1.0]])
LABELS = {"background": 0, "organ": 1, "lesion": 2}
OPTIONS = {
    "attention_scale": "head_dim",
    "patch_stride": [2, 2, 2, 2],
    "embed_dims": [8, 8, 8, 8],
    "num_heads": [1, 1, 1, 1],
    "depths": [1, 1, 1, 1],
    "mlp_ratios": [1, 1, 1, 1],
    "decoder_head_embedding_dim": 8,
}
RECIPE = {
    "name": "tiny",
    "plan": {"options": OPTIONS, "patch_size": [16, 16, 16]},
    "training": {"steps": 1, "batch_size": 2},
    "validation": {"fraction": 0},
}


class Finished(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> str:
        """Checks that this is an error as it should be, and that its one line has these parts; returns the line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, len(lines)) == (2, 1), (self.code, self.err)
        assert "Traceback" not in self.err + self.out
        missing = [part for part in parts if part not in lines[0]]
        assert not missing, (missing, lines[0])
        return lines[0]


@pytest.fixture
def invoke() -> Callable[..., Finished]:
    """Runs `vsuite-medical` with arguments in this process, as its console script does."""
    from vsuite.core.cli.app import run
    from vsuite.medical.cli import app

    def execute(*arguments: object) -> Finished:
        out, err, formatting = io.StringIO(), io.StringIO(), warnings.formatwarning
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), pytest.raises(SystemExit) as left:
            run(app, [str(argument) for argument in arguments])
        warnings.formatwarning = formatting
        return Finished(int(left.value.code or 0), out.getvalue(), err.getvalue())

    return execute


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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights with a plan: one channel, two labels."""
    plan = Plan(
        channels=["T1"], normalisation=[Normalisation()], labels=LABELS, patch_size=(16, 16, 16),
        options=OPTIONS | {"in_channels": 1, "num_classes": 3},
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
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(json.dumps(RECIPE))  # JSON is YAML
    return path


@pytest.fixture
def train(invoke: Callable[..., Finished], dataset: Path, recipe: Path, tmp_path: Path) -> Callable[..., Finished]:
    """`vsuite-medical train` on the data set into tmp_path / "run", with further arguments."""

    def execute(*arguments: object, out: Path = tmp_path / "run") -> Finished:
        return invoke("train", "--data", dataset, "--recipe", recipe, "--out", out, "--device", "cpu", *arguments)

    return execute


@pytest.fixture
def predict(invoke: Callable[..., Finished], weights: Path, tmp_path: Path) -> Callable[..., Finished]:
    """`vsuite-medical predict` into tmp_path / "out", with further arguments."""

    def execute(*arguments: object, out: Path = tmp_path / "out", weights: Path = weights) -> Finished:
        return invoke("predict", "--weights", weights, *arguments, "--out", out, "--device", "cpu", "--overlap", 0)

    return execute


def leavings(folder: Path) -> list[str]:
    """Result files and temporaries in a folder; what says why there is none (the journal) does not count."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    return sorted(str(p) for p in found if p.name not in ("predictions.json", "labels.json"))


@pytest.fixture(name="leavings")
def leavings_() -> Callable[[Path], list[str]]:
    return leavings
