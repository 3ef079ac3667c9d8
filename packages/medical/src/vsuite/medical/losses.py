"""Losses of volumetric segmentation: soft Dice, Dice with cross-entropy, and the published SegFormer3D forms.

A target is one of two things, told apart by its shape:

* a label map, integer `B, D, H, W` or `B, 1, D, H, W`: classes exclude each other, logits go through a softmax;
* region targets, `B, K, D, H, W` like the logits with values 0..1: regions may overlap, logits go through a sigmoid.

Voxels whose target equals `ignore` count in no term. Everything is computed in float32 whatever the logits' precision.
The loss of a training step is the sum of the named terms that a function of `LOSSES` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.errors import InputError


def dice_score(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1e-5,
    squared: bool = False,
    batch_dice: bool = False,
    ignore: int | None = None,
) -> Tensor:
    """Soft Dice (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth), sums over voxels.

    Args:
        logits: B, K, D, H, W (any number of spatial axes).
        target: a label map or region targets, see the module.
        smooth: added above and below, so that a class absent from both counts as 1.
        squared: sum(p^2) + sum(g^2) below (V-Net's form).
        batch_dice: sum over the samples of the batch too.
        ignore: value of the target at voxels that do not count.

    Returns:
        B, K scores in 0..1; 1, K with `batch_dice`.
    """
    if _is_regions(logits, target):
        return _dice_of_regions(logits.float().sigmoid().flatten(2), target.flatten(2), smooth, squared, batch_dice, ignore)
    return _dice_of_labels(logits.float().flatten(2).log_softmax(1), target, smooth, squared, batch_dice, ignore)[0]


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = True,
    smooth: float = 1e-5,
    squared: bool = False,
    batch_dice: bool = False,
    ignore: int | None = None,
) -> Tensor:
    """1 - `dice_score`, the mean over samples and outputs; the defaults on region targets are SegFormer3D's BraTS loss.

    Args:
        include_background: whether output 0 enters the mean. Regions have no background: leave it True there.
        smooth, squared, batch_dice, ignore: see `dice_score`.
    """
    score = dice_score(logits, target, smooth=smooth, squared=squared, batch_dice=batch_dice, ignore=ignore)
    return 1 - (score if include_background else score[:, 1:]).mean()


def dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = False,
    smooth: float = 1e-5,
    squared: bool = False,
    batch_dice: bool = False,
    ignore: int | None = None,
) -> dict[str, Tensor]:
    """Soft Dice and cross-entropy of a label map (one softmax for both), or soft Dice and binary cross-entropy of regions.

    Args:
        include_background: whether the background enters the Dice of a label map; the cross-entropy always has it.
        smooth, squared, batch_dice, ignore: see `dice_score`.

    Returns:
        Terms "dice" and "ce" for a label map, "dice" and "bce" for regions.
    """
    if _is_regions(logits, target):
        return dice_bce(logits, target, smooth=smooth, squared=squared, batch_dice=batch_dice, ignore=ignore)
    log_probabilities = logits.float().flatten(2).log_softmax(1)
    score, cross_entropy = _dice_of_labels(log_probabilities, target, smooth, squared, batch_dice, ignore)
    return {"dice": 1 - (score if include_background else score[:, 1:]).mean(), "ce": cross_entropy}


def dice_bce(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1e-5,
    squared: bool = False,
    batch_dice: bool = False,
    ignore: int | None = None,
) -> dict[str, Tensor]:
    """Soft Dice and binary cross-entropy, each region on its own: terms "dice" and "bce". See `dice_score`."""
    _require_regions(logits, target, "dice_bce")
    dice = dice_loss(logits, target, smooth=smooth, squared=squared, batch_dice=batch_dice, ignore=ignore)
    counted = None if ignore is None else (target != ignore).float()
    wanted = target.float() if counted is None else target.float() * counted
    entropy = F.binary_cross_entropy_with_logits(logits.float(), wanted, counted, reduction="mean" if counted is None else "sum")
    return {"dice": dice, "bce": entropy if counted is None else entropy / counted.sum().clamp(min=1)}


def segformer3d_dice_ce(logits: Tensor, target: Tensor, *, smooth: float = 1e-5, ignore: int | None = None) -> dict[str, Tensor]:
    """SegFormer3D's released "diceCE": sigmoid Dice plus *softmax* cross-entropy with the multi-hot regions as class weights.

    Overlapping regions make those weights sum to more than one, so the second term is no proper cross-entropy (its
    minimum is not 0). It is here to train as the authors did; `dice_bce` is the sound form.
    """
    _require_regions(logits, target, "segformer3d_dice_ce")
    counted = torch.ones((), device=logits.device) if ignore is None else (target != ignore).float()
    voxels = logits[:, 0].numel() if ignore is None else counted.amax(1).sum().clamp(min=1)
    entropy = -(target.float() * counted * logits.float().log_softmax(1)).sum() / voxels
    return {"dice": dice_loss(logits, target, smooth=smooth, ignore=ignore), "ce": entropy}


def transunet_dice_ce(
    logits: Tensor, target: Tensor, *, smooth: float = 1e-5, class_weights: Sequence[float] | None = None, ignore: int | None = None
) -> dict[str, Tensor]:
    """TransUNet's loss: half cross-entropy, half Dice over all classes with the background, sums over the whole batch.

    Args:
        class_weights: factors on the classes' Dice losses before their mean, one an output; None counts all alike.
        smooth, ignore: see `dice_score`.

    Returns:
        Terms "dice" and "ce", each with its factor of 0.5.
    """
    if _is_regions(logits, target):
        raise InputError("the loss 'transunet_dice_ce' needs a label map; got region targets")
    log_probabilities = logits.float().flatten(2).log_softmax(1)
    score, cross_entropy = _dice_of_labels(log_probabilities, target, smooth, True, True, ignore)
    dice = 1 - score
    if class_weights is not None:
        if len(class_weights) != logits.shape[1]:
            raise InputError(f"class_weights must be one an output, {logits.shape[1]}; got {len(class_weights)}")
        dice = dice * torch.as_tensor(class_weights, dtype=dice.dtype, device=dice.device)
    return {"dice": 0.5 * dice.mean(), "ce": 0.5 * cross_entropy}


def _dice_term(logits: Tensor, target: Tensor, *, smooth: float = 1e-5, ignore: int | None = None) -> dict[str, Tensor]:
    """Soft Dice alone, background included: the term "dice"."""
    return {"dice": dice_loss(logits, target, smooth=smooth, ignore=ignore)}


LOSSES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "dice": _dice_term,
    "dice_ce": dice_cross_entropy,
    "dice_bce": dice_bce,
    "segformer3d_dice_ce": segformer3d_dice_ce,
    "transunet_dice_ce": transunet_dice_ce,
}
"""Name -> loss(logits, target, *, ignore=None, ...) -> named terms."""


def _is_regions(logits: Tensor, target: Tensor) -> bool:
    """Tells region targets from a label map and refuses what is neither."""
    if target.shape == logits.shape:
        return True
    if tuple(target.shape) in ((logits.shape[0], *logits.shape[2:]), (logits.shape[0], 1, *logits.shape[2:])):
        if target.is_floating_point():
            raise InputError(f"a label map must be of integers, got {target.dtype}")
        return False
    raise InputError(f"target of shape {tuple(target.shape)} fits logits {tuple(logits.shape)} neither as label map nor as regions")


def _require_regions(logits: Tensor, target: Tensor, loss: str) -> None:
    if not _is_regions(logits, target):
        raise InputError(f"the loss {loss!r} needs region targets, one channel an output; got a label map {tuple(target.shape)}")


def _dice_of_labels(
    log_probabilities: Tensor, target: Tensor, smooth: float, squared: bool, batch_dice: bool, ignore: int | None
) -> tuple[Tensor, Tensor]:
    """Dice (see `dice_score`) and cross-entropy from log-probabilities B, K, N and a label map.

    The one-hot target never exists: one gather and sums into bins give its products.
    """
    labels = target.reshape(target.shape[0], 1, -1).long()
    counted = torch.ones_like(labels, dtype=torch.float32)
    if ignore is not None:
        ignored = labels == ignore
        labels, counted = labels.masked_fill(ignored, 0), (~ignored).float()
    of_label = log_probabilities.gather(1, labels)  # B, 1, N
    cross_entropy = -(of_label * counted).sum() / counted.sum().clamp(min=1)
    zeros = log_probabilities.new_zeros(log_probabilities.shape[:2])
    overlap = zeros.scatter_add(1, labels[:, 0], (of_label.exp() * counted)[:, 0])
    volume = zeros.scatter_add(1, labels[:, 0], counted[:, 0])
    sizes = (2 * log_probabilities if squared else log_probabilities).exp()
    if ignore is not None:
        sizes = sizes * counted
    return _ratio(overlap, sizes.sum(2) + volume, smooth, batch_dice), cross_entropy


def _dice_of_regions(probabilities: Tensor, target: Tensor, smooth: float, squared: bool, batch_dice: bool, ignore: int | None) -> Tensor:
    """probabilities and target B, K, N."""
    wanted = target.float()
    if ignore is not None:
        counted = target != ignore
        probabilities, wanted = probabilities * counted, wanted * counted
    overlap = (probabilities * wanted).sum(2)
    sizes = probabilities.square() + wanted.square() if squared else probabilities + wanted
    return _ratio(overlap, sizes.sum(2), smooth, batch_dice)


def _ratio(overlap: Tensor, sizes: Tensor, smooth: float, batch_dice: bool) -> Tensor:
    """Dice from B, K sums."""
    if batch_dice:
        overlap, sizes = overlap.sum(0, keepdim=True), sizes.sum(0, keepdim=True)
    return (2 * overlap + smooth) / (sizes + smooth)
