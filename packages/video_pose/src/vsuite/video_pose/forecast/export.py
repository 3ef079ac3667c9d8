"""Models of video prediction as ONNX, checked with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.video_pose.export import check_export, write_onnx
from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.notes import load_model

TOLERANCE = 1e-3
"""Largest difference allowed between the file and the model."""


def export_onnx(weights: str | Path, out: str | Path) -> str:
    """Writes the model as ONNX: "frames" (batch, T, C, H, W) to "next_frames" of the same shape; batches of any size.

    The file appears only once onnxruntime has given the model's output for batches of several sizes.

    Args:
        weights: file or run folder.
        out: ends in .onnx.

    Returns:
        A line about what was written.

    Raises:
        InputError: if packages are missing, and if the file's output differs by more than `TOLERANCE`.
    """
    out = check_export(out)
    model, note = load_model(weights, "forecast", Note)
    model.requires_grad_(False)
    frames = torch.rand(2, note.frames, *note.frame, generator=torch.Generator().manual_seed(0))
    difference = write_onnx(model, {"frames": frames}, "next_frames", out, tolerance=TOLERANCE, any_batch=True)
    size = " x ".join(map(str, note.frame))
    return f"{out}: {note.frames} frames of {size} to the next ones; differs from the model by at most {difference:.1e}"
