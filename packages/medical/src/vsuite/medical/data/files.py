"""Images and label maps of every kind of file, each as a `Volume` X, Y, Z: NIfTI, pictures, and arrays with a label in the same file.

A picture (PNG, JPEG, TIFF, DICOM) is a volume X, Y, 1. Label maps of pictures are PNG files whose values are the ids. Arrays
are those of TransUNet and its successors: `.npz` and `.h5` files with `image` and `label`, slices H, W or volumes D, H, W.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.images import files as image_files
from vsuite.medical.data import dicom, nifti
from vsuite.medical.data.geometry import FloatArray
from vsuite.medical.data.nifti import Volume

WITHOUT_GRID = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # labels of these are PNG files; DICOM has a place in space
PICTURES = (*WITHOUT_GRID, *dicom.ENDINGS)
ARRAYS = (".npz", ".npy.h5", ".h5")
ENDINGS = (*nifti.ENDINGS, *PICTURES, *ARRAYS)
SHOWN = np.diag([-1.0, -1.0, 1.0, 1.0])  # a picture without geometry: X to the patient's left, Y to the back, 1 mm


def is_image(path: str | Path) -> bool:
    """Whether the name is one of an image or label map; the `._*` companions that macOS leaves in archives are not."""
    path = Path(path)
    return ending_of(path) in ENDINGS and not path.name.startswith("._")


def ending_of(path: Path) -> str:
    """The ending in lower case, such as ".nii.gz"; the last suffix of a name that is no image's."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), path.suffix)


def stem_of(path: Path) -> str:
    """The name without its ending."""
    ending = ending_of(path)
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def label_ending(image: Path) -> str:
    """The ending of the label map that is written for an image."""
    return ".png" if ending_of(image) in WITHOUT_GRID else ".nii.gz"


