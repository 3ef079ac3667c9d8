"""A small data set and one short training, which all tests of the folder share, and two ways to give a command."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
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
    "plan": {
        "options": {
            "attention_scale": "head_dim",
            "patch_stride": [2, 2, 2, 2],
            "embed_dims": [8, 8, 8, 8],
            "num_heads": [1, 1, 2, 2],
            "depths": [1, 1, 1, 1],
            "mlp_ratios": [1, 1, 1, 1],
            "decoder_head_embedding_dim": 8,
        },
        "patch_size": [16, 16, 16],
    },
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


class Finished(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def script(name: str = "vsuite-medical") -> str:
    """The console script beside this Python."""
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts `vsuite-medical` with arguments, as a process of its own."""

    def begin(*arguments: object, program: tuple[str, ...] = (script(),)) -> subprocess.Popen[str]:
        command = [*program, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())

    return begin


@pytest.fixture(scope="session")
def shell(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Finished]:
    """Runs `vsuite-medical` as a process of its own, to its end."""

    def execute(*arguments: object, **options: Any) -> Finished:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=500)
        return Finished(process.returncode, out, err)

    return execute


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Finished]:
    """Runs the same command line inside this process, which saves the start of another."""
    from vsuite.core.cli.app import run
    from vsuite.medical.cli import app

    def execute(*arguments: object) -> Finished:
        out, err, formatting = io.StringIO(), io.StringIO(), warnings.formatwarning
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), pytest.raises(SystemExit) as left:
            run(app, [str(argument) for argument in arguments])
        warnings.formatwarning = formatting
        return Finished(int(left.value.code or 0), out.getvalue(), err.getvalue())

    return execute


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
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one's own: a network of a few thousand weights, four steps."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


class Run(NamedTuple):
    """A finished training: its folder, its weights, and what the command said."""

    folder: Path
    weights: Path
    finished: Finished


@pytest.fixture(scope="session")
def trained(data: Path, recipe: Path, shell: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`vsuite-medical train`, run to its end."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    finished = shell("train", "--data", data, "--recipe", recipe, "--out", folder, *TRAIN)
    assert finished.code == 0, finished.err
    return Run(folder, folder / "checkpoints" / "best.safetensors", finished)


@pytest.fixture(scope="session")
def predicted(trained: Run, data: Path, invoke: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vsuite-medical predict --probabilities` of the test cases: the folder of results."""
    folder = tmp_path_factory.mktemp("predicted") / "maps"
    finished = invoke(
        "predict", "--weights", trained.weights, data / "imagesTs", "--out", folder, "--probabilities", "--device", "cpu", "--overlap", 0.25
    )
    assert finished.code == 0, finished.err
    return folder
