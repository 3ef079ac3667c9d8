"""Frequency Dynamic Convolution: weights made for each image in the Fourier domain (Chen et al., CVPR 2025)."""

from __future__ import annotations

from vsuite.core.models.fdconv.bands import FrequencyBandModulation
from vsuite.core.models.fdconv.convert import convert_to_fdconv, from_plain_state, to_plain_state
from vsuite.core.models.fdconv.layer import FrequencyDynamicConv2d, FrequencyDynamicLinear
from vsuite.core.models.fdconv.resnet import FDConvResNet
from vsuite.core.models.fdconv.spectrum import frequency_groups, from_spectrum, to_spectrum

__all__ = [
    "FDConvResNet",
    "FrequencyBandModulation",
    "FrequencyDynamicConv2d",
    "FrequencyDynamicLinear",
    "convert_to_fdconv",
    "frequency_groups",
    "from_plain_state",
    "from_spectrum",
    "to_plain_state",
    "to_spectrum",
]
