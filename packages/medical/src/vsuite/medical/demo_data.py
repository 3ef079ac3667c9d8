"""A small data set made on the fly: a head-like phantom with four structures, in another pose and grid each case.

Shapes are defined in millimetres in the patient's space and sampled on each case's own grid: oblique, anisotropic and
stored in one of several orientations, as scanners do. Everything follows from the seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path, write_text
from vsuite.medical.data.nifti import Volume, write_label

Points = npt.NDArray[np.float64]  # ..., 3: millimetres to the right, front and top

LABELS = {"background": 0, "lobes": 1, "ventricle": 2, "stem": 3, "lesion": 4}
_ORIENTATIONS = ("RAS", "LPS", "LAS", "RSA", "PSR", "AIL")
_SPACING = np.array([1.2, 1.2, 2.4])  # mm along right, front, top; varied by case
# tissue: brightness in the two channels
_AIR, _SCALP, _SKULL, _FILLING = (0.0, 0.0), (0.80, 0.50), (0.12, 0.10), (0.36, 0.70)
_BRIGHTNESS = {"lobes": (0.58, 0.48), "ventricle": (0.20, 0.95), "stem": (0.78, 0.36), "lesion": (1.00, 0.82)}


def make_demo_dataset(
    folder: str | Path,
    *,
    cases: int = 20,
    test_cases: int = 4,
    seed: int = 0,
    size: Sequence[int] = (48, 56, 28),
    channels: Literal[1, 2] = 1,
    layout: Literal["nnunet", "decathlon"] = "nnunet",
) -> Path:
    """Writes the data set and returns its folder.

    Cases for training lie in imagesTr and labelsTr, those for testing in imagesTs and labelsTs. A case depends on the
    seed and its own number alone, so a larger set begins with the cases of a smaller one.

    Args:
        folder: made if it is not there; files of the same names are overwritten.
        cases, test_cases: how many.
        size: voxels towards right, front and top. The field of view stays the same: fewer voxels are larger.
        channels: 1, or 2 for a second contrast.
        layout: nnU-Net's (one file a channel) or Decathlon's (one 4D file).

    Raises:
        InputError: for impossible options and where the folder cannot be written to.
    """
    if cases < 1 or test_cases < 0 or len(size) != 3 or min(size) < 8 or channels not in (1, 2) or layout not in ("nnunet", "decathlon"):
        raise InputError(
            "a demo data set needs cases >= 1, test_cases >= 0, three sides from 8 up, channels 1 or 2, layout nnunet or decathlon: "
            f"got {cases}, {test_cases}, {tuple(size)}, {channels}, {layout!r}"
        )
    folder = Path(folder)
    names = []
    for index in range(cases + test_cases):
        part = "Tr" if index < cases else "Ts"
        # test cases count from the other end of the numbers, so that more training cases do not change them
        number = index + 1 if index < cases else 9000 + index - cases
        name = f"phantom_{number:04d}"
        image, label, affine = make_phantom(np.random.default_rng((seed, number)), size, channels)
        _write_case(folder, part, name, image, label, affine, layout)
        names.append((part, name))
    description = _decathlon(names, channels) if layout == "decathlon" else _nnunet(cases, channels)
    write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    return folder


def make_phantom(
    rng: np.random.Generator, size: Sequence[int] = (48, 56, 28), channels: int = 1
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """One case: image C, X, Y, Z, label X, Y, Z (see `LABELS`), and the affine of their grid."""
    shape, affine = _grid(rng, size)
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = _posed(rng, voxels @ affine[:3, :3].T + affine[:3, 3] - centre)
    inside = _structures(rng, points)
    label = np.zeros(shape, np.uint8)
    for name, mask in inside.items():
        label[mask] = LABELS[name]
    radius = np.linalg.norm(points / (24.5, 29.0, 29.0), axis=-1)  # 1 at the skin
    image = np.stack([_contrast(rng, channel, radius, label) for channel in range(channels)])
    return image, label, affine


def _grid(rng: np.random.Generator, size: Sequence[int]) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """Shape and affine of a grid that is oblique, anisotropic and stored in one of several orientations."""
    spacing = _SPACING * (48, 56, 28) / np.array(size) * rng.uniform(0.94, 1.06, 3)
    tilt = Rotation.from_rotvec(rng.uniform(-0.12, 0.12, 3)).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt * spacing
    affine[:3, 3] = rng.uniform(-60, 60, 3)  # where scanners put the origin says nothing about the patient
    target = nib.orientations.axcodes2ornt(tuple(rng.choice(_ORIENTATIONS)))
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
    shape = [0, 0, 0]
    for axis, (new, _) in enumerate(change):
        shape[int(new)] = int(size[axis])
    return tuple(shape), affine @ nib.orientations.inv_ornt_aff(change, tuple(size))


def _posed(rng: np.random.Generator, points: Points) -> Points:
    """Points of the patient -> points of the standard head: turned, scaled, shifted and smoothly bent."""
    turn = Rotation.from_rotvec(rng.normal(0, 0.10, 3)).as_matrix()
    points = (points - rng.uniform(-2, 2, 3)) @ turn / rng.uniform(0.93, 1.05, 3)
    bent = points.copy()
    for _ in range(4):  # waves some 60 mm long that shift by up to 1 mm each
        wave = rng.normal(0, 1, 3)
        phase = points @ (wave / np.linalg.norm(wave)) * (2 * np.pi / rng.uniform(50, 80)) + rng.uniform(0, 2 * np.pi)
        bent += np.sin(phase)[..., None] * rng.uniform(-1, 1, 3)
    return bent


def _structures(rng: np.random.Generator, points: Points) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks of the structures at points of the standard head; later ones lie over earlier ones."""
    x, y, z = np.moveaxis(points, -1, 0)
    lobes = np.zeros(x.shape, bool)
    for side in (-1, 1):
        lobes |= _in_ellipsoid(points, (side * 10.2, 0.0, 4.0), (9.5, 20.0, 15.0) * rng.uniform(0.93, 1.05, 3))
    stem = (np.hypot(x, y + 7 + 0.25 * z) < rng.uniform(6.8, 8.0)) & (z < -6) & (z > -21)
    place = (rng.choice((-1.0, 1.0)) * rng.uniform(10, 13), rng.uniform(-9, 11), rng.uniform(1, 9))
    lesion = _in_ellipsoid(points, place, rng.uniform(6.5, 9.0, 3))
    # a tube along three quarters of a circle around (y, z) = (-1, 4), open to the front and below
    angle, reach = np.arctan2(z - 4, y + 1), np.hypot(y + 1, z - 4)
    ventricle = (np.hypot(reach - rng.uniform(9.0, 10.5), x * 0.9) < rng.uniform(4.7, 5.5)) & ((angle > -0.4) | (angle < -1.9))
    return {"lobes": lobes, "lesion": lesion & lobes, "stem": stem, "ventricle": ventricle}


