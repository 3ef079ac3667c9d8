"""A network and what its outputs mean: building one to train, starting from other weights, and loading one to predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.images.datasets import first
from vsuite.core.images.preprocessing import PreprocessingSettings
from vsuite.core.images.recipes import RecipeSettings
from vsuite.core.registry import create_model, model_info
from vsuite.core.weights import find_weights, load_published, load_weights, read_metadata, read_state_dict, rename

PUBLISHED_CROP = 0.875  # what the published accuracies on ImageNet were measured with


class ClassifierNote(BaseModel):
    """What the weights file says beside the weights.

    Attributes:
        classes: names, in the order of the outputs.
        named: whether these names mean anything; a published checkpoint has none, and its classes are called by their numbers.
        multi_label: whether each output is a probability of its own (sigmoid), or all of them are one (softmax).
        image: how an image becomes the network's input.
    """

    model_config = ConfigDict(extra="forbid")

    classes: list[str] = Field(min_length=1)
    named: bool = True
    multi_label: bool = False
    image: PreprocessingSettings

    @model_validator(mode="after")
    def _sized(self) -> ClassifierNote:
        if self.image.size is None:
            raise ValueError("image.size is missing")
        return self


def probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Logits B, K -> probabilities, float32."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=1)


def build_classifier(settings: RecipeSettings, num_classes: int) -> nn.Module:
    """The recipe's model, new, with an output a class.

    Raises:
        InputError: for unknown models and options, and models that classify nothing.
    """
    info = model_info(settings.model)
    if info.task != "classification" or "num_classes" not in info.options:
        raise InputError(f"{info.name} is a model for {info.task}; `vsuite models --task classification` lists those that classify images")
    options: dict[str, Any] = dict(settings.options)
    if settings.drop_path is not None and "drop_path_rate" in info.options:
        options.setdefault("drop_path_rate", settings.drop_path)
    if "in_channels" in info.options:
        options.setdefault("in_channels", settings.image.channels)
    return create_model(info.name, **(options | {"num_classes": num_classes}))


def start_from(model: nn.Module, source: str | Path, head: frozenset[str], classes: Sequence[str], say: Callable[[str], None]) -> None:
    """Fills a model from other weights; the head stays as initialised where the file's is of other classes or absent.

    Args:
        head: the names of the tensors that depend on the number of classes; see `head_names`.
        classes: what the model is trained on now.
        say: takes a line about what was loaded and what was not.

    Raises:
        InputError: where anything but the head does not fit: the weights are of another model.
    """
    path = find_weights(source)
    report = load_weights(model, path, strict=False)
    wrong = [name for name in report.mismatched if name not in head]
    missing = [name for name in report.missing if name not in head and name not in report.mismatched]
    if wrong or missing or report.unexpected or not report.loaded:
        raise InputError(f"{path}: does not fit {type(model).__name__}: {report.problems() or 'none of its tensors belongs to it'}")
    fresh = sorted({*report.fresh, *report.mismatched, *report.missing})
    parts = [f"{len(report.loaded)} tensors loaded"]
    if report.resized:
        parts.append(f"fitted to this input: {first(list(report.resized))}")
    before = read_metadata(path).get("classifier", {}).get("classes", classes)
    other = "" if list(before) == list(classes) else f", which was trained on {first(before)}"
    parts.append(f"new, as the classes differ: {', '.join(fresh)}" if fresh else f"the head included{other}")
    say(f"{path}: {'; '.join(parts)}")


def head_names(settings: RecipeSettings, num_classes: int) -> frozenset[str]:
    """The tensors of a model whose shape depends on the number of classes; costs no memory."""
    with torch.device("meta"):
        one, other = (build_classifier(settings, number).state_dict() for number in (num_classes, num_classes + 1))
    return frozenset(name for name, value in one.items() if name in other and value.shape != other[name].shape)


def freeze_backbone(model: nn.Module, head: frozenset[str]) -> None:
    """Leaves only the parameters of the head (see `head_names`) to be trained; all else stays in eval mode whatever `train()` says."""
    trained = {name.rpartition(".")[0] for name in head}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)

    def fixed(module: nn.Module, _: Any) -> None:
        for name, part in module.named_modules():
            if name and name not in trained:
                part.training = False

    model.register_forward_pre_hook(fixed)


def load_classifier(source: str | Path, model: str | None = None) -> tuple[nn.Module, ClassifierNote]:
    """The network of a weights file and what its outputs mean.

    Args:
        source: weights that `vsuite train` saved, a run folder, or a published checkpoint: its classes are then called by
            their numbers, and images are prepared as for the published figures on ImageNet.
        model: name of the model; None finds it from the file.

    Raises:
        InputError: for files that are no weights of a classifier, or lack those of the last layer.
    """
    path = find_weights(source)
    note = read_metadata(path).get("classifier")
    network = load_published(path) if model is None else create_model(model, weights=path, num_classes=_classes_of_head(path, model))
    if note is None:
        return network, _published_note(network, path, model)
    try:
        return network, ClassifierNote.model_validate(note)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: its note on the classes is damaged: {error.errors()[0]['msg']}") from error


def _classes_of_head(path: Path, model: str) -> int | None:
    """How many classes the weights are of, where the model's layout says which tensor tells; else None."""
    info = model_info(model)
    if info.layout is None or not info.layout.head or "num_classes" not in info.options:
        return None
    weight = rename(read_state_dict(path), info.layout).get(info.layout.head + "weight")
    return None if weight is None or not weight.ndim else len(weight)


def _published_note(network: nn.Module, path: Path, model: str | None) -> ClassifierNote:
    built_from = getattr(network, "built_from", {})
    name = model or built_from.get("model")
    options = built_from.get("options", {})
    size = getattr(getattr(network, "size_rule", None), "fixed", None) or options.get("image_size")
    size = size or (model_info(name).input_size[1:] if name is not None else None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    channels = options.get("in_channels", 3)
    image = PreprocessingSettings(size=(height, width), channels=1 if channels == 1 else 3, crop=PUBLISHED_CROP)
    try:
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(1, image.channels, height, width))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no image classifier: {str(error).splitlines()[0]}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise InputError(f"{path}: is no image classifier: {type(network).__name__} does not give one row of scores an image")
    return ClassifierNote(classes=[str(i) for i in range(outputs.shape[1])], named=False, image=image)
