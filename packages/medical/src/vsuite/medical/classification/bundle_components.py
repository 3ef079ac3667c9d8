"""The parts that a classification bundle's configuration names: our reading and preparing of pictures, and what is written.

Importing this module imports monai; only a bundle that runs needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.core.images.classifier import ClassifierNote, probabilities
from vsuite.core.images.files import read_image
from vsuite.core.images.predictor import find_images
from vsuite.core.images.preprocessing import preprocess
from vsuite.medical.data import pictures2d  # noqa: F401  makes the core read DICOM and NIfTI


def read_note(path: str | Path) -> ClassifierNote:
    """The classes and the preparation of pictures that lie beside a bundle's configuration."""
    try:
        return ClassifierNote.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; is bundle_root right?") from error
    except ValueError as error:
        raise InputError(f"{path}: is no note on a classifier: {str(error).splitlines()[0]}") from error


def find_pictures(dataset_dir: str | Path) -> list[dict[str, str]]:
    """The pictures of a folder (with its subfolders) as MONAI's data list; raises `InputError` for one that is missing or holds none."""
    files = [sample.image for sample in find_images([dataset_dir])[0] if isinstance(sample.image, Path)]
    return [{"image": str(path), "name": path.relative_to(dataset_dir).as_posix()} for path in files]


class PreparePicture(Transform):
    """`image`: a file -> the network's input C, H, W; `name`, if given, is kept beside it."""

    def __init__(self, note: ClassifierNote) -> None:
        self.note = note

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        tensor = preprocess(read_image(data["image"]), self.note.image)
        path = str(data["image"])
        return {**data, "image": MetaTensor(tensor, meta={"filename_or_obj": path, "name": data.get("name", Path(path).name)})}


class SaveProbabilities(Transform):
    """Writes `pred`, logits K, as `<output_dir>/<name of the picture>.json`: what was found, and the probability of each class."""

    def __init__(self, note: ClassifierNote, output_dir: str | Path) -> None:
        self.note, self.output_dir = note, Path(output_dir)

    def __call__(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        logits = torch.as_tensor(data["pred"]).as_subclass(torch.Tensor).float().cpu().reshape(1, -1)
        scores = probabilities(logits, multi_label=self.note.multi_label)[0].tolist()
        found = [k for k, score in enumerate(scores) if score >= 0.5] if self.note.multi_label else [scores.index(max(scores))]
        facts = data["image"].meta
        content = {
            "path": str(facts["filename_or_obj"]),
            "labels": [self.note.classes[k] for k in found],
            "probabilities": {name: round(score, 6) for name, score in zip(self.note.classes, scores, strict=True)},
        }
        write_text(self.output_dir / f"{facts['name']}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return data
