"""Turns a finished run of the recipe `drct_lite` into the weights that the package ships: float16.

python packages/restoration/benchmarks/ship_lite.py runs/drct_lite_x4
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from vsuite.core import load_published, save_weights

WEIGHTS = Path(__file__).parents[1] / "src/vsuite/restoration/weights"


def main(run: Annotated[Path, typer.Argument(help="Run folder.")], out: Path = WEIGHTS) -> None:
    model = load_published(run / "checkpoints" / "best.safetensors")
    path = out / f"drct_lite_x{model.scale}.safetensors"
    save_weights(model, path, dtype=torch.float16)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    typer.run(main)
