"""Lifters as ONNX."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.onnx import quiet_exporter, require_onnx
from vsuite.core.optimize import optimize_for_inference
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
    require_onnx("vsuite-video-pose")
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out}: its name must end in .onnx")
    model, note = load_model(weights, "lift", Note)
    model = optimize_for_inference(model)
    num_frames, num_joints = int(model.num_frames), int(model.num_joints)  # type: ignore[arg-type]
    windows = torch.rand(2, num_frames, num_joints, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    with quiet_exporter():
        program = torch.onnx.export(
            model,
            (windows,),
            input_names=["poses_2d"],
            output_names=["poses_3d"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with atomic_path(out) as temporary:
        import onnxruntime

        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        more = torch.cat([windows, windows.flip(0), windows[:1]])  # another number of windows than it was made with
        with torch.inference_mode():
            (found,), wanted = session.run(None, {"poses_2d": more.numpy()}), model(more)
        difference = float((torch.from_numpy(found) - wanted).abs().max())
        if not difference <= TOLERANCE:
            raise InputError(f"{out}: not written, as its output differs from the model's by {difference:.1e}")
    return f"{out}: windows of {num_frames} frames in the layout {note.layout}; differs from the model by at most {difference:.1e} m"
