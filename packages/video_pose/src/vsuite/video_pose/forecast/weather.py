"""Fields of WeatherBench: one NetCDF file a year, hourly, such as `2m_temperature_2010_5.625deg.nc`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

HDF5, CLASSIC = b"\x89HDF", b"CDF"


def read_weather(path: Path, variable: str, first: int, last: int) -> NDArray[np.float32] | None:
    """The field of the years `first` to `last`, in order: (hours, latitudes, longitudes), float32; None where no file is of these years.

    Args:
        path: a folder of files with a year in their names, or one such file.
        variable: as the files call it, such as "t2m".

    Raises:
        InputError: for files that cannot be read, that lack the variable, or are of several grids, and for years that are missing
            between others.
    """
    files: dict[int, Path] = {}
    for file in _files(path):
        if first <= (year := year_of(file)) <= last:
            if year in files:
                raise InputError(f"{path}: {files[year].name} and {file.name} are of one year; give the folder of one variable and grid")
            files[year] = file
    if not files:
        return None
    missing = sorted(set(range(min(files), max(files) + 1)) - set(files))
    if missing:
        raise InputError(f"{path}: lacks the year {missing[0]}, and has {min(files)} and {max(files)}")
    fields = [read_field(files[year], variable) for year in sorted(files)]
    for year, field in zip(sorted(files), fields, strict=True):
        if field.shape[1:] != fields[0].shape[1:]:
            raise InputError(f"{files[year]}: its grid is {field.shape[1:]}, and that of the first year {fields[0].shape[1:]}")
    return np.concatenate(fields)


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*.nc"))
    if not found:
        raise InputError(f"{path}: holds no NetCDF files (.nc)")
    return found


def year_of(path: Path) -> int:
    """The year in a file's name; raises `InputError` where there is none."""
    found = re.search(r"(?<!\d)(1[89]\d\d|20\d\d)(?!\d)", path.stem)
    if found is None:
        raise InputError(f"{path}: its name must hold the year, as 2m_temperature_2010_5.625deg.nc does")
    return int(found[1])


def read_field(path: Path, variable: str) -> NDArray[np.float32]:
    """A variable of a NetCDF file, classic or of version 4: (times, latitudes, longitudes), float32, with scale and offset applied.

    Raises:
        InputError: for other files, another number of dimensions, and where version 4 needs a package that is not there.
    """
    with path.open("rb") as file:
        kind = file.read(4)
    if kind[:3] == CLASSIC:
        values, attributes = _classic(path, variable)
    elif kind == HDF5:
        values, attributes = _version_4(path, variable)
    else:
        raise InputError(f"{path}: is no NetCDF file")
    if values.ndim != 3 or not values.size:
        raise InputError(f"{path}: {variable} must have times, latitudes and longitudes; got {values.shape}")
    missing = [np.asarray(attributes[name]).item() for name in ("_FillValue", "missing_value") if name in attributes]
    absent = np.isin(values, missing)
    scale, offset = (float(np.asarray(attributes.get(name, default)).item()) for name, default in (("scale_factor", 1), ("add_offset", 0)))
    field = values.astype(np.float32) if (scale, offset) == (1, 0) else (values * scale + offset).astype(np.float32)
    field[absent] = np.nan
    return field


def _classic(path: Path, variable: str) -> tuple[NDArray, dict[str, Any]]:
    from scipy.io import netcdf_file

    try:
        with netcdf_file(path, mmap=False) as file:
            if variable not in file.variables:
                raise InputError(f"{path}: has no variable {variable!r}; it has {', '.join(file.variables)}")
            found = file.variables[variable]
            native = np.array(found.data, found.data.dtype.newbyteorder("="))
            return native, dict(found._attributes)
    except (OSError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as NetCDF: {error}") from error


def _version_4(path: Path, variable: str) -> tuple[NDArray, dict[str, Any]]:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: is NetCDF 4, which needs h5py: pip install h5py") from None
    try:
        with h5py.File(path) as file:
            if variable not in file or not isinstance(file[variable], h5py.Dataset):
                raise InputError(f"{path}: has no variable {variable!r}; it has {', '.join(file)}")
            return file[variable][()], dict(file[variable].attrs)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as NetCDF: {error}") from error
