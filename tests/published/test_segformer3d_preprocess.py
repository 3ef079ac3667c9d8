"""The published input contract of SegFormer3D: scaling slice by slice, and the three tumour regions."""

from __future__ import annotations

import numpy as np

from vsuite.medical.data.geometry import label_to_regions
from vsuite.medical.plan import Normalisation
from vsuite.medical.preprocess import normalise

MSD = [[2, 3], [1, 2, 3], [3]]  # tumour core, whole tumour, enhancing tumour
BRATS_2021 = [[1, 4], [1, 2, 4], [4]]


def test_slices_and_regions(load_case):
    case = load_case("segformer3d/preprocess")
    inputs = case.inputs()
    volume = inputs["volume"].copy()
    volume[:, :, 4] = 3.0
    case.check(
        {
            "normalised": normalise(volume[None], [Normalisation(kind="slice_minmax")])[0],
            "channels_msd": label_to_regions(inputs["label_msd"].astype(np.int64), MSD),
            "channels_2021": label_to_regions(inputs["label_2021"].astype(np.int64), BRATS_2021),
        }
    )
