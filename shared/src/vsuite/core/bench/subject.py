"""What is measured, and under which conditions; both as plain data, so that a fresh process can do it again."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.devices import Precision, autocast, check_precision
from vsuite.core.errors import InputError, unknown
from vsuite.core.optimize import optimize_for_inference
from vsuite.core.registry import model_info
from vsuite.core.weights import load_weights


@dataclass(frozen=True)
class Conditions:
    """How models are run.

    Attributes:
        size: of one input, channels first, without the batch.
        batch_size: samples in one forward pass.
        device: "cpu", "cuda" or "cuda:N".
        precision: "fp32", or "bf16" or "fp16" under autocast.
        threads: of torch on the CPU; None keeps torch's own choice.
        seconds: time budget for the repeats of one form; at least five are made.
    """

    size: tuple[int, ...]
    batch_size: int = 1
    device: str = "cpu"
    precision: Precision = "fp32"
    threads: int | None = None
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise InputError(f"the input size must be one or more positive numbers; got {list(self.size)}")
        if self.batch_size < 1:
            raise InputError(f"the batch size must be 1 or more; got {self.batch_size}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"the number of threads must be 1 or more; got {self.threads}")
        check_precision(self.precision)

    def inputs(self) -> Tensor:
        """Standard normal numbers, the same every time: batch, *size."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch_size, *self.size, generator=generator).to(self.device)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inference under these conditions: number of threads and autocast; the number of threads is put back at the end."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with torch.inference_mode(), autocast(torch.device(self.device), self.precision):
                yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: of the model.
        form: "fast" (as `create_model` builds it), "optimized", "compiled" or "plain".
        target: "module:function" that builds it; importing the module registers the variant of this name where it has no such function.
        options: keywords of that function; they must survive JSON.
    """

    name: str
    form: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name if self.form == "fast" else f"{self.name}, {self.form}"

    def build(self, weights: Mapping[str, Tensor] | None = None, precision: Precision = "fp32") -> nn.Module:
        """The model in eval mode, with these weights if any are given; `precision`: see `optimize_for_inference`."""
        module, function = self.target.split(":")
        build = getattr(importlib.import_module(module), function, None) or model_info(self.name).builder
        model = build(**self.options).eval()
        if weights is not None:
            load_weights(model, weights)
        if self.form in ("optimized", "compiled"):
            model = optimize_for_inference(model, compile=self.form == "compiled", precision=precision)
        return model


def forms(
    name: str, options: Mapping[str, Any] | None = None, *, plain: bool = False, optimized: bool = False, compiled: bool = False
) -> list[Subject]:
    """The forms of a registered model that are to be measured side by side: the plain one first, then as built, and so on.

    Args:
        name: see `list_models`.
        options: keywords of its builder.
        plain: add the plain form: for a builder in `X.models.Y` it is `build(**options)` in `X.bench.plain.Y`, with
            parameters of the same names.
        optimized, compiled: add what `optimize_for_inference` makes of it, without and with `torch.compile`.
    """
    info = model_info(name)
    options = dict(options or {})
    for key in options:
        if key not in info.options:
            raise unknown(f"option of {name}", key, info.options)
    target = f"{info.builder.__module__}:{info.builder.__name__}"
    subjects = [Subject(name, "fast", target, options)]
    if plain:
        defaults = {key: value for key, value in info.options.items() if value is not inspect.Parameter.empty}
        subjects.insert(0, Subject(name, "plain", _plain_target(name, info.builder.__module__), {**defaults, **options}))
    if optimized:
        subjects.append(Subject(name, "optimized", target, options))
    if compiled:
        subjects.append(Subject(name, "compiled", target, options))
    return subjects


def _plain_target(name: str, builder_module: str) -> str:
    package, found, system = builder_module.partition(".models.")
    module = f"{package}.bench.plain.{system.split('.')[0]}"
    try:
        exists = bool(found) and importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package has no bench.plain at all
        exists = False
    if not exists:
        raise InputError(f"{name} has no plain form to compare with: there is no module {module}")
    return f"{module}:build"
