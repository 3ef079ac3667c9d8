"""Training a classifier: a data set and a recipe in, a run folder out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.devices import pick_device
from vsuite.core.errors import InputError, unknown
from vsuite.core.files import write_text
from vsuite.core.images.augmentation import mix
from vsuite.core.images.classifier import ClassifierNote, build_classifier, freeze_backbone, head_names, probabilities, start_from
from vsuite.core.images.datasets import DatasetReader, ImageDataset, check_for_training, check_images, divide, read_dataset
from vsuite.core.images.files import read_image
from vsuite.core.images.loading import TrainingData, load_batches
from vsuite.core.images.metrics import classification_metrics, confusion_matrix, truth_table
from vsuite.core.images.preprocessing import preprocess, restore
from vsuite.core.images.recipes import RECIPES, RecipeSettings, RunSettings, ValidationSettings
from vsuite.core.training import TrainingResult, TrainingSettings
from vsuite.core.training import train as run_training
from vsuite.core.training.processes import first_alone, from_all, process_group
from vsuite.core.training.recipes import Recipes
from vsuite.core.training.settings import refuse_run
from vsuite.core.weights import find_weights, read_metadata

PICTURES = 24  # validation images on the sheet in the report
LARGEST = 224  # side in pixels that is chosen for data sets of larger images


class ClassificationTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, dataset: ImageDataset, say: Callable[[str], None]) -> None:
        self.settings, self.dataset, self.say = settings, dataset, say
        self.validation = dataset.splits.get("val", [])
        self.scores = np.zeros((0, len(dataset.classes)))  # of the last validation

    def build_model(self) -> nn.Module:
        number = len(self.dataset.classes)
        model = build_classifier(self.settings, number)
        if self.settings.weights:
            start_from(model, self.settings.weights, head_names(self.settings, number), self.dataset.classes, self.say)
        if self.settings.freeze == "backbone":
            freeze_backbone(model, head_names(self.settings, number))
        return model

    def training_data(self) -> TrainingData:
        return TrainingData(self.dataset.splits["train"], len(self.dataset.classes), self.settings.augmentation, self.settings.image)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images, targets = mix(batch["image"], batch["target"], self.settings.augmentation)
        return {"cross_entropy": cross_entropy(model(images), targets, self.settings.label_smoothing, multi_label=self.dataset.multi_label)}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """See `classification_metrics`, and `loss`: the cross-entropy without smoothing."""
        multi_label = self.dataset.multi_label
        mine = self.validation[rank::world_size]
        found = [np.zeros((0, len(self.dataset.classes)), np.float32)]
        for batch in load_batches(mine, self.settings.image, self.settings.training.batch_size):
            for _, image in batch:
                if isinstance(image, InputError):
                    raise image
            images = torch.stack([image for _, image in batch if isinstance(image, Tensor)])
            found.append(probabilities(model(images.to(device)), multi_label=multi_label).cpu().numpy())
        self.scores = np.empty((len(self.validation), len(self.dataset.classes)), np.float32)
        for start, part in enumerate(from_all(np.concatenate(found))):
            self.scores[start::world_size] = part
        truth = truth_table([sample.labels for sample in self.validation], len(self.dataset.classes))
        likely = np.log(np.where(truth, self.scores, 1 - self.scores if multi_label else 1.0).clip(1e-12))
        return classification_metrics(self.scores, truth, self.dataset.classes, multi_label=multi_label) | {
            "loss": float(-(likely.mean() if multi_label else likely.sum(axis=1).mean()))
        }

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The first validation images, spread over the set, with what was found, and the confusion matrix."""
        from vsuite.core.images.pictures import Tile, caption, confusion_picture, contact_sheet

        classes, multi_label = self.dataset.classes, self.dataset.multi_label
        if not len(self.scores):
            return []
        tiles = []
        for index in np.unique(np.linspace(0, len(self.validation) - 1, PICTURES).astype(int)):
            sample, scores = self.validation[index], self.scores[index]
            image = restore(preprocess(read_image(sample.image), self.settings.image), self.settings.image)
            found = np.flatnonzero(scores >= 0.5).tolist() if multi_label else [int(scores.argmax())]
            tiles.append(Tile(image, caption(found, scores, classes, sample.labels), set(found) == set(sample.labels)))
        paths = [folder / "validation.png"]
        contact_sheet(tiles, paths[0], "what was found in validation images; in brackets what is right")
        if not multi_label:
            wanted = np.array([sample.labels[0] for sample in self.validation])
            paths.append(folder / "confusion.png")
            confusion_picture(confusion_matrix(wanted, self.scores.argmax(axis=1), len(classes)), classes, paths[1])
        return paths

    def metadata(self) -> dict[str, Any]:
        note = ClassifierNote(classes=self.dataset.classes, multi_label=self.dataset.multi_label, image=self.settings.image)
        return {"classifier": note.model_dump(mode="json"), "recipe": self.settings.name}


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, *, multi_label: bool) -> Tensor:
    """Mean over the batch of B, K logits against B, K targets from 0 to 1: softmax, or a sigmoid a class (mean over classes)."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits.float(), targets * (1 - smoothing) + smoothing / 2)
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def resolve_settings(
    *,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    recipes: Recipes[RecipeSettings, RunSettings] = RECIPES,
    **given: Any,
) -> RunSettings:
    """The settings of a run, from a recipe or a settings file and what overrides it.

    Args:
        data: see `read_dataset`; None takes the settings file's.
        recipe: name or file of a recipe; None is "transfer" where there are weights to start from, else "generic".
        config: a run's `settings.yaml`, in place of a recipe.
        overrides: "training.epochs=10" and the like.
        recipes: where they are; a domain may have its own.
        given: further fields of `RunSettings`; None leaves one as it is.

    Raises:
        InputError: for unknown settings (naming the nearest), wrong values, and where no data set is named.
    """
    if any(override.partition("=")[0].strip() == "training.validate_every" for override in overrides):
        overrides = [*overrides, "validation.every_epochs=null"]  # steps that are asked for win, also the default's number
    default = "transfer" if given.get("weights") else "generic"
    settings = recipes.resolve(data=data, recipe=recipe, config=config, overrides=overrides, default=default, **given)
    keep_model = config is not None or given.get("model") is not None or any(override.startswith("model=") for override in overrides)
    return settings if settings.weights is None else with_network_of(settings.weights, settings, keep_model=keep_model)


def with_network_of(weights: str, settings: RunSettings, *, keep_model: bool) -> RunSettings:
    """The settings with the model and options that our own weights were trained with, but for options that are set already.

    Args:
        keep_model: the model was chosen: take the options only if the weights are of that model.
    """
    note = read_metadata(find_weights(weights))
    if "model" not in note or (keep_model and note["model"] != settings.model):
        return settings
    options = {key: value for key, value in note.get("options", {}).items() if key not in ("num_classes", "in_channels")}
    return settings.model_copy(update={"model": note["model"], "options": options | settings.options})


def train(
    settings: RunSettings,
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    say: Callable[[str], None] = print,
    read: DatasetReader = read_dataset,
) -> TrainingResult:
    """Looks at the data set, trains, and leaves a run folder.

    Beside what every run folder holds (see `vsuite.core.training`) there is `data.json`, by which a resumed run knows its data
    again, and `split.csv` where images are files: it can be given as a data set to evaluate on what was held back. Every
    process of a distributed run calls this.

    Args:
        settings: see `resolve_settings`.
        out: the run folder.
        resume: continue the run in `out`.
        say: takes lines about what was understood; never called in other processes than the first.
        read: what reads the data set; a domain's own knows further layouts.

    Raises:
        InputError: for everything that is wrong with the data set or the settings, and for a data set that is not the one
            the run began with, before training starts.
    """
    out = Path(out)
    with process_group(pick_device(device)) as place:
        first_alone(lambda: refuse_run(out, resume=resume))
        say = say if place.rank == 0 else lambda line: None
        dataset = read(settings.data, multi_label=settings.multi_label)
        dataset = divide(dataset, settings.validation.fraction, settings.training.seed)
        check_for_training(dataset)
        say(dataset.describe())
        sizes = check_images([*dataset.splits["train"], *dataset.splits["val"]], settings.check_images)
        settings = _complete(settings, dataset, sizes, say)
        _check_best_metric(settings, dataset)
        check_network(settings, dataset.classes)
        first_alone(lambda: keep_data(dataset, out))
        task = ClassificationTask(settings, dataset, say)
        loop = loop_settings(settings.training, settings.validation, dataset, place.world_size)
        return run_training(task, loop, out, device=device, resume=resume, resolved=settings)


def _complete(settings: RunSettings, dataset: ImageDataset, sizes: Sequence[tuple[int, int]], say: Callable[[str], None]) -> RunSettings:
    """The settings with what follows from the data: the size of the input, and the metric that chooses the best weights."""
    image, training = settings.image, settings.training
    if image.size is None:
        image = image.model_copy(update={"size": _fitting_size(settings, sizes, len(dataset.classes))})
        say(f"images are brought to {image.size[0]} x {image.size[1]} pixels (image.size)")  # type: ignore[index]
    if dataset.multi_label and training.best_metric in ("top1", "top5"):
        training = training.model_copy(update={"best_metric": "mean_average_precision"})
    return settings.model_copy(update={"image": image, "training": training})


def _check_best_metric(settings: RunSettings, dataset: ImageDataset) -> None:
    metric = settings.training.best_metric
    if metric is None or not dataset.splits["val"]:
        return
    one = np.zeros((1, len(dataset.classes)))
    names = [*classification_metrics(one, one.astype(bool), dataset.classes, multi_label=dataset.multi_label), "loss"]
    if metric not in names:
        overall = [name for name in names if "/" not in name]
        raise unknown("validation metric (training.best_metric)", metric, overall)


def _fitting_size(settings: RunSettings, sizes: Sequence[tuple[int, int]], num_classes: int) -> tuple[int, int]:
    """The median of the shorter sides, up to a multiple of 32, 224 at the most; models of one size only get theirs."""
    with torch.device("meta"):
        rule = getattr(build_classifier(settings, num_classes), "size_rule", None)
    if getattr(rule, "fixed", None) is not None:
        return rule.fixed  # type: ignore[union-attr]
    side = min(LARGEST, 32 * math.ceil(statistics.median(min(size) for size in sizes) / 32)) if sizes else LARGEST
    return side, side


def check_network(settings: RunSettings, classes: Sequence[str]) -> None:
    """Finds out before anything is written whether the network takes the images, and the weights to start from.

    A batch goes through the network without numbers (on torch's "meta" device), which costs neither time nor memory.

    Raises:
        InputError: for options that do not fit, images of the wrong size, and weights of another model.
    """
    assert settings.image.size is not None
    num_classes = len(classes)
    shape = (settings.training.batch_size, settings.image.channels, *settings.image.size)
    with torch.device("meta"):
        model = build_classifier(settings, num_classes).train()
        try:
            outputs = model(torch.empty(shape))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{settings.model} cannot be trained on batches of {' x '.join(map(str, shape))}: {reason}") from error
    if tuple(outputs.shape) != (shape[0], num_classes):
        raise InputError(f"{settings.model} gives {tuple(outputs.shape)} for a batch of {shape[0]} images of {num_classes} classes")
    if settings.weights:
        model = build_classifier(settings, num_classes)
        start_from(model, settings.weights, head_names(settings, num_classes), classes, lambda line: None)


def loop_settings(training: TrainingSettings, validation: ValidationSettings, dataset: ImageDataset, world_size: int) -> TrainingSettings:
    """The loop's settings, with epochs between validations turned into steps; without a validation set nothing is chosen by."""
    if not dataset.splits["val"]:
        return training.model_copy(update={"best_metric": None, "early_stopping": None})
    if validation.every_epochs is None:
        return training
    step = training.batch_size * training.accumulate * world_size
    every = max(1, round(validation.every_epochs * len(dataset.splits["train"]) / step))
    return training.model_copy(update={"validate_every": every})


def keep_data(dataset: ImageDataset, folder: Path) -> None:
    """Notes in a new run folder what it is trained on; in one that has the note, finds out whether it still is that.

    Raises:
        InputError: for other images, labels, classes or splits. Nothing is written then.
    """
    note, split = folder / "data.json", folder / "split.csv"
    texts = {note: _data_note(dataset), split: _split_table(dataset)}
    kept = note if note.exists() or not split.exists() else split
    if kept.exists() and kept.read_text(encoding="utf-8") != texts[kept]:
        raise InputError(f"{kept}: the run began with other images, labels, classes or splits than {dataset.source} gives now")
    for path, text in texts.items():
        if text and not path.exists():
            write_text(path, text)


def _data_note(dataset: ImageDataset) -> str:
    """Classes, and a hash of each split's names and labels, and of the images where they are arrays."""
    hashes = {}
    for split, samples in dataset.splits.items():
        found = hashlib.sha256()
        for sample in samples:
            found.update(f"{sample.name}\n{sample.labels}\n".encode())
            if not isinstance(sample.image, Path):
                found.update(f"{sample.image.dtype} {sample.image.shape}\n".encode())
                found.update(np.ascontiguousarray(sample.image).tobytes())
        hashes[split] = {"images": len(samples), "sha256": found.hexdigest()}
    note = {"classes": dataset.classes, "multi_label": dataset.multi_label, "splits": hashes}
    return json.dumps(note, indent=2) + "\n"


def _split_table(dataset: ImageDataset) -> str:
    """The images, labels and splits of a run as a CSV data set; empty where the images are arrays."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    separate = any(";" in name for name in dataset.classes) or dataset.multi_label
    grouped = any(sample.group for samples in dataset.splits.values() for sample in samples)
    writer.writerow(["path", "split", *(["group"] if grouped else []), *(dataset.classes if separate else ["label"])])
    for split, samples in dataset.splits.items():
        for sample in samples:
            if not isinstance(sample.image, Path):
                return ""
            labels = [int(k in sample.labels) for k in range(len(dataset.classes))] if separate else [dataset.classes[sample.labels[0]]]
            writer.writerow([sample.image.resolve(), split, *([sample.group] if grouped else []), *labels])
    return text.getvalue()
