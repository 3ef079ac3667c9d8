"""Losses against plain forms, hand-computed values, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.medical.losses import LOSSES, dice_bce, dice_cross_entropy, dice_loss, dice_score, segformer3d_dice_ce

SHAPE = (3, 4, 5)


def label_case(seed: int, classes: int = 4, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *SHAPE, generator=generator, dtype=torch.float64).float()
    return logits, torch.randint(0, classes, (batch, 1, *SHAPE), generator=generator)


def region_case(seed: int, regions: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, regions, *SHAPE)
    return torch.randn(shape, generator=generator), torch.randint(0, 2, shape, generator=generator).float()


def plain_dice(probabilities: Tensor, target: Tensor, smooth: float = 1e-5, squared: bool = False) -> Tensor:
    """The definition, on one-hot targets, in double precision."""
    p, g = probabilities.double().flatten(2), target.double().flatten(2)
    below = (p**2 + g**2 if squared else p + g).sum(2)
    return (2 * (p * g).sum(2) + smooth) / (below + smooth)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels[:, 0], classes).movedim(-1, 1)


@pytest.mark.parametrize("squared", [False, True])
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_dice_of_a_label_map_is_that_of_its_one_hot_form(squared: bool, seed: int, classes: int) -> None:
    logits, labels = label_case(seed, classes)
    want = plain_dice(logits.softmax(1), one_hot(labels, classes), squared=squared)
    torch.testing.assert_close(dice_score(logits, labels, squared=squared).double(), want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dice_score(logits, labels[:, 0].to(torch.int16), squared=squared).double(), want, atol=1e-6, rtol=1e-5)


def test_dice_cross_entropy_of_a_label_map() -> None:
    logits, labels = label_case(1)
    terms = dice_cross_entropy(logits, labels)
    want = plain_dice(logits.softmax(1), one_hot(labels, 4))
    assert terms["dice"].item() == pytest.approx(1 - want[:, 1:].mean().item(), abs=1e-6)
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(logits, labels[:, 0]).item(), abs=1e-6)
    with_background = dice_cross_entropy(logits, labels, include_background=True)["dice"]
    assert with_background.item() == pytest.approx(1 - want.mean().item(), abs=1e-6)


def test_monai_computes_the_same() -> None:
    from monai.losses import DiceCELoss

    logits, labels = label_case(2)
    want = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, smooth_nr=1e-5, smooth_dr=1e-5, batch=True)(logits, labels)
    assert sum(dice_cross_entropy(logits, labels, batch_dice=True).values()).item() == pytest.approx(want.item(), abs=1e-6)


def test_regions_by_hand() -> None:
    logits = torch.tensor([[[[[math.log(3.0), 0.0]]]]])  # probabilities 3/4 and 1/2
    target = torch.tensor([[[[[1.0, 0.0]]]]])
    terms = dice_bce(logits, target, smooth=0.0)
    assert terms["dice"].item() == pytest.approx(1 - 2 * 0.75 / (1.25 + 1))
    assert terms["bce"].item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert dice_score(logits, target, smooth=0.0, squared=True).item() == pytest.approx(2 * 0.75 / (0.5625 + 0.25 + 1))


def test_batch_dice_sums_over_the_batch() -> None:
    logits, labels = label_case(3, batch=2)
    joined = torch.cat([logits[:1], logits[1:]], dim=2)  # the two samples as one larger volume
    want = dice_score(joined, torch.cat([labels[:1], labels[1:]], dim=2))
    torch.testing.assert_close(dice_score(logits, labels, batch_dice=True), want)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logits, target = label_case(4) if name == "transunet_dice_ce" else region_case(4)
    logits = logits[:1, :, :2, :2, :2].contiguous().requires_grad_()
    target = target[:1, :, :2, :2, :2]
    total = sum(LOSSES[name](logits, target).values())
    (gradient,) = torch.autograd.grad(total, logits)
    step = 1e-2
    for index in ((0, 0, 0, 0, 0), (0, 1, 1, 0, 1), (0, 2, 1, 1, 1)):
        moved = [logits.detach().clone() for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        above, below = (sum(LOSSES[name](m, target).values()).item() for m in moved)
        assert gradient[index].item() == pytest.approx((above - below) / (2 * step), abs=2e-4)


def test_gradient_of_the_label_map_form_is_that_of_the_plain_form() -> None:
    logits, labels = label_case(5)
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(sum(dice_cross_entropy(logits, labels).values()), logits)
    plain = 1 - plain_dice(logits.double().softmax(1), one_hot(labels, 4))[:, 1:].mean() + F.cross_entropy(logits.double(), labels[:, 0])
    (want,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(ours, want, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", list(LOSSES))
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_ignored_voxels_do_not_matter(name: str, seed: int) -> None:
    logits, target = region_case(seed) if name in ("dice_bce", "segformer3d_dice_ce") else label_case(seed)
    target = target.clone()
    target[:, :, 1] = -100
    noisy = logits.clone()
    noisy[:, :, 1] = 50 * torch.randn(noisy[:, :, 1].shape)
    noisy.requires_grad_()
    first, second = LOSSES[name](logits, target, ignore=-100), LOSSES[name](noisy, target, ignore=-100)
    cut = [torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2) for x in (logits, target)]
    without = LOSSES[name](*cut)
    for term, value in first.items():
        assert value.item() == pytest.approx(second[term].item(), abs=1e-5)
        assert value.item() == pytest.approx(without[term].item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(sum(second.values()), noisy)
    assert gradient[:, :, 1].abs().max() == 0
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_all_voxels_ignored_gives_finite_values(name: str) -> None:
    logits, target = region_case(0) if name in ("dice_bce", "segformer3d_dice_ce") else label_case(0)
    terms = LOSSES[name](logits.requires_grad_(), torch.full_like(target, -100), ignore=-100)
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    assert all(torch.isfinite(value) for value in terms.values())
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_large_logits_stay_finite(name: str) -> None:
    logits, target = label_case(6) if name == "transunet_dice_ce" else region_case(6)
    logits = (1e4 * logits).requires_grad_()
    total = sum(LOSSES[name](logits, target).values())
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 2, 64, 64, 64, dtype=torch.bfloat16)  # sums of 131072: bfloat16 would stop at 256
    labels = torch.zeros(1, 1, 64, 64, 64, dtype=torch.uint8)
    terms = dice_cross_entropy(logits, labels, include_background=True)
    assert terms["ce"].dtype == torch.float32
    assert terms["ce"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms["dice"].item() == pytest.approx(1 - (2 * 0.5 / 1.5 + 0) / 2, abs=1e-5)


def test_a_perfect_prediction_costs_nothing() -> None:
    _, labels = label_case(7)
    logits = 100.0 * one_hot(labels, 4).float()
    terms = dice_cross_entropy(logits, labels)
    assert terms["dice"].item() == pytest.approx(0, abs=1e-6)
    assert terms["ce"].item() == pytest.approx(0, abs=1e-6)
    _, regions = region_case(7)
    assert sum(dice_bce(200 * regions - 100, regions).values()).item() == pytest.approx(0, abs=1e-5)


def test_classes_absent_from_both_count_as_right() -> None:
    logits = torch.full((1, 3, 2, 2, 2), -100.0)
    logits[:, 0] = 100.0
    labels = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    assert dice_score(logits, labels).tolist() == [[1.0, 1.0, 1.0]]


def test_the_published_oddity_is_softmax_cross_entropy_with_multi_hot_weights() -> None:
    logits, target = region_case(8)
    want = -(target * logits.log_softmax(1)).sum(1).mean()
    assert segformer3d_dice_ce(logits, target)["ce"].item() == pytest.approx(want.item(), abs=1e-5)


def test_one_dice_for_both_kinds_of_target() -> None:
    logits, labels = label_case(9)
    assert list(LOSSES["dice"](logits, labels)) == ["dice"]
    assert LOSSES["dice"](logits, labels)["dice"] == dice_loss(logits, labels)
    assert list(LOSSES["dice_ce"](*region_case(9))) == ["dice", "bce"]


def test_wrong_targets_are_named() -> None:
    logits, labels = label_case(10)
    with pytest.raises(InputError, match="neither as label map nor as regions"):
        dice_loss(logits, labels[:, :, :2])
    with pytest.raises(InputError, match="must be of integers"):
        dice_loss(logits, labels.float())
    with pytest.raises(InputError, match="'dice_bce' needs region targets"):
        dice_bce(logits, labels)
