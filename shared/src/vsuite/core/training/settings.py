"""Settings of a training run, and reading, overriding, writing and comparing settings of any kind."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vsuite.core.devices import Precision
from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.core.training.schedules import get_schedule

Settings = TypeVar("Settings", bound=BaseModel)

MAY_CHANGE: dict[str, Any] = {"may_change": True}
"""Mark of a field that a resumed run may change: `Field(..., json_schema_extra=MAY_CHANGE)`."""

MAY_GROW: dict[str, Any] = {"may_grow": True}
"""Mark of a number that a resumed run may raise, but not lower."""


class TrainingSettings(BaseModel):
    """How to train; a domain nests it in its own settings.

    Attributes:
        steps, epochs: length of the run, exactly one of them. A step is one update of the weights, whatever `accumulate` is.
        batch_size: samples a process and forward pass. accumulate: forward passes a step.
        optimiser: "adamw", or "sgd" (stochastic gradient descent with momentum).
        learning_rate, weight_decay, betas, momentum: of the optimiser; betas are AdamW's alone, momentum is SGD's.
        decay_norms_and_biases: apply weight decay to them (and to other one-dimensional parameters) too.
        layer_decay: the learning rate of each layer is that of the next one times this, and the head's is `learning_rate`; for
            fine-tuning models that number their layers (`layer_id`). None gives all layers the same.
        schedule: "cosine", "cosine_from_zero", "one_cycle", "constant" or one that a domain registered; warmup_steps (half the
            run at the most) and min_learning_rate shape it.
        clip_gradients: largest norm of the gradient; None leaves it.
        ema_decay: keep an exponential moving average of the weights, which is what is validated and saved as the best; None keeps none.
        precision: "fp32", "bf16" (any device) or "fp16" (CUDA only), by autocast.
        seed: of the initial weights, the order of samples, augmentation and dropout.
        workers: processes that load samples; does not change results.
        validate_every, checkpoint_every, log_every: in steps; the last step is always validated and saved.
        early_stopping: stop after this many validations without a better value; None never does.
        best_metric, best_mode: which validation metric chooses the best weights, and whether more or less is better. None says
            that there is nothing to validate on: the newest weights are kept as the best.
        compile: `torch.compile` the model. deterministic: only deterministic algorithms (slower on CUDA).
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    steps: int | None = Field(None, ge=1, json_schema_extra=MAY_GROW)
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False, json_schema_extra=MAY_GROW)
    batch_size: int = Field(4, ge=1)
    accumulate: int = Field(1, ge=1)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(0.9, ge=0, lt=1)
    decay_norms_and_biases: bool = False
    layer_decay: float | None = Field(None, gt=0, le=1)
    schedule: str = "cosine"
    warmup_steps: int = Field(0, ge=0)
    min_learning_rate: float = Field(0.0, ge=0, allow_inf_nan=False)
    clip_gradients: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    precision: Precision = "fp32"
    seed: int = Field(0, ge=0, lt=2**32)
    workers: int = Field(0, ge=0, json_schema_extra=MAY_CHANGE)
    validate_every: int = Field(500, ge=1, json_schema_extra=MAY_CHANGE)
    checkpoint_every: int = Field(500, ge=1, json_schema_extra=MAY_CHANGE)
    log_every: int = Field(10, ge=1, json_schema_extra=MAY_CHANGE)
    early_stopping: int | None = Field(None, ge=1, json_schema_extra=MAY_CHANGE)
    best_metric: str | None = "loss"
    best_mode: Literal["max", "min"] = "min"
    compile: bool = Field(False, json_schema_extra=MAY_CHANGE)
    deterministic: bool = False

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        get_schedule(name)
        return name

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"must lie in [0, 1); got {list(betas)}")
        return betas

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and leave the other out (or set it to null)")
        if self.early_stopping is not None and self.best_metric is None:
            raise ValueError("early_stopping needs a best_metric")
        return self

    def total_steps(self, num_samples: int, world_size: int = 1) -> int:
        """Updates in the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return math.ceil(self.epochs * num_samples / (self.batch_size * self.accumulate * world_size))


def load_settings(path: str | Path, model_class: type[Settings]) -> Settings:
    """Reads a YAML (or JSON) file of settings.

    Raises:
        InputError: for a missing or malformed file, an unknown key (naming the nearest right one), a wrong value.
    """
    return check_settings(model_class, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, read safely; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text file (UTF-8)") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold settings as `name: value` lines; it holds a {type(values).__name__}")
    return values


def apply_overrides(settings: Settings, overrides: Sequence[str]) -> Settings:
    """A copy with values replaced, each given as "name=value" or "outer.inner=value"; values are YAML, null is None.

    Raises:
        InputError: for an unknown name (naming the nearest right one), a wrong value, or a missing "=".
    """
    values = settings.model_dump()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{override!r}: an override is written name=value")
        *outer, name = key.strip().split(".")
        inner = values
        for part in outer:
            if inner.get(part) is None:
                inner[part] = {}
            inner = inner[part]
            if not isinstance(inner, dict):
                raise InputError(f"{override!r}: {part!r} holds a value, not further settings")
        try:
            inner[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: {text!r} is no YAML value") from error
    return check_settings(type(settings), values)


def check_settings(model_class: type[Settings], values: Mapping[str, Any], source: str = "") -> Settings:
    """Validated settings; what pydantic finds wrong becomes one `InputError` line, beginning with `source`."""
    try:
        return model_class.model_validate(values)
    except ValidationError as error:
        problems = [_problem(model_class, dict(found)) for found in error.errors(include_url=False)]
        raise InputError((f"{source}: " if source else "") + "; ".join(problems[:4])) from None


def _problem(model_class: type[BaseModel], error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        return _unknown_setting(model_class, location)
    message = str(error["msg"]).removeprefix("Value error, ")
    where = ".".join(location) or "settings"
    if error["type"] in ("missing", "value_error"):
        return f"{where}: {message}"
    return f"{where}: {message}; got {error['input']!r}"


def _unknown_setting(model_class: type[BaseModel], location: list[str]) -> str:
    """Names the nearest setting beside the unknown one, else one of its name elsewhere, else all beside it."""
    *outer, name = location
    paths = list(_paths(model_class))
    beside = [path.split(".")[-1] for path in paths if path.split(".")[:-1] == outer]
    elsewhere = [path for path in paths if path.split(".")[-1] == name]
    # Bare names are compared: a common beginning would make all of them near.
    near = [".".join([*outer, match]) for match in difflib.get_close_matches(name, beside, n=1, cutoff=0.7)]
    if near or elsewhere:
        return f"unknown setting {'.'.join(location)!r}; did you mean {' or '.join(map(repr, near or elsewhere))}?"
    return f"unknown setting {'.'.join(location)!r}; there is {', '.join(beside)}"


def _paths(model_class: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model_class.model_fields.items():
        yield prefix + name
        for inner in _nested(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.")


def _nested(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings models inside an annotation such as `Inner | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _nested(argument)


def write_settings(settings: BaseModel, path: str | Path) -> None:
    """Writes all settings, defaults included, as YAML that `load_settings` reads back."""
    content = settings.model_dump(mode="json")
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != content:  # YAML folds some of Unicode's line breaks into spaces
        text = yaml.safe_dump(content, sort_keys=False)
    write_text(path, text)


def find_changes(settings: BaseModel, before: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs from the settings of an earlier run, except where fields marked with `MAY_CHANGE` or `MAY_GROW` allow it."""
    now = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if name not in before or marks.get("may_change"):
            continue
        value = getattr(settings, name)
        if isinstance(value, BaseModel) and isinstance(before[name], Mapping):
            yield from find_changes(value, before[name], f"{prefix}{name}.")
        elif now[name] != before[name]:
            numbers = marks.get("may_grow") and isinstance(before[name], int | float) and isinstance(now[name], int | float)
            if not (numbers and now[name] > before[name]):
                yield f"{prefix}{name} was {before[name]!r} and is {now[name]!r}{' (it may only grow)' if numbers else ''}"


def refuse_run(folder: Path, *, resume: bool) -> None:
    """Nothing, unless a folder holds a run that is not to be resumed: what reads much data first asks this before.

    Raises:
        InputError: for such a folder.
    """
    parts = (folder / "settings.yaml", folder / "metrics.jsonl", folder / "checkpoints" / "last.pth")
    if not resume and any(path.exists() for path in parts):
        raise InputError(f"{folder}: holds a run already; resume it (--resume), or train into another folder")


def keep_settings(settings: BaseModel, folder: Path, *, resume: bool) -> None:
    """Writes `settings.yaml` of a run folder, unless the run in it is another.

    Raises:
        InputError: for a folder that holds a run where none is resumed, and for a run that began with other settings.
    """
    refuse_run(folder, resume=resume)
    kept = folder / "settings.yaml"
    changes = list(find_changes(settings, read_yaml(kept))) if kept.exists() else []
    if changes:
        raise InputError(f"{folder}: a run resumes with the settings it began with, but {'; '.join(changes)}")
    write_settings(settings, kept)
