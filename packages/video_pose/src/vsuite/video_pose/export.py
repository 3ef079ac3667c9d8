"""Models as ONNX: what the tasks' exports have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vsuite.core import onnx
from vsuite.core.errors import InputError


def check_export(out: str | Path) -> Path:
    """The path; raises `InputError` where packages are missing, and for another ending than .onnx."""
    onnx.require_onnx("vsuite-video-pose")
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out}: its name must end in .onnx")
    return out


def write_onnx(
    model: nn.Module, inputs: Mapping[str, Tensor], output: str, out: Path, *, tolerance: float, any_batch: bool = False
) -> float:
    """As `vsuite.core.onnx.write_onnx`, with `any_batch` for batches of any size; two other sizes are compared then."""
    if not any_batch:
        return onnx.write_onnx(model, inputs, output, out, tolerance=tolerance)
    given = list(inputs.values())
    batch = torch.export.Dim("batch", min=1)
    compared = [given, [value[:1] for value in given], [torch.cat([value, value[:1]]) for value in given]]
    return onnx.write_onnx(model, inputs, output, out, tolerance=tolerance, axes={name: {0: batch} for name in inputs}, compared=compared)
