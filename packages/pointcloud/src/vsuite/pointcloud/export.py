"""Models for other programs: ONNX, checked with onnxruntime, and weights under the authors' names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vsuite.core import InputError, save_weights
from vsuite.core.onnx import require_onnx, write_onnx
from vsuite.pointcloud.inference import load_model
from vsuite.pointcloud.models.center_head import CenterHead
from vsuite.pointcloud.models.flatformer import FlatFormer
from vsuite.pointcloud.models.sparse_encoder import SparseEncoder

TOLERANCE = 1e-3
"""Largest difference allowed between the file and the model."""


def export_onnx(weights: str | Path, out: str | Path) -> str:
    """Writes what can be a graph: a network of shapes whole, of a detector with pillars the encoder, sorting and all.

    The file appears only once onnxruntime has given the model's output.

    Args:
        weights: file or run folder.
        out: ends in .onnx.

    Returns:
        A line about what was written.

    Raises:
        InputError: if packages are missing, for models that cannot be exported, and if the file's output differs by more than `TOLERANCE`.
    """
    require_onnx("vsuite-pointcloud")
    out = _checked(out, (".onnx",))
    model, note = load_model(weights)
    if note.task == "detect":
        encoder = getattr(model, "middle_encoder", None)
        if not isinstance(encoder, FlatFormer):
            raise InputError(f"{weights}: sparse convolution has no form in ONNX; of the detectors FlatFormer's encoder is exported")
        from vsuite.pointcloud.models.flatformer_graph import export_encoder

        difference = export_encoder(encoder, out)
        return f"{out}: the encoder, from voxel features and coordinates to the map; differs from the model by at most {difference:.1e}"
    inputs = {"points": _clouds(note.points)}
    if note.task == "parts":
        inputs["category"] = torch.tensor([0, len(note.classes) - 1])
    difference = write_onnx(model, inputs, "logits", out, tolerance=TOLERANCE)
    return f"{out}: takes {' and '.join(inputs)}; differs from the model by at most {difference:.1e}"


def _clouds(points: int) -> Tensor:
    """Two clouds in the unit sphere, to trace with and to compare: 2, points, 3."""
    clouds = torch.rand(2, points, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return clouds / clouds.norm(dim=-1).amax(dim=1)[:, None, None]


def export_published(weights: str | Path, out: str | Path) -> str:
    """Writes weights under the names of the published checkpoint, as .pth or .safetensors.

    CenterPoint's boxes are coded as in mmdetection3d 1.0 and later, which is what readers of such a file assume.
    """
    out = _checked(out, (".pth", ".safetensors"))
    model, _ = load_model(weights)
    head = getattr(model, "bbox_head", None)
    if isinstance(head, CenterHead) and isinstance(model.middle_encoder, SparseEncoder):
        head.recode()
    save_weights(model, out, published=True)
    return f"{out}: in the published layout"


def _checked(out: str | Path, suffixes: tuple[str, ...]) -> Path:
    path = Path(out)
    if path.suffix not in suffixes:
        raise InputError(f"{path}: its name must end in {' or '.join(suffixes)}")
    return path
