"""Settings of all tests, and what those of several packages use."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

os.environ.pop("COLUMNS", None)  # worker processes are told the width of pytest's terminal, which our commands would heed

settings.register_profile("untimed", deadline=None)  # the first example may import torch, on a machine that does other things as well
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_segformer3d() -> dict[str, Any]:
    """Options of a SegFormer3D of a few thousand weights, without the numbers of channels and classes."""
    return {
        "attention_scale": "head_dim",
        "patch_stride": [2, 2, 2, 2],
        "embed_dims": [8, 8, 8, 8],
        "num_heads": [1, 1, 2, 2],
        "depths": [1, 1, 1, 1],
        "mlp_ratios": [1, 1, 1, 1],
        "decoder_head_embedding_dim": 8,
    }
