"""Models for actions as ONNX, checked with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.video_pose.action.predict import Predictor
from vsuite.video_pose.export import check_export, write_onnx

TOLERANCE = 1e-3
"""Largest difference allowed between the file's scores and the model's."""


def export_onnx(weights: str | Path, out: str | Path) -> str:
    """Writes a model as ONNX for one clip of the weights' own length. Streams keep a state, and are not exported.

    Inputs are what a clip becomes: "joints" (1, M, T, J, C) and "scores" (1, M, T, J), with "film" (1, T, 3, H, W) where the model
    looks at one, or "sequence" (1, T, M J C). The output "scores_of_classes" is before the softmax.

    Returns:
        A line about what was written.

    Raises:
        InputError: if packages are missing, and if the file's output differs by more than `TOLERANCE`.
    """
    out = check_export(out)
    predictor = Predictor(weights, device="cpu")
    given = example(predictor)
    difference = write_onnx(predictor.model, given, "scores_of_classes", out, tolerance=TOLERANCE)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
    return f"{out}: takes {shapes}; differs from the model by at most {difference:.1e}"


def example(predictor: Predictor) -> dict[str, torch.Tensor]:
    """One made-up clip of the right shapes."""
    clip, generator = predictor.note.clip, torch.Generator().manual_seed(0)
    people = (1, clip.people, clip.frames, predictor.layout.num_joints)
    joints = torch.rand(*people, clip.dimensions, generator=generator) * 2 - 1
    if predictor.form == "sequence":
        return {"sequence": joints.transpose(1, 2).reshape(1, clip.frames, -1)}
    scores = torch.rand(people, generator=generator) * 0.5 + 0.5
    if predictor.form == "poses":
        return {"joints": joints, "scores": scores}
    film = torch.rand(1, clip.frames, 3, clip.size, clip.size, generator=generator)
    return {"film": film, "joints": (joints + 1) / 2 * (clip.size - 1), "scores": scores}
