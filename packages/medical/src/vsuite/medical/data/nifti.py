"""NIfTI files in and out, with every check of their geometry and voxels.

What is read keeps the file's own grid; what is written takes the image's grid and header, so that a label map lies on
the image in every viewer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.medical.data.geometry import FloatArray, difference, shear_angle, spacing_of

ENDINGS = (".nii.gz", ".nii")
MAX_SHEAR = 0.5  # degrees: rounding and slightly inconsistent scanners pass, a tilted gantry does not
MAX_COMPRESSION = 1100  # gzip packs at most some 1030 bytes into one
# What nibabel lets through when a file is cut short, foreign, or lies about its size.
_READ_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, MemoryError, OverflowError, KeyError, TypeError)


@dataclass
class Volume:
    """An image or label map in the grid of its file.

    Attributes:
        array: C, X, Y, Z in nibabel's axis order; float32 for images, the smallest unsigned integer for label maps.
        affine: 4x4 float64, voxel indices to RAS+ mm.
        header: of the (first) file, copied when a result is written on the same grid; None for arrays from memory.
        path: of the (first) file.
    """

    array: NDArray[Any]
    affine: FloatArray
    header: Any = None
    path: Path | None = None


def is_nifti(path: str | Path) -> bool:
    """Whether the name is one of a NIfTI file; the `._*` companions that macOS leaves in archives are not."""
    name = Path(path).name
    return name.endswith(ENDINGS) and not name.startswith("._")


def read_image(paths: str | Path | Sequence[str | Path], *, channels: int | None = None) -> Volume:
    """Reads one image: a 3D file, a 4D file with the channels last, or one 3D file a channel.

    The affine is the sform if its code is set, else the qform, else the voxel sizes. A constant channel is warned of.

    Args:
        paths: one file, or one a channel in the network's order, all on the same grid.
        channels: how many there must be; None takes what is there.

    Raises:
        InputError: naming the file, for one that is missing, cut short, not NIfTI, empty, sheared, without a spacing,
            not finite, of another number of channels or of another rank; and for files whose grids differ.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise InputError("an image needs at least one file; got none")
    volume = _read_channels(files[0]) if len(files) == 1 else _read_file_a_channel(files)
    check_channels(volume, files, channels)
    return volume


def check_channels(volume: Volume, files: Sequence[Path], channels: int | None) -> None:
    """Refuses another number of channels than `channels` (None takes any), and warns of constant ones."""
    if channels is not None and volume.array.shape[0] != channels:
        what = f"4D with {volume.array.shape[0]} channels" if len(files) == 1 and volume.array.shape[0] > 1 else f"{volume.array.shape[0]}"
        raise InputError(f"{files[0]}: {what} given, where {channels} {'is' if channels == 1 else 'are'} expected")
    for index, channel in enumerate(volume.array):
        if channel.min() == channel.max():
            name = files[index] if len(files) > 1 else f"{files[0]}: channel {index}"
            warnings.warn(f"{name}: all voxels are {channel.flat[0]:g}", stacklevel=3)


def _read_channels(path: Path) -> Volume:
    image = _open(path)
    array = _voxels(image, path, np.float32)
    _check_finite(array, path)
    return Volume(np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None], _affine(image, path), image.header, path)


def _read_file_a_channel(files: Sequence[Path]) -> Volume:
    volumes: list[Volume] = []
    for path in files:
        volume = _read_channels(path)
        if volume.array.shape[0] != 1:
            raise InputError(f"{path}: 4D with {volume.array.shape[0]} channels, where one 3D file a channel is expected")
        if volumes:
            first = volumes[0]
            differs = difference(first.array.shape[1:], first.affine, volume.array.shape[1:], volume.affine)
            if differs:
                raise InputError(f"{path}: its grid is not that of {files[0]}: {differs}")
        volumes.append(volume)
    return Volume(np.concatenate([v.array for v in volumes]), volumes[0].affine, volumes[0].header, files[0])


def read_label(path: str | Path) -> Volume:
    """Reads a label map: 1, X, Y, Z in the smallest unsigned type that holds its ids.

    Floating-point files are taken where every voxel is a whole number.

    Raises:
        InputError: as for `read_image`, and for several channels, negative or fractional ids.
    """
    path = Path(path)
    image = _open(path)
    array = _voxels(image, path, None)
    if array.ndim != 3:
        raise InputError(f"{path}: 4D with {array.shape[3]} channels, where a 3D label map is expected")
    if array.dtype.kind == "f":
        _check_finite(array, path)
        fractional = int((array != np.rint(array)).sum())
        if fractional:
            raise InputError(f"{path}: {fractional} voxels are not whole numbers; a label map holds integer ids")
    low, high = array.min(), array.max()
    if low < 0:
        raise InputError(f"{path}: holds the negative id {low:g}; labels are 0 (background) and up")
    if high > np.iinfo(np.uint32).max:
        raise InputError(f"{path}: holds the id {high:g}; ids up to {np.iinfo(np.uint32).max} are allowed")
    return Volume(array.astype(np.min_scalar_type(int(high)))[None], _affine(image, path), image.header, path)


def read_grid(path: str | Path) -> tuple[tuple[int, ...], FloatArray]:
    """Shape (X, Y, Z, with the channels last if there are several) and affine, from the header alone."""
    path = Path(path)
    image = _open(path)
    return _shape(image, path), _affine(image, path)


