"""Memory of a whole prediction, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import nibabel as nib, numpy as np, torch
from vsuite.core.bench.memory import process_memory
from vsuite.medical.inference import Predictor
from vsuite.medical.plan import Normalisation, Plan

folder, *shapes = sys.argv[1:]
labels = {"background": 0} | {f"organ{i}": i for i in range(1, 14)}
ct = Normalisation(kind="ct", lower=-900, upper=900, mean=100, std=200)
plan = Plan(channels=["CT"], normalisation=[ct], labels=labels, patch_size=(64, 64, 64))
predictor = Predictor((torch.nn.Conv3d(1, 14, 1), plan), device="cpu", overlap=0.25)
for shape in shapes:
    x, y, z = map(int, shape.split("x"))
    image = nib.Nifti1Image(np.empty((x, y, z), np.int16), np.diag([-0.8, -0.8, 1.0, 1.0]))
    for plane in range(z):
        image.dataobj[..., plane] = np.add.outer(np.arange(x), np.arange(y)) % 700 + plane
    nib.save(image, f"{folder}/ct.nii")
    del image
    prediction = predictor.predict(f"{folder}/ct.nii")
    prediction.save(f"{folder}/label.nii.gz")
    assert prediction.label.shape == (x, y, z)
    del prediction
    print(process_memory()[1] // 2**20)  # its own peak: ru_maxrss would start from that of the process that started it
"""


def peaks_mib(folder: Path, *shapes: str) -> list[int]:
    """Peak memory of the process after each of several volumes, one after the other."""
    command = [sys.executable, "-c", SCRIPT, str(folder), *shapes]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_logits_of_the_whole_volume_never_exist(tmp_path: Path) -> None:
    short, long = peaks_mib(tmp_path, "96x96x128", "96x96x384")
    # What grows with the length is the image itself (a few copies of 4 bytes a voxel), not the 14 classes.
    assert long - short < 8 * 96 * 96 * 256 * 4 / 2**20


@pytest.mark.slow
def test_large_ct_within_4_gib(tmp_path: Path) -> None:
    assert peaks_mib(tmp_path, "512x512x400")[0] < 4096
