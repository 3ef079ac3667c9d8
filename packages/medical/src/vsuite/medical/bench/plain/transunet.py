"""The plain form of TransUNet: weights standardised term by term in each pass, scores written out, contiguous maps, slices one by one.

The baseline of the benchmark and the oracle of the tests. It shares the fast form's parameter names and nothing of
its operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.medical.models.resnet_v2 import ResNetV2, StandardisedConv2d
from vsuite.medical.models.transunet import Attention, Decoder, TransUNet


def _conv(self: StandardisedConv2d, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return F.conv2d(x, (self.weight - mean) / torch.sqrt(variance + 1e-5), None, self.stride, self.padding)


def _attention(self: Attention, x: Tensor) -> Tensor:
    batch, length, dim = x.shape
    query, key, value = (
        linear(x).view(batch, length, self.num_heads, -1).permute(0, 2, 1, 3) for linear in (self.query, self.key, self.value)
    )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return self.out((weights @ value).permute(0, 2, 1, 3).reshape(batch, length, dim))


def _resnet(self: ResNetV2, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    side = x.shape[2]
    root = self.root(x)
    block1, block2, block3 = self.body
    first = block1(F.max_pool2d(root, kernel_size=3, stride=2, padding=0))
    padded = torch.zeros(*first.shape[:2], side // 4, side // 4, dtype=first.dtype, device=first.device)
    padded[:, :, : first.shape[2], : first.shape[3]] = first
    second = block2(first)
    return block3(second), [second, padded, root]


def _decode(self: Decoder, tokens: Tensor, skips: list[Tensor]) -> Tensor:
    batch, length, dim = tokens.shape
    side = int(length**0.5)
    x = self.conv_more(tokens.permute(0, 2, 1).contiguous().view(batch, dim, side, side))
    for i, block in enumerate(self.blocks):
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        x = torch.cat([x, skips[i]], 1) if i < self.num_skips else x
        for convolution in block.children():
            x = convolution(x)
    return x


def _features(self: TransUNet, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    return self.transformer(x.repeat(1, 3, 1, 1) if x.shape[1] == 1 else x)


FORWARDS = {StandardisedConv2d: _conv, Attention: _attention, ResNetV2: _resnet, Decoder: _decode}


def build(**options: Any) -> nn.Module:
    """The TransUNet of these options, with the plain operators in place of the fast ones."""
    model: Any = TransUNet(**options)
    for module in model.modules():
        if type(module) in FORWARDS:
            module.forward = FORWARDS[type(module)].__get__(module)
    model.forward_features = _features.__get__(model)
    return model


@torch.inference_mode()
def predict_slices(network: Any, volume: NDArray[np.floating], image_size: int) -> NDArray[np.integer]:
    """D, H, W -> labels D, H, W, one slice after the other, as in the official evaluation."""
    prediction = np.zeros(volume.shape, np.int64)
    for i, image in enumerate(volume):
        height, width = image.shape
        resized = (height, width) != (image_size, image_size)
        x = zoom(image, (image_size / height, image_size / width), order=3) if resized else image
        logits = network(torch.from_numpy(x)[None, None].float())
        label = logits.softmax(1).argmax(1)[0].numpy()
        prediction[i] = zoom(label, (height / label.shape[0], width / label.shape[1]), order=0) if label.shape != image.shape else label
    return prediction
