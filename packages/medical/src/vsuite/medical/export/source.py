"""What an export starts from: a weights file of ours, or a model with its plan."""

from __future__ import annotations

import copy
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from vsuite.core import InputError, load_published
from vsuite.core.weights import read_metadata
from vsuite.medical.inference.predictor import find_weights
from vsuite.medical.plan import Plan

Source = str | Path | tuple[nn.Module, Plan]


def model_and_plan(source: Source) -> tuple[nn.Module, Plan]:
    """The network on the CPU in eval mode and float32, and its plan.

    Args:
        source: weights as training saves them (safetensors with the plan inside), the name of weights that an installed
            package ships, or a pair of model and plan, which is left as it is.

    Raises:
        InputError: for files that are no weights or hold no plan.
    """
    if isinstance(source, tuple):
        model, plan = source
        return copy.deepcopy(model).cpu().float().eval(), plan
    path = find_weights(source)
    note = read_metadata(path).get("plan")
    if note is None:
        raise InputError(f"{path}: holds no plan (channels, spacing, labels); exports start from weights that vsuite-medical saved")
    try:
        plan = Plan.model_validate(note)
    except ValidationError as error:
        raise InputError(f"{path}: its plan is damaged: {error.errors()[0]['msg']}") from error
    return load_published(path).eval(), plan
