"""Models as ONNX: what the tasks' exports have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.onnx import quiet_exporter, require_onnx


def check_export(out: str | Path) -> Path:
    """The path; raises `InputError` where packages are missing, and for another ending than .onnx."""
    require_onnx("vsuite-video-pose")
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out}: its name must end in .onnx")
    return out


def write_onnx(model: Any, inputs: Mapping[str, Tensor], output: str, out: Path, *, tolerance: float, any_batch: bool = False) -> float:
    """Writes a model of one output as a graph. The file appears only once onnxruntime has given the model's output.

    Args:
        inputs: examples by name, in the order that the model takes them.
        output: name.
        tolerance: largest difference allowed between the file and the model.
        any_batch: batches of any size, else those of the examples; two other sizes are compared then.

    Returns:
        The largest difference.

    Raises:
        InputError: where it is larger than `tolerance`.
    """
    given = tuple(inputs.values())
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in given) if any_batch else None
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            model, given, input_names=list(inputs), output_names=[output], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    assert program is not None
    with atomic_path(out) as temporary:
        import onnxruntime

        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = 0.0
        for batch in [given, *([[value[:1] for value in given], [torch.cat([value, value[:1]]) for value in given]] if any_batch else [])]:
            (found,) = session.run(None, {name: value.numpy() for name, value in zip(inputs, batch, strict=True)})
            with torch.inference_mode():
                difference = max(difference, float((torch.from_numpy(found) - model(*batch)).abs().max()))
        if not difference <= tolerance:
            raise InputError(f"{out}: not written, as its output differs from the model's by {difference:.1e}")
    return difference
