"""The common ground of vsuite: models by name, published weights, training, evaluation and benchmarks.

Importing this module loads neither torch nor any model file; both come with the first call that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vsuite.core.errors import InputError
from vsuite.core.registry import (
    ModelInfo,
    PublishedLayout,
    PublishedResult,
    create_model,
    list_models,
    model_info,
    register_model,
)

if TYPE_CHECKING:
    from vsuite.core.optimize import optimize_for_inference
    from vsuite.core.weights import LoadReport, load_published, load_weights, save_weights

__version__ = "0.1.0"

_LAZY = {
    "LoadReport": "vsuite.core.weights",
    "load_published": "vsuite.core.weights",
    "load_weights": "vsuite.core.weights",
    "optimize_for_inference": "vsuite.core.optimize",
    "save_weights": "vsuite.core.weights",
}

__all__ = [
    "InputError",
    "LoadReport",
    "ModelInfo",
    "PublishedLayout",
    "PublishedResult",
    "create_model",
    "list_models",
    "load_published",
    "load_weights",
    "model_info",
    "optimize_for_inference",
    "register_model",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
