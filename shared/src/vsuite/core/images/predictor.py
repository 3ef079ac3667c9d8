"""A loaded classifier that names what is in images: single ones, or files, folders and arrays with results as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.batch import find_files
from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError
from vsuite.core.files import write_csv, write_text
from vsuite.core.images.classifier import load_classifier, probabilities
from vsuite.core.images.datasets import Sample, check_array, first, read_arrays
from vsuite.core.images.files import SUFFIXES, is_image, read_image
from vsuite.core.images.loading import load_batches
from vsuite.core.images.preprocessing import preprocess, restore
from vsuite.core.optimize import optimize_for_inference

PICTURES = 32  # images on the contact sheet
THRESHOLD = 0.5  # from which on a class of a multi-label model counts as found


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        name: the file, or the array's name and index.
        scores: K probabilities, in the order of `classes`; they sum to 1 unless `multi_label`.
    """

    name: str
    scores: NDArray[np.float32]
    classes: Sequence[str]
    multi_label: bool = False

    @property
    def found(self) -> list[int]:
        """Indices of the classes: the likeliest one, or all from 0.5 up if multi-label."""
        return np.flatnonzero(self.scores >= THRESHOLD).tolist() if self.multi_label else [int(self.scores.argmax())]

    @property
    def label(self) -> str:
        """The class; several separated by ";", and empty for none, if multi-label."""
        return ";".join(self.classes[k] for k in self.found)

    @property
    def probability(self) -> float:
        """Of the label; of the likeliest class if there are several or none."""
        return float(self.scores.max())


class Predictor:
    """A classifier, kept in memory for any number of images.

    Args:
        source: weights that `vsuite train` saved, a run folder, or a published checkpoint.
        model: name of the model; None finds it from the file.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        batch_size: images a call of the network.
        image_size: side of the input in pixels, in place of the file's; for published checkpoints that were made for another
            size than 224 and do not tell.

    Raises:
        InputError: for files that are no weights of a classifier, and options out of range.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        model: str | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int = 32,
        image_size: int | None = None,
    ) -> None:
        check_precision(precision)
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more; got {batch_size}")
        self.device = pick_device(device)
        network, self.note = load_classifier(source, model)
        self.source, self.precision, self.batch_size = str(source), precision, batch_size
        self.model = optimize_for_inference(network, precision=precision).to(self.device)
        if image_size is not None:
            image = self.note.image.model_copy(update={"size": (image_size, image_size)})
            self.note = self.note.model_copy(update={"image": image})
        self.classes, self.multi_label = self.note.classes, self.note.multi_label

    def predict(self, image: str | Path | NDArray[Any]) -> Prediction:
        """One image: a file, or an array H, W or H, W, C of uint8, uint16 or floats from 0 to 1.

        Raises:
            InputError: for files or arrays that cannot be used (which, and why).
        """
        scores = self.scores(preprocess(read_image(image), self.note.image)[None])
        return Prediction("the image array" if isinstance(image, np.ndarray) else str(image), scores[0], self.classes, self.multi_label)

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Prediction | InputError]]:
        """(index, what was found) of each image in order; the error instead where an image cannot be used."""
        for batch in load_batches(samples, self.note.image, self.batch_size):
            inputs = [image for _, image in batch if isinstance(image, Tensor)]
            scores = iter(self.scores(torch.stack(inputs)) if inputs else ())
            for index, image in batch:
                if isinstance(image, InputError):
                    yield index, image
                else:
                    yield index, Prediction(samples[index].name, next(scores), self.classes, self.multi_label)

    def scores(self, images: Tensor) -> NDArray[np.float32]:
        """Preprocessed images B, C, H, W -> probabilities B, K."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            found = probabilities(self.model(images.to(self.device)), multi_label=self.multi_label).cpu().numpy()
        if not np.isfinite(found).all():
            raise InputError(f"{self.source}: the network gives values that are not finite; try precision fp32, or other weights")
        return found


