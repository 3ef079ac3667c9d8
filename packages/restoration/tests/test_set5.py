"""The stored files of Set5, and the published bicubic baselines on it, where the data is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vsuite.core.evaluation import Evaluator
from vsuite.restoration.data.pictures import list_pictures, read_rgb
from vsuite.restoration.metrics import PsnrSsim
from vsuite.restoration.resize import crop_to_multiple, imresize

ROOT = Path(os.environ.get("VSUITE_DATA") or Path(__file__).parents[3] / "../shared/data") / "sr" / "set5"

# PSNR-Y and SSIM-Y: LR made by A, Y not rounded; the stored LR; LR made by A, Y rounded; and RGB's PSNR of the first.
BASELINES = {
    2: ((33.6818, 0.9305), (33.6786, 0.9304), (33.6486, 0.9295), 31.80),
    3: ((30.4047, 0.8690), (30.4058, 0.8690), (30.3863, 0.8679), 28.63),
    4: ((28.4314, 0.8113), (28.4318, 0.8113), (28.4189, 0.8103), 26.70),
}


@pytest.fixture(scope="module")
def pictures():
    if not ROOT.is_dir():
        pytest.skip(f"Set5 is not at {ROOT}; VSUITE_DATA names the folder of the data")
    return {path.stem: read_rgb(path) for path in list_pictures(ROOT / "HR")}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_convention_b_makes_the_stored_files(pictures, scale):
    for name, high in pictures.items():
        stored = read_rgb(ROOT / f"LR_x{scale}" / f"{name}.png")
        made = imresize(crop_to_multiple(high, scale), 1 / scale, convention="B")
        assert np.array_equal(made, stored), f"{name}: {(made != stored).sum()} of {stored.size} samples differ"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_baselines(pictures, scale):
    options: list[dict] = [{}, {"channels": "y"}, {"channels": "y", "round_y": True}]
    evaluators = [Evaluator([PsnrSsim(scale, **chosen)]) for chosen in options]
    for index, (name, picture) in enumerate(pictures.items()):
        high = crop_to_multiple(picture, scale)
        made = imresize(imresize(high, 1 / scale), scale)
        stored = imresize(read_rgb(ROOT / f"LR_x{scale}" / f"{name}.png"), scale)
        for evaluator, enlarged in zip(evaluators, (made, stored, made), strict=True):
            evaluator.update(index, name, prediction=enlarged, reference=high)
    *expected, rgb = BASELINES[scale]
    summaries = [evaluator.compute().summary for evaluator in evaluators]
    for summary, (psnr, ssim) in zip(summaries, expected, strict=True):
        assert summary["psnr_y"] == pytest.approx(psnr, abs=0.002)
        assert summary["ssim_y"] == pytest.approx(ssim, abs=0.0002)
    assert summaries[0]["psnr_rgb"] == pytest.approx(rgb, abs=0.006)
