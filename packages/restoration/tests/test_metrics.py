from __future__ import annotations

import math

import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.core.evaluation import create_metric
from vsuite.restoration.metrics import PsnrSsim, psnr, rgb_to_y, ssim

RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)


def test_equal_pictures():
    assert psnr(IMAGE, IMAGE) == math.inf
    assert ssim(IMAGE, IMAGE) == pytest.approx(1)


def test_psnr_of_a_known_difference():
    a = np.full((20, 20), 100, np.uint8)
    assert psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(a + 5, a) == psnr(a, a + 5)  # no wrap-around of small integers


def test_noise_lowers_both():
    noisy = [np.clip(IMAGE + RNG.normal(0, sigma, IMAGE.shape), 0, 255).astype(np.uint8) for sigma in (5, 20, 60)]
    for measure in (psnr, ssim):
        values = [measure(IMAGE, b) for b in noisy]
        assert values == sorted(values, reverse=True)


def test_ssim_needs_a_window():
    assert math.isnan(ssim(IMAGE[:10], IMAGE[:10]))


def test_y_of_black_and_white():
    assert rgb_to_y(np.array([[0, 0, 0], [255, 255, 255]], np.uint8)).tolist() == [16, 235]


def test_the_border_does_not_count():
    b = IMAGE.copy()
    b[:2] = 255 - b[:2]
    assert PsnrSsim(2).measure(prediction=b, reference=IMAGE)["psnr_rgb"] == math.inf
    assert PsnrSsim(1).measure(prediction=b, reference=IMAGE)["psnr_rgb"] < 30


def test_channels_and_rounding():
    b = (IMAGE // 2 + 60).astype(np.uint8)
    metric = create_metric("psnr_ssim", crop=0, channels="y", round_y=True)
    found = metric.measure(prediction=b, reference=IMAGE)
    assert set(found) == {"psnr_y", "ssim_y"}
    assert found["psnr_y"] == psnr(rgb_to_y(b), rgb_to_y(IMAGE))
    assert found["psnr_y"] != PsnrSsim(0).measure(prediction=b, reference=IMAGE)["psnr_y"]


def test_wrong_sizes_are_named():
    with pytest.raises(InputError, match="23 x 20 x 3 against 24 x 20 x 3"):
        PsnrSsim(0).measure(prediction=IMAGE[:, 1:], reference=IMAGE)
    with pytest.raises(InputError, match="crop of 10"):
        PsnrSsim(10).measure(prediction=IMAGE, reference=IMAGE)
