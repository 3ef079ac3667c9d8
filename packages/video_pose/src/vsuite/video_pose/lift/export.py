"""Lifters as ONNX."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.core.optimize import optimize_for_inference
from vsuite.video_pose.export import check_export, write_onnx
from vsuite.video_pose.lift.note import Note
from vsuite.video_pose.notes import load_model

TOLERANCE = 1e-4  # metres


def export_onnx(weights: str | Path, out: str | Path) -> str:
    """Writes a lifter as a graph: windows "poses_2d" (B, T, J, 2) in screen coordinates -> "poses_3d" (B, 1, J, 3), metres; any B.

    The file appears only once onnxruntime has given the model's output.

    Args:
        weights: file, run folder or name of shipped weights.
        out: ends in .onnx.

    Returns:
        A line about what was written.

    Raises:
        InputError: where packages are missing, and where the file's output differs by more than `TOLERANCE`.
    """
    out = check_export(out)
    model, note = load_model(weights, "lift", Note)
    model = optimize_for_inference(model)
    num_frames, num_joints = int(model.num_frames), int(model.num_joints)  # type: ignore[arg-type]
    windows = torch.rand(2, num_frames, num_joints, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    difference = write_onnx(model, {"poses_2d": windows}, "poses_3d", out, tolerance=TOLERANCE, any_batch=True)
    return f"{out}: windows of {num_frames} frames in the layout {note.layout}; differs from the model by at most {difference:.1e} m"