def _in_ellipsoid(points: Points, centre: npt.ArrayLike, radii: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    return np.linalg.norm((points - np.asarray(centre)) / np.asarray(radii), axis=-1) < 1


def _contrast(
    rng: np.random.Generator, channel: int, radius: npt.NDArray[np.float64], label: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int16]:
    """One channel: brightness of each tissue, partial volumes, a bias field, and the Rician noise of magnitude images."""
    layers = [t[channel] for t in (_FILLING, _SKULL, _SCALP, _AIR)]
    image = np.select([radius < 0.84, radius < 0.92, radius < 1.0], layers[:3], layers[3])
    for name, brightness in _BRIGHTNESS.items():
        image[label == LABELS[name]] = brightness[channel] * rng.uniform(0.95, 1.05)
    image = ndimage.gaussian_filter(image, 0.5)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    slopes, curves = rng.uniform(-0.15, 0.15, 3), rng.uniform(-0.12, 0.12, 3)
    image = image * np.exp(sum(s * g + c * g**2 for s, c, g in zip(slopes, curves, grid, strict=True)))
    noise = rng.normal(0, rng.uniform(0.03, 0.05), (2, *image.shape))
    magnitude = np.hypot(image + noise[0], noise[1]) * rng.uniform(600, 1100)
    return np.rint(magnitude).astype(np.int16)


def _write_case(
    folder: Path,
    part: str,
    name: str,
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
    affine: npt.NDArray[np.float64],
    layout: str,
) -> None:
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    if layout == "decathlon":
        _write_image(images / f"{name}.nii.gz", np.moveaxis(image, 0, -1) if len(image) > 1 else image[0], affine)
    else:
        for channel, array in enumerate(image):
            _write_image(images / f"{name}_{channel:04d}.nii.gz", array, affine)
    write_label(labels / f"{name}.nii.gz", label, Volume(label[None], affine))


def _write_image(path: Path, array: npt.NDArray[np.int16], affine: npt.NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _nnunet(cases: int, channels: int) -> dict[str, Any]:
    return {
        "name": "Phantom",
        "channel_names": {str(i): f"MR contrast {i + 1}" for i in range(channels)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def _decathlon(names: Sequence[tuple[str, str]], channels: int) -> dict[str, Any]:
    training = [name for part, name in names if part == "Tr"]
    test = [name for part, name in names if part == "Ts"]
    return {
        "name": "Phantom",
        "description": "A head-like phantom with four structures, made by vsuite",
        "tensorImageSize": "4D" if channels > 1 else "3D",
        "modality": {str(i): f"MR contrast {i + 1}" for i in range(channels)},
        "labels": {str(i): name for name, i in LABELS.items()},
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in training],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
