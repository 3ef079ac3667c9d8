"""DICOM files in: rescaled values, windows, inverted film, and where the pixels lie in the patient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.medical.data.geometry import FloatArray
from vsuite.medical.data.nifti import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = (".dcm", ".dicom", ".ima")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}  # in LPS
Window = tuple[float, float]  # centre and width, in the rescaled unit (Hounsfield units, say)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its ending or, as those of archives are often named 1.2.840.10008 or IM0001, by its preamble."""
    if path.name.lower().endswith(ENDINGS):
        return True
    named_so = not path.suffix or path.suffix[1:].isdecimal()
    if not named_so or path.name == "DICOMDIR" or not path.is_file():  # DICOMDIR is the archive's table of contents
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_series(folder: Path) -> bool:
    """Whether a folder holds the slices of one volume: its first two DICOM files belong to one series and have places in space.

    Films (X-rays) have none, and pictures collected from many patients are of many series.
    """
    files = files_of(folder)[:2] if folder.is_dir() else []
    facts = [_open(path, pixels=False) for path in files]
    series = [str(dataset.get("SeriesInstanceUID", "")) for dataset in facts if len(_numbers(dataset.get("ImagePositionPatient"))) == 3]
    return len(series) == 2 and series[0] == series[1] != ""


def files_of(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted."""
    return sorted(path for path in folder.iterdir() if is_dicom(path) and not path.name.startswith("."))


def read_dicom(path: str | Path, *, window: Window | None = None) -> Volume:
    """One DICOM file: C, X, Y, Z (Z frames, 1 as a rule) float32 in the rescaled unit.

    X runs along a row, Y down a column. The affine comes from the patient's orientation and position where the file says
    them, else X is taken to run to the left and Y to the feet, as pictures are shown. MONOCHROME1 (film: high is dark) is inverted.

    Args:
        window: centre and width; values are then clipped to it and lie from 0 to 1.

    Raises:
        InputError: for a file that is not DICOM, has no pixels, is compressed without a decoder at hand, or is damaged, and
            for enhanced multi-frame files, whose values and places are noted frame by frame.
    """
    path = Path(path)
    dataset = _open(path)
    return Volume(_finished(_values(dataset, path), dataset, window), _affine(dataset), None, path)


def stored_window(path: str | Path) -> Window | None:
    """The window that a file recommends for showing it; None where it has none."""
    dataset = _open(Path(path), pixels=False)
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    return None if centre is None or width is None or width <= 0 else (centre, width)


def read_series(folder: str | Path, *, window: Window | None = None) -> Volume:
    """The slices of one DICOM series in a folder as a volume C, X, Y, Z, in the order in which they lie in the patient.

    Args:
        folder: holds the files of one series. window: as for `read_dicom`.

    Raises:
        InputError: for a folder without DICOM files or with several series, slices of different size, direction, pixel
            spacing or kind, slices that share a position or lie at unequal distances, and for what `read_dicom` refuses.
    """
    folder = Path(folder)
    files = files_of(folder) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder}: holds no DICOM files ({', '.join(ENDINGS)})")
    datasets = [_open(path) for path in files]
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise InputError(f"{folder}: holds {len(series)} series; a folder of one is expected")
    sizes = [f"{dataset.get('Columns')} x {dataset.get('Rows')}" for dataset in datasets]
    _same(files, sizes, "pixels")
    if len(files) == 1:
        return read_dicom(files[0], window=window)
    kinds = [f"{dataset.get('NumberOfFrames') or 1} frames of {dataset.get('SamplesPerPixel', 1)}" for dataset in datasets]
    _same(files, kinds, "values a pixel")
    if not kinds[0].startswith("1 "):
        raise InputError(f"{files[0]}: holds several frames, and is one of {len(files)} files; each is a volume of its own")
    affines = [_affine(dataset) for dataset in datasets]
    turned = [not np.allclose(affine[:3, :2], affines[0][:3, :2], atol=1e-3) for affine in affines]
    _same(files, [str(affines[i if other else 0][:3, :2].tolist()) for i, other in enumerate(turned)], "as direction and spacing")
    normal = np.cross(affines[0][:3, 0], affines[0][:3, 1])
    normal /= np.linalg.norm(normal)
    heights = np.array([float(affine[:3, 3] @ normal) for affine in affines])
    order = np.argsort(heights)
    steps = np.diff(heights[order])
    if steps.min() < 1e-3:
        raise InputError(f"{files[order[int(steps.argmin()) + 1]]}: lies where {files[order[int(steps.argmin())]].name} lies")
    if steps.max() - steps.min() > 0.01 * steps.mean() + 1e-2:
        raise InputError(f"{folder}: its slices lie {steps.min():g} to {steps.max():g} mm apart; equal distances are expected")
    values = np.concatenate([_values(datasets[i], files[i]) for i in order], axis=3)
    affine = affines[order[0]].copy()
    affine[:3, 2] = (affines[order[-1]][:3, 3] - affine[:3, 3]) / (len(files) - 1)
    return Volume(_finished(values, datasets[0], window), affine, None, files[order[0]])


def _same(files: Sequence[Path], facts: Sequence[str], what: str) -> None:
    other = next((i for i, fact in enumerate(facts) if fact != facts[0]), None)
    if other is not None:
        raise InputError(f"{files[other]}: has {facts[other]} {what}, and {files[0].name} of the same series {facts[0]}")


def _open(path: Path, *, pixels: bool = True) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that bend the standard, which the reader repairs
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InvalidDicomError as error:
        raise InputError(f"{path}: is no readable DICOM file: it lacks the preamble that those of DICOM's part 10 begin with") from error
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise InputError(f"{path}: is no readable DICOM file: {_line(error)}") from error


def _values(dataset: Dataset, path: Path) -> NDArray[np.float32]:
    """C, X, Y, Z in the rescaled unit."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = dataset.get("Modality", "")
        raise InputError(f"{path}: is a DICOM file without pixels{f' ({kind})' if kind else ''}; an image is expected")
    if "SharedFunctionalGroupsSequence" in dataset or "PerFrameFunctionalGroupsSequence" in dataset:
        raise InputError(f"{path}: is an enhanced multi-frame DICOM file, which is not read; convert it to NIfTI (by dcm2niix, say)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array
            palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
            stored = (apply_color_lut if palette else apply_modality_lut)(stored, dataset)
    except Exception as error:
        raise InputError(f"{path}: {_why_not_decoded(dataset, error)}") from error
    colour = stored.ndim == (4 if int(dataset.get("NumberOfFrames") or 1) > 1 else 3) and stored.shape[-1] == 3
    array = np.asarray(stored, np.float32)
    array = array if colour else array[..., None]
    array = array[None] if array.ndim == 3 else array  # Z, Y, X, C
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN or infinite values")
    return np.ascontiguousarray(array.transpose(3, 2, 1, 0))


def _finished(values: NDArray[np.float32], dataset: Dataset, window: Window | None) -> NDArray[np.float32]:
    """Grey values through the window, those of film (MONOCHROME1) inverted."""
    if window is not None and values.shape[0] == 1:
        exact = window[1] <= 1 or dataset.get("VOILUTFunction") == "LINEAR_EXACT"
        values = windowed(values, window if exact else (window[0] - 0.5, window[1] - 1))  # DICOM's LINEAR, C.11.2.1.2
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = (1 - values) if window is not None else values.max() + values.min() - values
    return values


def windowed(array: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Values from 0, at half a width below the centre, to 1, at half a width above it."""
    check_window(window)
    centre, width = window
    return ((array - centre) / width + 0.5).clip(0, 1).astype(np.float32)


def check_window(window: Window) -> None:
    """Raises `InputError` for a width that is not above 0."""
    if window[1] <= 0:
        raise InputError(f"a window's width must be above 0; got {window[1]:g}")


def _why_not_decoded(dataset: Dataset, error: Exception) -> str:
    syntax: Any = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is not None and getattr(syntax, "is_compressed", False):
        return (
            f"its pixels are compressed ({syntax.name}) and no decoder for that is installed, or they are damaged; pylibjpeg has decoders"
        )
    return f"its pixels cannot be read: {_line(error)}"


def _affine(dataset: Dataset) -> FloatArray:
    """Voxel indices X (column), Y (row), Z (frame) -> RAS+ mm."""
    spacing = next(
        (_numbers(dataset.get(n)) for n in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing") if dataset.get(n)), []
    )
    down, right = spacing if len(spacing) == 2 and min(spacing) > 0 else (1.0, 1.0)
    cosines = _numbers(dataset.get("ImageOrientationPatient"))
    if len(cosines) != 6:
        cosines = _from_letters(dataset.get("PatientOrientation"))
    row, column = np.array(cosines[:3], float), np.array(cosines[3:], float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * right, column * down
    affine[:3, 2] = np.cross(row, column) * (_first(dataset.get("SpacingBetweenSlices")) or _first(dataset.get("SliceThickness")) or 1.0)
    position = _numbers(dataset.get("ImagePositionPatient"))
    if len(position) == 3:
        affine[:3, 3] = position
    return LPS_TO_RAS @ affine


def _from_letters(value: Any) -> list[float]:
    """Directions of rows and columns such as L and F (projection images), else those of a picture: left, and feet."""
    letters = [str(part)[:1].upper() for part in value] if value is not None and not isinstance(value, str) else []
    known = [DIRECTIONS[letter] for letter in letters if letter in DIRECTIONS]
    row, column = known if len(known) == 2 else (DIRECTIONS["L"], DIRECTIONS["F"])
    return [*map(float, row), *map(float, column)]


def _numbers(value: Any) -> list[float]:
    if value is None:
        return []
    try:
        return [float(part) for part in value]
    except (TypeError, ValueError):
        return []


def _first(value: Any) -> float | None:
    """A number, or the first of several; None where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        numbers = _numbers(value)
        return numbers[0] if numbers else None


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
