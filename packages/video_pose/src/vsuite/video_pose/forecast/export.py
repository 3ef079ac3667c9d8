"""Models of video prediction as ONNX, checked with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.onnx import quiet_exporter, require_onnx
from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.notes import load_model

TOLERANCE = 1e-3
"""Largest difference allowed between the file and the model."""


def export_onnx(weights: str | Path, out: str | Path) -> str:
    """Writes the model as ONNX: "frames" (batch, T, C, H, W) to "next_frames" of the same shape; batches of any size.

    The file appears only once onnxruntime has given the model's output for two batches.

    Args:
        weights: file or run folder.
        out: ends in .onnx.

    Returns:
        A line about what was written.

    Raises:
        InputError: if packages are missing, and if the file's output differs by more than `TOLERANCE`.
    """
    require_onnx("vsuite-video-pose")
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out}: its name must end in .onnx")
    model, note = load_model(weights, "forecast", Note)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, note.frames, *note.frame, generator=generator)
    with quiet_exporter():
        program = torch.onnx.export(
            model,
            (frames,),
            input_names=["frames"],
            output_names=["next_frames"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with atomic_path(out) as temporary:
        import onnxruntime

        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = 0.0
        for batch in (frames, frames[:1]):
            with torch.inference_mode():
                (found,), wanted = session.run(None, {"frames": batch.numpy()}), model(batch)
            difference = max(difference, float((torch.from_numpy(found) - wanted).abs().max()))
        if not difference <= TOLERANCE:
            raise InputError(f"{out}: not written, as its output differs from the model's by {difference:.1e}")
    size = " x ".join(map(str, note.frame))
    return f"{out}: {note.frames} frames of {size} to the next ones; differs from the model by at most {difference:.1e}"
