"""Losses of shape classification and part segmentation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vsuite.core.errors import InputError


def smooth_loss(logits: Tensor, label: Tensor, eps: float = 0.2, *, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Cross-entropy with label smoothing as point-cloud code does it: 1 - eps on the label, eps / (K - 1) on each other class.

    torch's `label_smoothing` spreads eps / K over all classes and differs.

    Args:
        logits: ..., K, K of 2 or more.
        label: ..., integer, 0 to K - 1.
        eps: 0 to below 1.
        reduction: "mean" over all labels, or "none".
    """
    classes = logits.shape[-1]
    if classes < 2 or not 0 <= eps < 1:
        raise InputError(f"smooth_loss takes 2 or more classes and 0 <= eps < 1; got {classes} and {eps}")
    if label.shape != logits.shape[:-1]:
        raise InputError(f"labels must be {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}; got {tuple(label.shape)}")
    log = torch.log_softmax(logits.float(), dim=-1)
    chosen = log.gather(-1, label.long().unsqueeze(-1)).squeeze(-1)
    wrong = eps / (classes - 1)
    loss = -(1 - eps - wrong) * chosen - wrong * log.sum(-1)
    return loss.mean() if reduction == "mean" else loss
