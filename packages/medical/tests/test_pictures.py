"""The picture of a case: what is where on it, in any orientation, also for small and odd volumes."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.medical.pictures import COLOURS, case_picture, chosen_slices

LABELS = {"a": 1, "b": 2}


def read(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def panels(pixels: np.ndarray, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """The three planes cut out of a picture, by the layout that the volume's sides in mm give."""
    x, y, z = (n * s for n, s in zip(shape, spacing, strict=True))
    scale = (1200 - 48) / (2 * x + y)
    left, middle, found = 12.0, pixels.shape[0] / 2, {}
    for name, width, height in (("axial", x, y), ("coronal", x, z), ("sagittal", y, z)):
        rows = slice(round(middle - scale * height / 2), round(middle + scale * height / 2))
        found[name] = pixels[rows, round(left) : round(left + scale * width)]
        left += scale * width + 12
    return found


def colour_share(pixels: np.ndarray, colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels - wanted).max(-1) < 12).mean())


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "AIL"])
def test_sides_of_the_patient(codes: str, tmp_path: Path) -> None:
    """A bright block at the patient's right, front and top lies left and up in axial and coronal, and left in the sagittal plane."""
    shape, spacing = (20, 24, 16), (1.0, 1.0, 2.0)
    image = np.zeros(shape, np.float32)
    image[12:, 14:, 9:] = 1
    mask = np.zeros(shape, np.uint8)
    mask[15:17, 18:20, 11:13] = 1  # planes go through the block
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    affine = np.diag([*spacing, 1.0]) @ nib.orientations.inv_ornt_aff(change, shape)
    stored = [nib.orientations.apply_orientation(v, change) for v in (image, mask)]
    case_picture(stored[0], stored[1], None, affine, tmp_path / "p.png")
    for name, pixels in panels(read(tmp_path / "p.png"), shape, spacing).items():
        quarters = {
            (v, h): pixels[r, c].mean()
            for (v, r), (h, c) in itertools.product(
                (("top", slice(None, len(pixels) // 2)), ("bottom", slice(len(pixels) // 2, None))),
                (("left", slice(None, pixels.shape[1] // 2)), ("right", slice(pixels.shape[1] // 2, None))),
            )
        }
        assert max(quarters, key=lambda q: quarters[q]) == ("top", "left"), name
        assert quarters["top", "left"] > 3 * quarters["bottom", "right"], name


def test_one_scale_in_all_planes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((30, 40, 10)).astype(np.float32) + 1
    image[0, 0, 0] = 0
    case_picture(image, None, None, np.diag([1.0, 1.0, 4.0, 1.0]), tmp_path / "p.png")
    pixels = read(tmp_path / "p.png")
    found = panels(pixels, (30, 40, 10), (1, 1, 4))
    scale = (1200 - 48) / 100
    for name, width, height in (("axial", 30, 40), ("coronal", 30, 40), ("sagittal", 40, 40)):
        assert found[name].shape[:2] == pytest.approx((height * scale, width * scale), abs=2)
        assert (found[name].max(-1) > 40).mean() > 0.9, name  # the panel is filled with image


def test_contours_have_the_structures_colours(tmp_path: Path) -> None:
    label = np.zeros((30, 30, 30), np.uint8)
    label[5:15, 8:20, 8:20], label[16:26, 8:20, 8:20] = 1, 2
    image = np.zeros(label.shape, np.float32)
    case_picture(image, label, np.where(label == 1, 1, 0).astype(np.uint8), np.eye(4), tmp_path / "p.png", labels=LABELS)
    planes = panels(read(tmp_path / "p.png"), label.shape, (1, 1, 1))
    assert colour_share(planes["axial"], COLOURS[0]) > 0.001  # predicted
    assert colour_share(planes["axial"], COLOURS[1]) == 0  # missed: the reference alone, in a tint
    case_picture(image, label, None, np.eye(4), tmp_path / "r.png", labels=LABELS)
    planes = panels(read(tmp_path / "r.png"), label.shape, (1, 1, 1))
    assert colour_share(planes["axial"], COLOURS[1]) > 0.001


def test_planes_go_through_a_missed_structure_else_through_all() -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[5:25, 5:25, 5:25], label[30:36, 10:16, 20:26] = 1, 2
    missed = np.where(label == 2, 0, label)
    x, y, z = chosen_slices(label, missed, LABELS, label.shape)
    assert label[x, y, z] == 2
    x, y, z = chosen_slices(label, label, LABELS, label.shape)
    assert 10 <= y < 16  # both structures lie in these planes
    assert 20 <= z < 25
    rim = np.roll(label, 1, axis=0)
    assert chosen_slices(label, rim, LABELS, label.shape)[1:] == (y, z)  # a rim is no error to look at
    assert chosen_slices(np.zeros_like(label), None, LABELS, label.shape) == (20, 20, 20)


@pytest.mark.parametrize("shape", [(36, 36, 36), (5, 4, 3), (1, 8, 8), (64, 16, 2)])
def test_odd_shapes(shape: tuple[int, int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, shape).astype(np.uint8)
    case_picture(rng.random(shape), label, label[::-1], np.eye(4), tmp_path / "p.png", "x", labels=LABELS)
    case_picture(None, label, None, np.eye(4), tmp_path / "q.png")
    case_picture(np.full(shape, 7.0), None, None, np.eye(4), tmp_path / "c.png")  # a constant image
    assert all(read(tmp_path / name).shape[1] == 1200 for name in ("p.png", "q.png", "c.png"))


def test_pyplot_stays_untouched(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = (plt.get_fignums(), plt.rcParams["figure.facecolor"])
    case_picture(np.random.default_rng(0).random((8, 8, 8)), None, None, np.eye(4), tmp_path / "p.png")
    assert (plt.get_fignums(), plt.rcParams["figure.facecolor"]) == before


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="one shape"):
        case_picture(np.zeros((3, 3, 3)), np.zeros((3, 3, 4), np.uint8), None, np.eye(4), "never.png")
    with pytest.raises(InputError, match="one shape"):
        case_picture(None, None, None, np.eye(4), "never.png")
    assert not Path("never.png").exists()