def _open(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a NIfTI file (.nii or .nii.gz) is expected")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty (0 bytes)")
        with _quiet_nibabel():
            image = nib.load(path, mmap=False)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(f"{path}: is no readable NIfTI file: {_first_line(error)}") from error
    if not isinstance(image, nib.Nifti1Pair):  # NIfTI-2 is derived from it
        raise InputError(f"{path}: is {type(image).__name__}, not a NIfTI file")
    _check_voxel_sides(image, path)
    return image


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keeps nibabel from printing what it repairs: what is wrong is raised once, in our words."""
    level = nib.imageglobals.logger.level
    nib.imageglobals.logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        nib.imageglobals.logger.setLevel(level)


def _check_voxel_sides(image: Any, path: Path) -> None:
    """Looks at the header as it lies on disk: nibabel quietly turns sides of 0 into 1 and drops their sign."""
    with nib.openers.ImageOpener(image.file_map["header" if "header" in image.file_map else "image"].filename) as file:
        raw = type(image).header_class.from_fileobj(file, check=False)
    sides = raw["pixdim"][1:4]
    if not (np.isfinite(sides).all() and sides.min() > 0):
        raise InputError(f"{path}: voxel sides must be positive; the header gives {' x '.join(f'{side:g}' for side in sides)} mm")


def _shape(image: Any, path: Path) -> tuple[int, ...]:
    """X, Y, Z or X, Y, Z, C: trailing axes of one are dropped, as is the empty time axis of a vector image."""
    shape = tuple(image.shape)
    if min(shape, default=0) < 1:
        raise InputError(f"{path}: holds no voxels (shape {' x '.join(map(str, shape)) or 'none'})")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4):
        raise InputError(f"{path}: has {len(shape)} axes ({' x '.join(map(str, shape))}); 3, or 4 with the channels last, are expected")
    return shape


def _affine(image: Any, path: Path) -> FloatArray:
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: its affine is not finite")
    if spacing_of(affine).min() < 1e-6:
        sides = " x ".join(f"{side:g}" for side in spacing_of(affine))
        raise InputError(f"{path}: voxel sides must be positive; the affine gives {sides} mm")
    angle = shear_angle(affine)
    if angle > MAX_SHEAR:
        raise InputError(f"{path}: its axes are sheared by {angle:.1f} degrees; up to {MAX_SHEAR} is allowed, resample the image first")
    return affine


def _voxels(image: Any, path: Path, dtype: type[np.floating[Any]] | None) -> NDArray[Any]:
    """The voxels in the given type, or in the file's own where it is None (scaled, where the file says so)."""
    shape = _shape(image, path)
    if image.get_data_dtype().kind not in "iufb":
        raise InputError(f"{path}: holds {image.get_data_dtype()} voxels; integers or real numbers are expected")
    _check_length(image, path)
    try:
        array = np.asarray(image.dataobj, dtype=dtype)
    except _READ_ERRORS as error:
        raise InputError(f"{path}: its voxels cannot be read, the file is cut short or damaged: {_first_line(error)}") from error
    return array.reshape(shape, order="A")


def _check_length(image: Any, path: Path) -> None:
    """Refuses a header that claims more voxels than the file can hold, before memory is asked for."""
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    size = path.stat().st_size
    if claimed > size * (MAX_COMPRESSION if path.suffix == ".gz" else 1):
        shape = " x ".join(map(str, image.shape))
        raise InputError(f"{path}: its voxels cannot be read, the file is cut short or damaged: {size} bytes cannot hold {shape} voxels")


def _check_finite(array: NDArray[Any], path: Path) -> None:
    broken = sum(int((~np.isfinite(plane)).sum()) for plane in array.T)  # by planes as they lie in the file
    if broken:
        raise InputError(f"{path}: {broken} voxels are NaN or infinite")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def write_label(path: str | Path, label: NDArray[Any], like: Volume) -> None:
    """Writes a label map on the grid of `like`, whole or not at all.

    The header is the image's own, with the same affine as sform and qform, in mm, without scaling, in the smallest unsigned
    type that holds the ids.

    Args:
        path: ends in .nii.gz or .nii.
        label: X, Y, Z of integers, 0 and up.
        like: the image it belongs to; its grid must be that of the label.
    """
    if not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"{path}: a label map is written from integers; got {label.dtype}")
    if label.min() < 0:
        raise InputError(f"{path}: a label map holds ids from 0 up; got {label.min()}")
    _write(Path(path), label.astype(np.min_scalar_type(int(label.max())), copy=False), like)


def write_probabilities(path: str | Path, probabilities: NDArray[Any], like: Volume) -> None:
    """Writes K, X, Y, Z probabilities as a float32 4D file with the classes last, on the grid of `like`."""
    _write(Path(path), np.moveaxis(np.asarray(probabilities, np.float32), 0, -1), like)


def _write(path: Path, array: NDArray[Any], like: Volume) -> None:
    if not path.name.endswith(ENDINGS):
        raise InputError(f"{path}: NIfTI files end in {' or '.join(ENDINGS)}")
    if array.shape[:3] != like.array.shape[1:]:
        raise InputError(f"{path}: {array.shape[:3]} voxels do not fit the image's grid {like.array.shape[1:]}")
    header = None if like.header is None else like.header.copy()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) or max(array.shape) > np.iinfo(np.int16).max else nib.Nifti1Image
    image = kind(array, like.affine, header)
    image.set_data_dtype(array.dtype)
    # Both forms are set: some readers look only at the one, some only at the other.
    sform_code = 0 if like.header is None else int(like.header["sform_code"])
    qform_code = 0 if like.header is None else int(like.header["qform_code"])
    image.set_sform(like.affine, sform_code or qform_code or 1)
    image.set_qform(like.affine, qform_code or sform_code or 1)
    image.header.set_xyzt_units("mm", "unknown" if like.header is None else like.header.get_xyzt_units()[1])
    image.header["cal_min"] = image.header["cal_max"] = 0  # the image's display window means nothing for a label map
    with atomic_path(path) as temporary:
        nib.save(image, temporary)  # nibabel compresses at level 1
