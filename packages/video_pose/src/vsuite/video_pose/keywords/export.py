"""Models for words as ONNX, checked with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.video_pose.export import check_export, write_onnx
from vsuite.video_pose.keywords.predict import Predictor

TOLERANCE = 1e-3
"""Largest difference allowed between the file's scores and the model's."""


def export_onnx(weights: str | Path, out: str | Path) -> str:
    """Writes a model as ONNX for one clip: "features" (1, frames, mel bins, normalised) -> "scores" before the sigmoid (1, words).

    Streams keep a state, and are not exported; features are made outside (`keywords.data.features_of`).

    Returns:
        A line about what was written.

    Raises:
        InputError: if packages are missing, and if the file's output differs by more than `TOLERANCE`.
    """
    out = check_export(out)
    predictor = Predictor(weights, device="cpu")
    features = torch.randn(1, predictor.note.frames, predictor.note.mel_bins, generator=torch.Generator().manual_seed(0))
    difference = write_onnx(predictor.model, {"features": features}, "scores", out, tolerance=TOLERANCE)
    return f"{out}: takes features {tuple(features.shape)}; differs from the model by at most {difference:.1e}"
