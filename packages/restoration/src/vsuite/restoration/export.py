"""Models for other programs: ONNX with free sizes, and weights under the authors' names."""

from __future__ import annotations

from pathlib import Path

import torch

from vsuite.core import InputError, optimize_for_inference, save_weights
from vsuite.core.files import atomic_path
from vsuite.core.onnx import require_onnx, write_onnx
from vsuite.restoration.inference import load_model

TOLERANCE = 1e-3
"""Largest difference allowed between the file and the model; values are from 0 to 1."""


def export_onnx(weights: str | Path | None, out: str | Path, *, scale: int | None = None) -> float:
    """Writes ONNX: input `picture` (B, C, H, W in [0, 1]) -> output `restored` (B, C, scale * H, scale * W).

    Every size is free; sides start at 2 pixels. The metadata of the file hold the scale and the number of channels. The file appears
    only once onnxruntime has given the model's output.

    Args:
        weights, scale: see `load_model`.
        out: ends in .onnx.

    Returns:
        The largest difference to the model that was found, on pictures of other sizes than the one traced.

    Raises:
        InputError: if packages are missing, or if the file's output differs by more than `TOLERANCE`.
    """
    require_onnx("vsuite-restoration")
    out = _checked(out, (".onnx",))
    model = load_model(weights, scale).eval()
    channels = int(getattr(model, "in_channels", 3))
    window = int(getattr(model, "window_size", 8))
    batch, height, width = (torch.export.Dim(name, min=least) for name, least in (("batch", 1), ("height", 2), ("width", 2)))
    example = torch.rand(2, channels, 2 * window + 1, 3 * window + 2)  # sides that no rule takes for fixed
    others = [(1, channels, window + 3, 2 * window), (3, channels, 3 * window, window + 5)]
    return write_onnx(
        optimize_for_inference(model),
        {"picture": example},
        "restored",
        out,
        tolerance=TOLERANCE,
        axes={"picture": {0: batch, 2: height, 3: width}},
        metadata={"scale": str(model.scale), "channels": str(channels)},
        reference=model,
        compared=[[torch.rand(shape, generator=torch.Generator().manual_seed(0))] for shape in others],
    )


def export_published(weights: str | Path | None, out: str | Path, *, scale: int | None = None) -> None:
    """Writes the weights as the authors do, so that other programs load them: `params_ema` in a .pth, or plain .safetensors.

    Args:
        weights, scale: see `load_model`.
        out: ends in .pth, .pt or .safetensors.
    """
    out = _checked(out, (".pth", ".pt", ".safetensors"))
    model = load_model(weights, scale)
    if out.suffix == ".safetensors":
        save_weights(model, out, published=True)
        return
    with atomic_path(out) as temporary:
        save_weights(model, temporary, published=True)
        torch.save({"params_ema": torch.load(temporary, weights_only=True)}, temporary)


def _checked(out: str | Path, suffixes: tuple[str, ...]) -> Path:
    out = Path(out)
    if out.suffix not in suffixes:
        raise InputError(f"{out}: the name must end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise InputError(f"{out}: is a folder")
    return out
