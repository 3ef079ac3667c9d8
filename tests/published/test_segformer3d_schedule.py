"""The learning rate of every epoch of the published SegFormer3D run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vsuite.medical.recipes import brats_learning_rate


def test_learning_rate_of_all_epochs(load_case: Callable[[str], Any]) -> None:
    case = load_case("segformer3d/lr_schedule")
    base, floor = case.meta["config"]["base_lr"], case.meta["config"]["min_lr"]
    rates = [brats_learning_rate(int(epoch), base, floor) for epoch in case.inputs()["epoch"]]
    case.check({"lr": np.array(rates)}, rtol=1e-6)
