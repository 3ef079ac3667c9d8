"""Names of models -> their builders and facts.

A model is registered by decorating its builder, a function with explicit keywords. Packages announce the
modules that do so under the entry point group `vsuite.models`; the modules are imported on first use.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vsuite.core.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

Builder = TypeVar("Builder", bound=Callable[..., "nn.Module"])


@dataclass(frozen=True)
class PublishedResult:
    """One figure as its authors published it (never one that was measured here)."""

    dataset: str
    metric: str
    value: float
    unit: str = ""


@dataclass(frozen=True)
class OtherNames:
    """The names that another library gives to a system's tensors.

    Attributes:
        library: such as "timm".
        keys: names that only a checkpoint of that library holds.
        rename: its name -> our name.
    """

    library: str
    keys: tuple[str, ...]
    rename: Callable[[str], str]


@dataclass(frozen=True)
class Variant:
    """One published size of a system.

    Attributes:
        options: what differs from the constructor's own defaults.
        summary: one line.
        published: figures as its authors published them.
        input_size: of one input as published, channels first.
        weights: weights that the package ships for it: name -> file.
    """

    options: Mapping[str, Any]
    summary: str = ""
    published: tuple[PublishedResult, ...] = ()
    input_size: tuple[int, ...] = (3, 224, 224)
    weights: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedLayout:
    """How a system's published checkpoint maps onto our model.

    Attributes:
        build: the constructor that takes the options that `infer` finds.
        infer: state dict (names already ours, without prefixes that ours lack) -> constructor options.
        renames: (published, ours) pairs of name fragments, applied in order; both must be unambiguous, since
            saving in the published layout applies them backwards.
        assumed: options that the checkpoint does not record, with the value assumed when the caller gives none.
        others: the same checkpoint under the names of another library.
        ignored: wildcards of names that hold nothing learnt (index tables, masks).
        fresh: wildcards of our names that may be missing and are then left as initialised.
        head: start of the classifier's names: for another number of classes it is left as initialised, and it is ignored
            where the model has none. The same holds for `norm`.
        stem: name of the first convolution's weight; for another number of input channels its kernels are summed (1
            channel) or repeated and scaled by 3 / n.
        resize: (name, published value, our shape) -> the value interpolated to our shape, or None where that makes no sense.
        conflict: (model, state dict) -> what the ignored tensors of the checkpoint say against the model; empty: nothing.
    """

    build: Callable[..., nn.Module]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    keys: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()
    assumed: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[OtherNames, ...] = ()
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    head: str = ""
    norm: str = ""
    stem: str = ""
    resize: Callable[[str, Tensor, Sequence[int]], Tensor | None] | None = None
    conflict: Callable[[nn.Module, Mapping[str, Tensor]], str] | None = None


@dataclass(frozen=True)
class ModelInfo:
    """The facts of one registered model.

    Attributes:
        name: the name that `create_model` takes.
        system: the published system it belongs to.
        task: "segmentation", "classification", ...
        paper: title, authors, year and where to find it.
        licence: of the official code, and of the published weights where it differs.
        summary: the first line of the builder's docstring.
        options: keyword -> default of the builder.
        published: figures as published.
        weights: weights that installed packages ship for this model: name -> file.
        input_size: of one input as published, channels first, without the batch; what `vsuite bench` runs. Empty: not given.
    """

    name: str
    system: str
    task: str
    paper: str
    licence: str
    summary: str
    options: Mapping[str, Any]
    published: tuple[PublishedResult, ...]
    builder: Callable[..., nn.Module]
    layout: PublishedLayout | None
    weights: Mapping[str, Path]
    input_size: tuple[int, ...] = ()


_MODELS: dict[str, ModelInfo] = {}


def register_model(
    *,
    system: str,
    task: str,
    paper: str,
    licence: str,
    published: Sequence[PublishedResult] = (),
    layout: PublishedLayout | None = None,
    weights: Mapping[str, Path] | None = None,
    input_size: Sequence[int] = (),
) -> Callable[[Builder], Builder]:
    """Registers the decorated builder under its own name; a second registration of a name raises."""

    def register(builder: Builder) -> Builder:
        name = builder.__name__
        if name in _MODELS:
            raise InputError(f"model {name!r} is registered twice: by {_MODELS[name].builder.__module__} and by {builder.__module__}")
        parameters = inspect.signature(builder).parameters.values()
        if any(p.kind is not p.KEYWORD_ONLY for p in parameters):
            raise InputError(f"the builder {name!r} must have explicit, keyword-only options")
        _MODELS[name] = ModelInfo(
            name=name,
            system=system,
            task=task,
            paper=paper,
            licence=licence,
            summary=(inspect.getdoc(builder) or "").split("\n", 1)[0],
            options={p.name: p.default for p in parameters},
            published=tuple(published),
            builder=builder,
            layout=layout,
            weights=dict(weights or {}),
            input_size=tuple(input_size),
        )
        return builder

    return register


def register_variants(
    build: Callable[..., nn.Module],
    variants: Mapping[str, Variant],
    *,
    system: str,
    task: str,
    paper: str,
    licence: str,
    layout: PublishedLayout | None = None,
) -> None:
    """Registers each variant of a system: name -> what differs from the defaults of `build`.

    Every keyword of `build` is an option of every variant, with the variant's value as its default.
    """
    for name, variant in variants.items():
        register = register_model(
            system=system,
            task=task,
            paper=paper,
            licence=licence,
            published=variant.published,
            layout=layout,
            weights=variant.weights,
            input_size=variant.input_size,
        )
        register(_variant_builder(name, build, variant))


def _variant_builder(name: str, build: Callable[..., nn.Module], variant: Variant) -> Callable[..., nn.Module]:
    def builder(**options: Any) -> nn.Module:
        return build(**{**variant.options, **options})

    builder.__name__, builder.__module__, builder.__doc__ = name, build.__module__, variant.summary
    builder.__signature__ = inspect.signature(functools.partial(build, **variant.options))  # type: ignore[attr-defined]
    return builder


@functools.cache
def load_plugins() -> None:
    """Imports the modules that installed packages name under `vsuite.models`; a broken one warns and is left out."""
    for entry in importlib.metadata.entry_points(group="vsuite.models"):
        try:
            entry.load()
        except Exception as error:  # one broken package must not take the others with it
            warnings.warn(f"models of {entry.name!r} ({entry.value}) could not be loaded: {error}", stacklevel=2)


def list_models(pattern: str = "*", *, system: str | None = None, task: str | None = None, with_weights: bool = False) -> list[str]:
    """The names of the registered models, sorted.

    Args:
        pattern: shell-style wildcard on the name, such as "swin_*".
        system: only models of this system.
        task: only models for this task.
        with_weights: only models for which an installed package ships weights.
    """
    load_plugins()
    for kind, given, known in (
        ("system", system, {m.system for m in _MODELS.values()}),
        ("task", task, {m.task for m in _MODELS.values()}),
    ):
        if given is not None and given not in known:
            raise unknown(kind, given, known)
    return sorted(
        name
        for name, info in _MODELS.items()
        if fnmatch.fnmatch(name, pattern)
        and system in (None, info.system)
        and task in (None, info.task)
        and (info.weights or not with_weights)
    )


def model_info(name: str) -> ModelInfo:
    """The facts of one model; raises `InputError` that names the nearest for an unknown name."""
    load_plugins()
    if name not in _MODELS:
        raise unknown("model", name, _MODELS)
    return _MODELS[name]


def create_model(
    name: str,
    *,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a registered model.

    Args:
        name: see `list_models`.
        weights: a file if one exists at that path, else the name of weights that an installed package ships, or a
            state dict. Shipped weights bring the options they were trained with.
        num_classes, in_channels: the same as the options of these names; None keeps the builder's default.
        options: keywords of the builder; see `model_info(name).options`.

    Raises:
        InputError: for an unknown name, option or value, and for weights that do not fit.
    """
    info = model_info(name)
    given = {"num_classes": num_classes, "in_channels": in_channels}
    options |= {key: value for key, value in given.items() if value is not None}
    _check_options(info, options)
    if isinstance(weights, str) and not Path(weights).is_file():
        if weights not in info.weights:
            raise unknown(f"weights of {name} (and no such file)", weights, info.weights)
        weights = info.weights[weights]
    if weights is None:
        return _tagged(info.builder(**options), name, options)
    from vsuite.core.weights import load_weights, read_options

    options = read_options(weights, name) | options
    _check_options(info, options)
    try:
        model = _tagged(info.builder(**options), name, options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # a damaged or forged note may say anything
        raise InputError(f"{name} cannot be built with the options of its weights, {options}: {' '.join(str(error).split())}") from error
    report = load_weights(model, weights)
    head = info.layout.head if info.layout else ""
    if head and num_classes is None and any(key.startswith(head) for key in report.fresh):
        label = weights if isinstance(weights, str | Path) else "the given weights"
        raise InputError(
            f"{label}: its last layer does not fit the {name} it is for: it is of another number of classes; give num_classes"
            " (the file's to load it, another to begin a new one)"
        )
    return model


def _check_options(info: ModelInfo, options: Mapping[str, Any]) -> None:
    for key in options:
        if key not in info.options:
            raise unknown(f"option of {info.name}", key, info.options)


def _tagged(model: nn.Module, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Notes on the model how it was built, so that its weights can be saved with it and built again."""
    model.built_from = {"model": name, "options": dict(options)}  # type: ignore[assignment]
    return model
