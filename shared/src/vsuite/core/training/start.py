"""Starting a training from other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vsuite.core.errors import InputError
from vsuite.core.weights import find_weights, load_weights

if TYPE_CHECKING:
    from torch import nn


def start_from(model: nn.Module, source: str | Path, say: Callable[[str], None] = print) -> None:
    """Fills a model from other weights; what they lack, or hold for other sizes, stays as initialised.

    Args:
        source: file, run folder, or name of shipped weights.
        say: takes a line about what stays as initialised.

    Raises:
        InputError: where names are left over, or hardly any fit: the weights are of another model.
    """
    path = find_weights(source)
    report = load_weights(model, path, strict=False)
    fresh = sorted({*report.missing, *report.mismatched})
    if report.unexpected or len(report.loaded) < len(fresh):
        raise InputError(f"{path}: does not fit {type(model).__name__}: {report.problems()}")
    if fresh:
        say(f"{path}: {len(report.loaded)} tensors loaded; new and left as initialised: {', '.join(fresh)}")