def find_images(inputs: Sequence[str | Path]) -> tuple[list[Sample], list[str]]:
    """The images in files, folders (with their subfolders), patterns such as "photos/*.jpg" and `.npz` arrays, without labels.

    Returns:
        The images, and what is wrong with inputs that mean none; see `find_files`.
    """
    files, failed = find_files(inputs, _images_in, Path.is_file, f"images ({', '.join(SUFFIXES)})")
    samples: list[Sample] = []
    for file in files:
        samples += _of_arrays(file) if file.suffix.lower() == ".npz" else [Sample(str(file), file, ())]
    return samples, failed


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if is_image(file))


def _of_arrays(path: Path) -> list[Sample]:
    arrays = read_arrays(path)
    names = [name for name in arrays if name == "images" or name.endswith("_images")]
    if not names:
        raise InputError(f"{path}: holds no array `images` or `..._images`; it has {first(sorted(arrays), 8)}")
    for name in names:
        check_array(arrays[name], f"{path}: {name}", values=False)
    return [Sample(f"{name}[{i}]", image, ()) for name in names for i, image in enumerate(arrays[name])]


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], out: str | Path, *, as_json: bool = False, pictures: bool = True
) -> tuple[list[Prediction], dict[str, InputError]]:
    """Names what is in many images and writes `predictions.csv`, `predictions.json` where asked, and `contact_sheet.png`.

    Returns:
        What was found, and name -> error of the images that could not be used; these stop nothing.
    """
    out, (samples, missing) = Path(out), find_images(inputs)
    found: list[Prediction] = []
    failed = {line.partition(": ")[0]: InputError(line) for line in missing}
    shown: list[Sample] = []
    for index, result in predictor.predict_samples(samples):
        if isinstance(result, InputError):
            failed[samples[index].name] = result
            continue
        found.append(result)
        if len(shown) < PICTURES:
            shown.append(samples[index])
    write_predictions(found, predictor.classes, out / "predictions.csv")
    if as_json:
        write_text(out / "predictions.json", json.dumps(_as_json(predictor, found, failed), indent=1) + "\n")
    if pictures and shown:
        draw_sheet(predictor, shown, found, out / "contact_sheet.png")
    return found, failed


def write_predictions(found: Sequence[Prediction], classes: Sequence[str], path: str | Path) -> None:
    """Writes one line an image: path, label, probability, and a column a class with its probability."""
    rows = ([one.name, one.label, f"{one.probability:.6g}", *(f"{score:.6g}" for score in one.scores)] for one in found)
    write_csv(path, [["path", "label", "probability", *classes], *rows])


def _as_json(predictor: Predictor, found: Sequence[Prediction], failed: dict[str, InputError]) -> dict[str, Any]:
    images: list[dict[str, Any]] = [
        {
            "path": one.name,
            "labels": [one.classes[k] for k in one.found],
            "probability": round(one.probability, 6),
            "probabilities": {name: round(float(score), 6) for name, score in zip(one.classes, one.scores, strict=True)},
        }
        for one in found
    ]
    images += [{"path": name, "error": str(error)} for name, error in failed.items()]
    return {"weights": predictor.source, "classes": predictor.classes, "multi_label": predictor.multi_label, "images": images}


def draw_sheet(predictor: Predictor, samples: Sequence[Sample], found: Sequence[Prediction], path: str | Path, title: str = "") -> None:
    """Writes a PNG of images with what was found; labelled ones say whether it is right."""
    from vsuite.core.images.pictures import Tile, caption, contact_sheet

    tiles = []
    for sample, one in zip(samples, found, strict=False):
        image = restore(preprocess(read_image(sample.image), predictor.note.image), predictor.note.image)
        wanted = sample.labels if sample.labels else None
        right = None if wanted is None else set(wanted) == set(one.found)
        tiles.append(Tile(image, caption(one.found, one.scores, one.classes, wanted), right))
    contact_sheet(tiles, path, title)
