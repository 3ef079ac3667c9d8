"""Models for words as ONNX, checked with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.onnx import quiet_exporter, require_onnx
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
    require_onnx("vsuite-video-pose")
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out}: its name must end in .onnx")
    predictor = Predictor(weights, device="cpu")
    features = torch.randn(1, predictor.note.frames, predictor.note.mel_bins, generator=torch.Generator().manual_seed(0))
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            predictor.model, (features,), input_names=["features"], output_names=["scores"], dynamo=True, verbose=False
        )
    assert program is not None
    with atomic_path(out) as temporary:
        import onnxruntime

        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            wanted = predictor.model(features)
        (found,) = session.run(None, {"features": features.numpy()})
        difference = float((torch.from_numpy(found) - wanted).abs().max())
        if not difference <= TOLERANCE:
            raise InputError(f"{out}: not written, as its output differs from the model's by {difference:.1e}")
    return f"{out}: takes features {tuple(features.shape)}; differs from the model by at most {difference:.1e}"
