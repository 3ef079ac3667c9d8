"""Memory of a whole prediction, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import nibabel as nib, numpy as np, torch
from vsuite.core.bench.memory import process_memory
from vsuite.medical.inference import Predictor
from vsuite.medical.plan import Normalisation, Plan

folder, *sides = sys.argv[1:]
x, y, z = map(int, sides)
affine = np.diag([-0.8, -0.8, 1.0, 1.0])
image = nib.Nifti1Image(np.empty((x, y, z), np.int16), affine)
for plane in range(z):
    image.dataobj[..., plane] = np.add.outer(np.arange(x), np.arange(y)) % 700 + plane
nib.save(image, f"{folder}/ct.nii")
del image
labels = {"background": 0} | {f"organ{i}": i for i in range(1, 14)}
ct = Normalisation(kind="ct", lower=-900, upper=900, mean=100, std=200)
plan = Plan(channels=["CT"], normalisation=[ct], labels=labels, patch_size=(64, 64, 64))
network = torch.nn.Conv3d(1, 14, 1)
prediction = Predictor((network, plan), device="cpu", overlap=0.25).predict(f"{folder}/ct.nii")
prediction.save(f"{folder}/label.nii.gz")
assert prediction.label.shape == (x, y, z)
print(process_memory()[1] // 2**20)  # its own peak: ru_maxrss would start from that of the process that started it
"""


def peak_mib(folder, *sides: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(folder), *map(str, sides)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_logits_of_the_whole_volume_never_exist(tmp_path):
    # 14 classes of 128 x 128 x 400 float32 are 350 MiB, and with the weights and a second copy more than twice that.
    short, long = peak_mib(tmp_path, 128, 128, 100), peak_mib(tmp_path, 128, 128, 400)
    # What grows with the length is the image itself (a few copies of 4 bytes a voxel), not the classes.
    assert long - short < 128 * 128 * 300 * 4 * 5 / 2**20 < 14 * 128 * 128 * 300 * 4 / 2**20


@pytest.mark.slow
def test_large_ct_within_4_gib(tmp_path):
    assert peak_mib(tmp_path, 512, 512, 400) < 4096