def read_image(paths: str | Path | Sequence[str | Path], *, channels: int | None = None) -> Volume:
    """Reads one image, C, X, Y, Z in float32: one file, or one a channel; see `nifti.read_image`.

    Raises:
        InputError: for files that cannot be used, of another number of channels, and of sizes that differ.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not any(_is_other(path) for path in files):
        return nifti.read_image(files, channels=channels)
    volumes = [read_file(path) for path in files]
    for path, volume in zip(files, volumes, strict=True):
        if volume.array.shape[1:] != volumes[0].array.shape[1:]:
            raise InputError(f"{path}: {_by(volume.array.shape[1:])} pixels, but {files[0]} has {_by(volumes[0].array.shape[1:])}")
    first = volumes[0]
    volume = Volume(np.concatenate([v.array for v in volumes]), first.affine, first.header, files[0])
    nifti.check_channels(volume, files, channels)
    return volume


def read_label(path: str | Path, like: Volume | None = None) -> Volume:
    """Reads a label map, 1, X, Y, Z of unsigned ids; see `nifti.read_label`.

    Args:
        like: the image. A PNG label map has no place in space and takes that of the image.

    Raises:
        InputError: for files that cannot be used, and colours, fractions or negative numbers where ids are expected.
    """
    path = Path(path)
    ending = ending_of(path)
    if ending in ARRAYS:
        return _as_label(_read_arrays(path, "label"), path)
    if ending not in PICTURES:
        return nifti.read_label(path)
    affine = SHOWN.copy() if like is None else like.affine
    return Volume(_picture_ids(path)[None], affine, None, path)


def read_grid(path: str | Path) -> tuple[tuple[int, ...], FloatArray]:
    """Shape (X, Y, Z, with the channels last if there are several) and affine, from the header alone where there is one."""
    path = Path(path)
    if not _is_other(path):
        return nifti.read_grid(path)
    volume = read_file(path)
    shape = volume.array.shape
    return (shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])), volume.affine


def write_label(path: str | Path, label: NDArray[Any], like: Volume) -> None:
    """Writes a label map X, Y, Z of integers: a PNG of one slice by its ending, else NIfTI (see `nifti.write_label`)."""
    path = Path(path)
    if ending_of(path) != ".png":
        nifti.write_label(path, label, like)
        return
    if (
        label.ndim != 3
        or label.shape[2] != 1
        or not np.issubdtype(label.dtype, np.integer)
        or not 0 <= label.min() <= label.max() < 1 << 16
    ):
        raise InputError(f"{path}: a PNG takes one slice X, Y, 1 of ids from 0 to 65535; got {_by(label.shape)} of {label.dtype}")
    from PIL import Image

    rows = np.ascontiguousarray(label[:, :, 0].T)
    picture = _indexed(rows.astype(np.uint8)) if rows.max() < 256 else Image.fromarray(rows.astype(np.uint16))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _indexed(rows: NDArray[np.uint8]) -> Any:
    """A picture whose values are the ids, and whose palette makes them visible."""
    from PIL import Image

    from vsuite.medical.pictures import COLOURS

    colours = [bytes.fromhex(colour[1:]) for colour in COLOURS]
    picture = Image.fromarray(rows)
    picture.putpalette(b"\0\0\0" + b"".join(colours[i % len(colours)] for i in range(255)))
    return picture


def _is_other(path: Path) -> bool:
    """Whether a path is anything but a NIfTI file."""
    return ending_of(path) in (*PICTURES, *ARRAYS) or dicom.is_dicom(path) or path.is_dir()


def read_file(path: Path) -> Volume:
    """One file of any kind, C, X, Y, Z float32, or a folder that holds a DICOM series; values as they are stored."""
    if path.is_dir():
        return dicom.read_series(path)
    if ending_of(path) in ARRAYS:
        array = _read_arrays(path, "image").astype(np.float32)
        broken = int((~np.isfinite(array)).sum())
        if broken:
            raise InputError(f"{path}: {broken} voxels are NaN or infinite")
        return Volume(array, np.eye(4), None, path)
    if dicom.is_dicom(path):
        return dicom.read_dicom(path)
    if ending_of(path) not in WITHOUT_GRID:
        return nifti.read_image(path)
    pixels = image_files.read_image(path)
    _refuse_pages(path)
    return Volume(np.ascontiguousarray(pixels.transpose(2, 1, 0), np.float32)[..., None], SHOWN.copy(), None, path)


def _refuse_pages(path: Path) -> None:
    """TIFF files may hold a stack, of which the readers of pictures give the first page."""
    if ending_of(path) not in (".tif", ".tiff"):
        return
    from PIL import Image

    pages = 1  # where PIL cannot open the file
    with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(path) as picture:
        pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise InputError(f"{path}: holds {pages} pages, where one picture is expected; write volumes as NIfTI")


def _read_arrays(path: Path, name: str) -> NDArray[Any]:
    """1, H, W, D of the array `name`, which is H, W or D, H, W in the file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        found = _load_npz(path, name) if path.suffix == ".npz" else _load_h5(path, name)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: cannot be read, not a file of arrays or damaged: {str(error).splitlines()[0]}") from error
    if found is None:
        raise InputError(f"{path}: holds no array {name!r}; image and label are expected")
    if found.ndim not in (2, 3) or found.size == 0 or found.dtype.kind not in "iufb":
        raise InputError(f"{path}: {name} is {_by(found.shape)} of {found.dtype}; numbers H, W or D, H, W are expected")
    volume = found[None] if found.ndim == 2 else found
    return np.moveaxis(volume, 0, -1)[None]


def _load_npz(path: Path, name: str) -> NDArray[Any] | None:
    with np.load(path, allow_pickle=False) as content:
        return content[name] if name in content.files else None


def _load_h5(path: Path, name: str) -> NDArray[Any] | None:
    import h5py

    with h5py.File(path, "r") as content:
        found = content.get(name)
        return found[()] if isinstance(found, h5py.Dataset) else None


def _as_label(array: NDArray[Any], path: Path) -> Volume:
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(f"{path}: its label holds numbers that are not whole; a label map holds integer ids")
    if array.min() < 0 or array.max() >= 1 << 16:
        raise InputError(f"{path}: its label holds ids from {array.min():g} to {array.max():g}; 0 to 65535 are allowed")
    return Volume(array.astype(np.min_scalar_type(int(array.max()))), np.eye(4), None, path)


def _picture_ids(path: Path) -> NDArray[Any]:
    """X, Y, 1 ids of a label picture."""
    if ending_of(path) not in (".png", ".tif", ".tiff"):
        raise InputError(f"{path}: a label map is a PNG or TIFF picture of ids, or NIfTI; JPEG changes values, DICOM is not read as labels")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    from PIL import Image

    _refuse_pages(path)
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: is no readable picture: {str(error).splitlines()[0]}") from error
    if values.ndim != 2 or mode not in ("1", "P", "L", "I", "I;16", "I;16B"):
        raise InputError(f"{path}: is a picture in colours ({mode}); a label map holds ids, in grey values or as indices of a palette")
    if values.min() < 0:
        raise InputError(f"{path}: holds the negative id {values.min()}; labels are 0 (background) and up")
    return values.T.astype(np.min_scalar_type(int(values.max())))[:, :, None]


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
