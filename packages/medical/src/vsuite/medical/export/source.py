"""What an export starts from: a weights file of ours, or a model with its plan."""

from __future__ import annotations

import copy

from torch import nn

from vsuite.medical.inference.predictor import Source, load_model_and_plan
from vsuite.medical.plan import Plan


def model_and_plan(source: Source) -> tuple[nn.Module, Plan]:
    """The network on the CPU in eval mode and float32, and its plan.

    Args:
        source: weights as training saves them (safetensors with the plan inside), the name of weights that an installed
            package ships, or a pair of model and plan, which is left as it is.

    Raises:
        InputError: for files that are no weights or hold no plan.
    """
    model, plan = load_model_and_plan(source)
    if isinstance(source, tuple):
        model = copy.deepcopy(model)
    return model.cpu().float().eval(), plan
