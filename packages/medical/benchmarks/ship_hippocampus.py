"""Turns a finished run of the recipe `hippocampus` into the weights that the package ships: float16, with their facts inside.

python packages/medical/benchmarks/ship_hippocampus.py runs/hippocampus_all
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from vsuite.core import load_published, save_weights
from vsuite.core.weights import read_metadata

SHIPPED = Path(__file__).parents[1] / "src/vsuite/medical/weights/hippocampus.safetensors"
FACTS = {
    "name": "hippocampus",
    "version": "1.0.0",
    "description": "SegFormer3D that labels the anterior and posterior hippocampus in T1-weighted MRI crops.",
    "authors": "the vsuite authors",
    "copyright": "weights: CC BY-SA 4.0, derived from Medical Segmentation Decathlon Task04",
    "modality": "MR",
    "data_source": "Medical Segmentation Decathlon, Task04 Hippocampus (Vanderbilt University Medical Center), 200 labelled cases",
    "data_licence": "CC BY-SA 4.0: the data and, as a work derived from them, these weights. Name the Medical Segmentation Decathlon.",
    "references": [
        "Perera et al., SegFormer3D: an Efficient Transformer for 3D Medical Image Segmentation, CVPR 2024 workshop, arXiv 2404.10156",
        "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128 (2022)",
    ],
}


def main(run: Annotated[Path, typer.Argument(help="Run folder.")], out: Path = SHIPPED) -> None:
    best = run / "checkpoints" / "best.safetensors"
    save_weights(load_published(best), out, dtype=torch.float16, metadata={"plan": read_metadata(best)["plan"], "facts": FACTS})
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
