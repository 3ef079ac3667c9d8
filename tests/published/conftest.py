"""Golden cases: what the published implementations compute, stored without their weights.

A case is a JSON file (configuration, inputs, the names and shapes of the state dict) and an NPZ file beside it (samples
of the outputs). Weights are never stored: every parameter is filled from its own name, so the same names give the same
weights everywhere. A case checks that the published names and shapes load, and that the outputs agree.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsuite.core import load_weights

Model = TypeVar("Model", bound=nn.Module)

CASES = Path(__file__).parent / "cases"
MAX_SAMPLES = 4096


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def filled(name: str, shape: tuple[int, ...], rule: str | None = None) -> np.ndarray:
    """The float32 values that the parameter `name` holds in every case."""
    rng = _generator(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if rule:
        kind, *numbers = rule.split(":")
        first, second = (*map(float, numbers), 0.0, 0.0)[:2]
        values = {
            "zeros": lambda: np.zeros(shape),
            "ones": lambda: np.ones(shape),
            "value": lambda: np.full(shape, first),
            "normal": lambda: first * rng.standard_normal(shape),
            "uniform": lambda: rng.uniform(first, second, shape),
            "around": lambda: first + second * rng.standard_normal(shape),
        }[kind]()
    elif leaf == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "bias") or leaf.endswith("_bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) <= 1:  # the weight of a norm, a layer scale, a gate
        values = 1.0 + 0.1 * rng.standard_normal(shape)
    elif leaf == "weight":
        values = rng.standard_normal(shape) / np.sqrt(math.prod(shape[1:]))
    else:  # a table, a token, an embedding
        values = 0.2 * rng.standard_normal(shape)
    return values.astype(np.float32)


def made(spec: Mapping[str, Any]) -> np.ndarray:
    """One input array from its description."""
    shape, dtype = tuple(spec.get("shape", ())), np.dtype(spec.get("dtype", "float32"))
    rng = _generator(int(spec.get("seed", 0)))
    return {
        "normal": lambda: rng.standard_normal(shape),
        "uniform": lambda: rng.uniform(0.0, 1.0, shape),
        "randint": lambda: rng.integers(spec["low"], spec["high"], shape),
        "literal": lambda: np.array(spec["value"]),
    }[spec.get("dist", "normal")]().astype(dtype)


@dataclass
class Case:
    """One stored case: `meta` is its JSON, `samples` its NPZ."""

    meta: dict[str, Any]
    samples: dict[str, np.ndarray]

    def state_dict(self) -> dict[str, np.ndarray]:
        rules = self.meta.get("fill_rules", {})
        return {name: filled(name, tuple(shape), rules.get(name)) for name, shape in self.meta["state_dict"].items()}

    def inputs(self) -> dict[str, np.ndarray]:
        return {name: made(spec) for name, spec in self.meta["inputs"].items()}

    def tensors(self) -> dict[str, Tensor]:
        """The inputs as tensors."""
        return {name: torch.from_numpy(value) for name, value in self.inputs().items()}

    def fill(self, module: Model) -> Model:
        """Loads the case's weights: the names, shapes and number of parameters must be the module's own."""
        assert sum(p.numel() for p in module.parameters()) == self.meta["num_params"]
        report = load_weights(module, self.state_dict())
        assert report.problems() == ""
        assert (report.renamed, report.resized, report.fresh) == ({}, {}, [])
        return module.eval()

    def check(self, outputs: Mapping[str, Any], rtol: float | None = None) -> None:
        """Compares every stored output: integers exactly, floats by max |got - want| / std(want) (by size where constant)."""
        tolerance = self.meta.get("rtol", 1e-3) if rtol is None else rtol
        for name, spec in self.meta["outputs"].items():
            got, want = np.asarray(outputs[name]), self.samples[name]
            assert list(got.shape) == list(spec["shape"]), f"{name}: shape {list(got.shape)}, want {spec['shape']}"
            count = got.size if got.size <= MAX_SAMPLES else MAX_SAMPLES
            picked = got.reshape(-1)[np.linspace(0, got.size - 1, count).astype(np.int64)].astype(np.float64)
            if spec["dtype"].startswith(("int", "bool", "uint")):
                assert np.array_equal(picked, want), f"{name}: {(picked != want).sum()} of {want.size} sampled integers differ"
                continue
            size, spread = abs(float(spec["mean"])), float(spec["std"])
            gap = np.abs(picked - want.astype(np.float64)) / max(spread if spread > 1e-6 * size else size, 1e-12)
            assert gap.max() <= tolerance, f"{name}: element {gap.argmax()} off by {gap.max():.2e} of the spread, allowed {tolerance:.0e}"


@pytest.fixture(scope="session")
def load_case() -> Callable[[str], Case]:
    def load(name: str) -> Case:
        path = CASES / f"{name}.json"
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            samples = {key: archive[key] for key in archive.files}
        return Case(json.loads(path.read_text()), samples)

    return load
