"""A small data set and one short training, which all tests of the folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from vsuite.medical.demo_data import make_demo_dataset

SIZE = (24, 28, 16)
STEPS = 4
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "training": {
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 3.0e-3,
        "ema_decay": 0.5,
        "validate_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "best_metric": "dice",
        "best_mode": "max",
    },
    "augmentation": {"mirror_probability": 0.5, "rotation_probability": 0.5, "rotation": [0.2, 0.2, 0.2], "noise_probability": 0.5},
    "validation": {"fraction": 0.25, "overlap": 0.25},
}
TRAIN = ("--device", "cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As the subprocesses have it: sums in another order would differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training cases and two for testing, in nnU-Net's layout."""
    return make_demo_dataset(tmp_path_factory.mktemp("data") / "phantoms", cases=4, test_cases=2, size=SIZE)


@pytest.fixture(scope="session")
def recipe(tiny_segformer3d: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one's own: a network of a few thousand weights, four steps."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"plan": {"options": tiny_segformer3d, "patch_size": [16, 16, 16]}}))
    return path


class Run(NamedTuple):
    """A finished training: its folder, its weights, and what the command said."""

    folder: Path
    weights: Path
    finished: Any


@pytest.fixture(scope="session")
def trained(data: Path, recipe: Path, shell: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`vsuite-medical train`, run to its end."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    finished = shell("train", "--data", data, "--recipe", recipe, "--out", folder, *TRAIN)
    assert finished.code == 0, finished.err
    return Run(folder, folder / "checkpoints" / "best.safetensors", finished)


@pytest.fixture(scope="session")
def predicted(trained: Run, data: Path, invoke: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vsuite-medical predict --probabilities` of the test cases: the folder of results."""
    folder = tmp_path_factory.mktemp("predicted") / "maps"
    finished = invoke(
        "predict", "--weights", trained.weights, data / "imagesTs", "--out", folder, "--probabilities", "--device", "cpu", "--overlap", 0.25
    )
    assert finished.code == 0, finished.err
    return folder
