"""Single medical pictures: PNG, JPEG and TIFF of 8 and 16 bits, DICOM, and slices of NIfTI volumes.

Importing this module makes the core's image reading (training, prediction and evaluation of classifiers) take DICOM and NIfTI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.images import files as image_files
from vsuite.medical.data import dicom, files, nifti
from vsuite.medical.data.dicom import Window
from vsuite.medical.data.nifti import Volume, is_nifti

PERCENTILES = (0.5, 99.5)  # of a volume's voxels: what becomes black and white


def read_picture(path: str | Path, *, window: Window | None = None, index: int | None = None) -> Volume:
    """One picture of any of the formats: C, X, Y, 1 float32, C 1 (grey) or 3 (RGB); X runs to the right, Y down.

    Values are kept as they are stored: 0 to 255 or 65535 in PNG, JPEG and TIFF (0 to 1 in TIFFs of floats), rescaled
    (Hounsfield units, say) in DICOM. A slice of a NIfTI file keeps the file's own axes X and Y.

    Args:
        window: centre and width, for DICOM and NIfTI: clips to it and brings it to 0 to 1.
        index: which frame or slice along Z of a file that holds several.

    Raises:
        InputError: naming the file, for what cannot be read, and for one of several slices without an index.
    """
    path = Path(path)
    if dicom.is_dicom(path):
        return _slice(dicom.read_dicom(path, window=window), index)
    if window is not None and not is_nifti(path):
        raise InputError(f"{path}: windows are for DICOM and NIfTI files, whose values have a unit")
    volume = _slice(files.read_file(path), index)
    if window is not None:
        volume.array = dicom.windowed(volume.array, window)
    return volume


def _slice(volume: Volume, index: int | None) -> Volume:
    count = volume.array.shape[3]
    if index is None and count > 1:
        raise InputError(f"{volume.path}: holds {count} slices, where one picture is expected; `vsuite-medical slices` cuts volumes")
    chosen = 0 if index is None else index
    if chosen not in range(count):
        raise InputError(f"{volume.path}: there is no slice {chosen}; it holds {count}")
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * chosen
    return Volume(volume.array[..., chosen : chosen + 1], affine, volume.header, volume.path)


@image_files.register_reader(*dicom.ENDINGS, *nifti.ENDINGS)
def read_pixels(path: Path) -> NDArray[np.float32]:
    """A DICOM or NIfTI picture for the core: H, W, C from 0 to 1.

    Values are seen through the window that a DICOM file recommends, else from the picture's least to its greatest; colours of
    DICOM as they are.
    """
    window = dicom.stored_window(path) if not is_nifti(path) else None
    array = read_picture(path, window=window).array[..., 0].transpose(2, 1, 0)
    if array.shape[2] not in (1, 3):
        raise InputError(f"{path}: holds {array.shape[2]} channels; 1 (grey) or 3 (RGB) are expected")
    if array.shape[2] == 3 and not is_nifti(path):
        return (array / np.float32(255 if array.max() <= 255 else 65535)).astype(np.float32)
    low, high = (0.0, 1.0) if window is not None else (float(array.min()), float(array.max()))
    return ((array - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)


def cut(volume: Volume, window: Window | None = None) -> Iterator[NDArray[np.uint16]]:
    """The slices of a volume's first channel along Z as 16-bit pictures H, W, the first axis to the right, the second down.

    Args:
        window: centre and width of what becomes black to white; None takes the volume's percentiles 0.5 and 99.5.

    Raises:
        InputError: for a width that is not above 0.
    """
    if window is not None:
        dicom.check_window(window)
    array = volume.array[0]
    low, high = np.percentile(array, PERCENTILES) if window is None else (window[0] - window[1] / 2, window[0] + window[1] / 2)
    for z in range(array.shape[2]):
        unit = (array[:, :, z].T - low) / max(float(high - low), 1e-12)
        yield np.rint(unit.clip(0, 1) * 65535).astype(np.uint16)


def write_png(picture: NDArray[np.uint16] | NDArray[np.uint8], path: str | Path) -> None:
    """Writes H, W (grey) or H, W, 3 (RGB) as PNG, whole or not at all."""
    import cv2

    done, data = cv2.imencode(".png", picture if picture.ndim == 2 else picture[..., ::-1])
    if not done:
        raise InputError(f"{path}: {picture.dtype} of the shape {picture.shape} cannot be written as PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())  # opencv's own writing hides a full disk
