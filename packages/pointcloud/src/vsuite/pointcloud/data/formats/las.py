"""LAS and LAZ, by laspy (the extra `las`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.columns import Table


def read(path: Path) -> Table:
    """Scaled coordinates (float64) and all dimensions of the file that are not zero throughout."""
    try:
        import laspy
    except ImportError as error:
        raise InputError(f'{path}: reading .las and .laz needs laspy: pip install "vsuite-pointcloud[las]"') from error
    try:
        with laspy.open(path) as reader:
            expected = reader.header.point_count
            content = reader.read()
    except Exception as error:  # laspy and lazrs raise many kinds, lazrs' own among them
        raise InputError(f"{path}: not a readable LAS file: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    if len(content.points) != expected:
        raise InputError(f"{path}: cut off: the header says {expected} points, but {len(content.points)} follow")
    table = {name: np.array(getattr(content, name), np.float64) for name in "xyz"}
    for name in content.point_format.dimension_names:
        values = np.array(content[name])
        if name not in ("X", "Y", "Z") and values.ndim == 1 and values.any():
            table[name] = values
    return table
