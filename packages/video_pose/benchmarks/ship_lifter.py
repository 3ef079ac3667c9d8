"""Puts the best weights of a run into the package as float16: python ship_lifter.py RUN_FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from vsuite.core import load_published, save_weights
from vsuite.core.weights import find_weights, read_metadata
from vsuite.video_pose.models.convformer import SHIPPED
from vsuite.video_pose.notes import NOTE


def main() -> None:
    source = find_weights(sys.argv[1])
    (target,) = SHIPPED.values()
    facts = read_metadata(source)
    target.parent.mkdir(exist_ok=True)
    save_weights(load_published(source), target, dtype=torch.float16, metadata={key: facts[key] for key in (NOTE, "recipe")})
    print(f"{target}: {Path(target).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
