"""The weights inside the package."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vsuite.core import create_model, list_models, model_info
from vsuite.core.weights import read_metadata
from vsuite.medical.data.nifti import read_image, read_label
from vsuite.medical.export.bundle import facts_of
from vsuite.medical.inference import Predictor
from vsuite.medical.metrics import count_voxels

DATA = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[3] / "../shared/data")) / "medical" / "hippocampus"
WEIGHTS = model_info("segformer3d").weights["hippocampus"]


def test_they_are_listed_small_and_described() -> None:
    assert "segformer3d" in list_models(with_weights=True)
    assert WEIGHTS.stat().st_size < 10e6
    card = WEIGHTS.with_suffix(".md").read_text()
    assert "CC BY-SA 4.0" in card
    assert "CC BY-SA 4.0" in facts_of(read_metadata(WEIGHTS)).data_licence


def test_a_model_is_built_from_their_name_with_their_options() -> None:
    model = create_model("segformer3d", weights="hippocampus").eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 32, 48, 32)).shape == (1, 3, 32, 48, 32)


def test_they_find_hippocampi() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there; VSUITE_DATA names the folder of the data")
    predictor = Predictor("hippocampus", device="cpu")
    dice = []
    for path in sorted((DATA / "imagesTr").glob("hippocampus_*.nii.gz"))[::67]:
        label = read_label(DATA / "labelsTr" / path.name)
        found = predictor.predict(path)
        assert np.array_equal(found.affine, read_image(path).affine)
        dice += [count_voxels(found.label == c, label.array[0] == c).dice for c in (1, 2)]
    assert np.mean(dice) > 0.85
