"""Voting at test time: the mean softmax over scaled copies of a cloud."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vsuite.core.errors import InputError


def vote(
    network: Callable[[Tensor], Tensor],
    points: Tensor,
    *,
    copies: int = 10,
    scale: tuple[float, float] = (0.85, 1.15),
    shift: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Probabilities averaged over copies of the same clouds; the first copy is the cloud itself.

    Each copy starts from the points as given: factors never pile up from copy to copy, as they do in the code in
    circulation. All clouds see the same factors, so that the result does not depend on the batch. Scores with voting are
    to be reported as such, and never the best of several seeds.

    Args:
        network: points B, N, 3 -> logits ..., K.
        points: B, N, 3; left as they are.
        copies: 1 or more; 1 is no voting.
        scale: the factors of the other copies lie between these, one an axis.
        shift: of the other copies, up to this much along each axis; 0 for classification.
        seed: of the factors.

    Returns:
        Probabilities of the shape of the logits.
    """
    if copies < 1 or not 0 < scale[0] <= scale[1] or shift < 0:
        raise InputError(f"voting takes 1 or more copies, factors above 0 and a shift of 0 or more; got {copies}, {scale} and {shift}")
    generator = np.random.default_rng(seed)
    total = network(points).float().softmax(dim=-1)
    for _ in range(copies - 1):
        factors = torch.as_tensor(generator.uniform(*scale, size=3), dtype=points.dtype, device=points.device)
        offsets = torch.as_tensor(generator.uniform(-shift, shift, size=3), dtype=points.dtype, device=points.device)
        total = total + network(points * factors + offsets).float().softmax(dim=-1)
    return total / copies
