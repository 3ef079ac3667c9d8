"""Ordinary images: data sets, augmentation, and the classification task from training to evaluation.

    settings = resolve_settings(data="photos", model="convnext_tiny", overrides=["training.epochs=20"])
    result = train(settings, "runs/photos")
    predictor = Predictor(result.best_path)
    predictor.predict("cat.jpg").label
    evaluate(predictor, "photos", out="evaluation").summary

Nothing heavy is imported before the first call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsuite.core.images.datasets import ImageDataset, Sample, read_dataset
    from vsuite.core.images.evaluation import evaluate, evaluate_file
    from vsuite.core.images.files import read_image
    from vsuite.core.images.predictor import Prediction, Predictor, predict_files
    from vsuite.core.images.recipes import list_recipes, load_recipe
    from vsuite.core.images.training import RunSettings, resolve_settings, train

_LAZY = {
    "ImageDataset": "datasets",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "RunSettings": "training",
    "Sample": "datasets",
    "evaluate": "evaluation",
    "evaluate_file": "evaluation",
    "list_recipes": "recipes",
    "load_recipe": "recipes",
    "predict_files": "predictor",
    "read_dataset": "datasets",
    "read_image": "files",
    "resolve_settings": "training",
    "train": "training",
}

__all__ = [
    "ImageDataset",
    "Prediction",
    "Predictor",
    "RunSettings",
    "Sample",
    "evaluate",
    "evaluate_file",
    "list_recipes",
    "load_recipe",
    "predict_files",
    "read_dataset",
    "read_image",
    "resolve_settings",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
