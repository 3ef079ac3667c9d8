"""Turns a finished run into weights that the package ships: float16, with the note that prediction needs.

python packages/pointcloud/benchmarks/ship.py runs/streets-flatformer_streets
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from vsuite.core import load_published, save_weights
from vsuite.core.weights import read_metadata
from vsuite.pointcloud.inference import NOTE

WEIGHTS = Path(__file__).parents[1] / "src/vsuite/pointcloud/weights"


def main(run: Annotated[Path, typer.Argument(help="Run folder.")], out: Path = WEIGHTS) -> None:
    best = run / "checkpoints" / "best.safetensors"
    model, metadata = load_published(best), read_metadata(best)
    path = out / f"{metadata['recipe']}.safetensors"
    save_weights(model, path, dtype=torch.float16, metadata={key: metadata[key] for key in (NOTE, "recipe")})
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    typer.run(main)
