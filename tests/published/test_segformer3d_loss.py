"""The losses of SegFormer3D's released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vsuite.medical.losses import dice_bce, dice_loss, dice_score, segformer3d_dice_ce


def test_loss(load_case: Callable[[str], Any]) -> None:
    case = load_case("segformer3d/loss")
    inputs = {name: torch.from_numpy(array) for name, array in case.inputs().items()}
    logits, target = inputs["logits"].requires_grad_(), inputs["target"]
    with_empty = target.clone()
    with_empty[0, 2] = with_empty[1, 1] = 0
    dice_of_empty = dice_loss(logits, with_empty)
    (gradient,) = torch.autograd.grad(dice_of_empty, logits)
    terms = [dice_loss(logits, target), dice_of_empty, sum(segformer3d_dice_ce(logits, target).values()), dice_bce(logits, target)["bce"]]
    case.check(
        {
            "losses": torch.stack([torch.as_tensor(term) for term in terms]).detach(),
            "dice_none": (1 - dice_score(logits, with_empty)).detach().flatten(),
            "dice_grad": gradient,
        }
    )
