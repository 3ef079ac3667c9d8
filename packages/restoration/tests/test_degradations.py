from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.restoration import degradations, real_esrgan
from vsuite.restoration.real_esrgan import DegradationSettings, RealEsrganDegradation, StageSettings

X = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_drawn_kernels_sum_to_one(seed):
    kernel = real_esrgan.draw_kernel(StageSettings(), np.random.default_rng(seed))
    assert kernel.shape == (21, 21)
    assert kernel.sum() == pytest.approx(1)
    assert np.allclose(kernel, kernel[::-1, ::-1])  # all are symmetric about the centre, so they do not shift pictures


def test_a_gaussian_has_its_sigma_along_its_axes():
    kernel = degradations.blur_kernel(41, 4.0, 1.0)
    line = np.arange(41) - 20
    assert (kernel.sum(axis=0) * line**2).sum() == pytest.approx(16, rel=0.01)
    assert (kernel.sum(axis=1) * line**2).sum() == pytest.approx(1, rel=0.01)
    turned = degradations.blur_kernel(41, 4.0, 1.0, math.pi / 2)
    assert np.allclose(turned, kernel.T)


def test_a_sinc_at_pi_leaves_slow_waves_and_stops_fast_ones():
    kernel = degradations.sinc_kernel(math.pi / 2, 21)
    slow, fast = (torch.cos(frequency * torch.arange(128.0)).expand(1, 1, 64, 128) for frequency in (0.3, 2.8))
    middle = (..., slice(20, -20), slice(20, -20))
    passed = [degradations.filter_pictures(wave, torch.from_numpy(kernel))[middle].abs().max() for wave in (slow, fast)]
    assert passed[0] > 0.9
    assert passed[1] < 0.1


def test_filters_differ_by_picture():
    pulse = torch.zeros(3, 3)
    pulse[1, 1] = 1
    left = torch.zeros(3, 3)
    left[1, 0] = 1
    result = degradations.filter_pictures(X.repeat(2, 1, 1, 1), torch.stack([pulse, left]))
    assert torch.equal(result[0], X[0])
    assert torch.equal(result[1, :, :, 1:], X[0, :, :, :-1])


def test_sharpening_spares_smooth_parts():
    smooth = torch.linspace(0.3, 0.5, 80).expand(1, 3, 80, 80).contiguous()
    assert torch.allclose(degradations.usm_sharpen(smooth), smooth, atol=1e-6)
    edge = torch.full((1, 3, 80, 80), 0.2)
    edge[..., 40:] = 0.8
    sharpened = degradations.usm_sharpen(edge)
    assert sharpened.max() > 0.9
    assert sharpened.min() < 0.1


def test_jpeg_loses_more_at_lower_quality():
    losses = [(degradations.simulate_jpeg(X, quality) - X).abs().mean().item() for quality in (95, 70, 30, 5)]
    assert losses == sorted(losses)
    grey = torch.full((1, 3, 32, 32), 128 / 255)
    assert torch.allclose(degradations.simulate_jpeg(grey, 30), grey, atol=1e-3)


def test_gaussian_noise_has_its_sigma():
    flat = torch.full((1, 3, 128, 128), 0.5)
    noise = real_esrgan.gaussian_noise(flat, 20.0, np.random.default_rng(0), grey=False)
    assert noise.shape == flat.shape
    assert (noise.std() * 255).item() == pytest.approx(20, rel=0.02)
    assert real_esrgan.gaussian_noise(flat, 20.0, np.random.default_rng(0), grey=True).shape == (1, 1, 128, 128)


def test_poisson_noise_grows_with_brightness():
    halves = torch.full((1, 3, 128, 128), 0.1)
    halves[..., 64:] = 0.9
    noise = real_esrgan.poisson_noise(halves, np.random.default_rng(0), grey=False)
    # Two values in the picture, so two levels: variance = brightness / 2.
    assert noise[..., :64].var().item() == pytest.approx(26 / 255 / 2, rel=0.05)
    assert noise[..., 64:].var().item() == pytest.approx(230 / 255 / 2, rel=0.05)
    assert noise.mean().abs() < 0.02


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_pipeline_depends_on_its_seed_alone(scale):
    degrade = RealEsrganDegradation(scale, DegradationSettings())
    high = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)), size=60, mode="bilinear")
    for seed in range(6):
        made = degrade(high, np.random.default_rng(seed))
        assert made["low"].shape == (1, 3, 60 // scale, 60 // scale)
        assert torch.equal(made["low"], degrade(high, np.random.default_rng(seed))["low"])
        assert torch.allclose((made["low"] * 255).round(), made["low"] * 255, atol=1e-4)
        assert 0 <= made["low"].min() <= made["low"].max() <= 1
        assert torch.equal(made["high"], high)
        # It still shows the same thing.
        small = torch.nn.functional.interpolate(high, size=60 // scale, mode="area")
        together = torch.stack([small.mean(dim=1).flatten(), made["low"].mean(dim=1).flatten()])
        assert torch.corrcoef(together)[0, 1] > 0.5
    assert not torch.equal(made["low"], degrade(high, np.random.default_rng(100))["low"])


def test_part_of_the_second_stage_leaves_the_rest_of_it():
    found = DegradationSettings.model_validate({"second": {"jpeg": (50, 95)}}).second
    assert (found.jpeg, found.sigma, found.blur_probability) == ((50, 95), (0.2, 1.5), 0.8)
