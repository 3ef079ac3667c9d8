from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vsuite.core.errors import InputError
from vsuite.restoration.losses import PERCEPTUAL_LAYERS, PIXEL_LOSSES, PerceptualLoss, Vgg19Features, gan_loss, load_vgg19
from vsuite.restoration.models.unet_discriminator import UNetDiscriminator


def test_pixel_losses_of_a_known_difference():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    values = {name: loss(a, b).item() for name, loss in PIXEL_LOSSES.items()}
    assert values == pytest.approx({"l1": 0.5, "mse": 0.25, "charbonnier": 0.5})
    assert PIXEL_LOSSES["charbonnier"](a, a).item() == pytest.approx(1e-6)


def test_gan_loss():
    zero = torch.zeros(2, 1, 4, 4)
    assert gan_loss(zero, real=True).item() == pytest.approx(math.log(2))
    assert gan_loss(zero + 9, real=True) < 1e-3 < 8 < gan_loss(zero + 9, real=False)


@pytest.mark.slow
def test_vgg19_has_the_published_layers(tmp_path):
    features = Vgg19Features()
    shapes = {name: tuple(value.shape) for name, value in features.state_dict().items()}
    assert shapes["features.0.weight"] == (64, 3, 3, 3)
    assert shapes["features.34.weight"] == (512, 512, 3, 3)
    assert len(shapes) == 32
    outputs = features(torch.rand(1, 3, 32, 32))
    assert set(PERCEPTUAL_LAYERS) <= set(outputs)
    assert outputs["conv5_4"].shape == (1, 512, 2, 2)
    assert outputs["conv5_4"].min() < 0  # before the activation
    torch.save({**features.state_dict(), "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg19.pth")
    loaded = load_vgg19(tmp_path / "vgg19.pth")
    assert torch.equal(loaded.features["34"].weight, features.features["34"].weight)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_missing_vgg19_weights_are_explained(tmp_path):
    with pytest.raises(InputError, match=r"loss\.perceptual_weights: .* VGG19"):
        load_vgg19(None)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(InputError, match="VGG19"):
        load_vgg19(tmp_path / "part.pth")


class TwoFeatures(nn.Module):
    def forward(self, x):
        return {"mean": x.mean(dim=(2, 3)), "double": 2 * x}


def test_perceptual_loss_takes_any_features():
    loss = PerceptualLoss(TwoFeatures(), {"mean": 1.0, "double": 0.1})
    output, target = torch.full((1, 3, 4, 4), 0.5, requires_grad=True), torch.zeros(1, 3, 4, 4, requires_grad=True)
    value = loss(output, target)
    assert value.item() == pytest.approx(0.5 + 0.1)
    value.backward()
    assert output.grad.abs().min() > 0
    assert target.grad is None
    assert loss(target, target).item() == 0


def test_discriminator():
    network = UNetDiscriminator()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_376_897
    small = UNetDiscriminator(features=8)
    assert small(torch.rand(2, 3, 24, 40)).shape == (2, 1, 24, 40)
    for _ in range(30):
        small(torch.rand(1, 3, 8, 8))
    weight = small.conv1.weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.05)
