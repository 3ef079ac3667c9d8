"""What a file holds: facts about one cloud, for `info FILE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsuite.pointcloud.data.clouds import SWEEP_LIMIT, PointCloud, read_cloud

_SAMPLE = 2000
_BINS = 50


@dataclass(frozen=True)
class ColumnFacts:
    """One column: its type, least and greatest finite value, number of different values (at most 1000 are counted) and of NaN."""

    name: str
    dtype: str
    low: float
    high: float
    distinct: int
    invalid: int


@dataclass(frozen=True)
class CloudFacts:
    """What is known of a cloud.

    Attributes:
        count: points. invalid: those with NaN or infinite coordinates. duplicates: points at the place of another.
        low, high: bounds (3,), in the file's unit; zeros where no point is valid.
        columns: beside x, y, z.
        spacing: median distance to the nearest other point, 0 for fewer than two points.
        unit: "metres", "millimetres", "normalised (unit sphere or cube)" or "unknown"; a guess from the bounds.
        up: "x", "y", "z", or "unknown": the axis whose lowest layers hold the most points, as a floor or street does.
        kind: "lidar sweep" where points thin out with distance from the origin, else "scene or object".
    """

    path: Path | None
    count: int
    invalid: int
    duplicates: int
    low: np.ndarray
    high: np.ndarray
    columns: list[ColumnFacts]
    spacing: float
    unit: str
    up: str
    kind: str

    def lines(self) -> list[str]:
        """The facts as text, one a line."""
        extent = self.high - self.low
        text = [
            f"points:   {self.count:,}" + (f", {self.invalid:,} with NaN or infinite coordinates" if self.invalid else ""),
            f"bounds:   {_triple(self.low)} to {_triple(self.high)} (extent {_triple(extent)})",
            f"unit:     probably {self.unit}" if self.unit != "unknown" else "unit:     unknown",
            f"up axis:  probably {self.up}" if self.up != "unknown" else "up axis:  unknown",
            f"kind:     probably a {self.kind}",
            f"spacing:  {self.spacing:.4g} to the nearest other point (median), {self.duplicates:,} duplicates",
        ]
        for column in self.columns:
            invalid = f", {column.invalid:,} NaN or infinite" if column.invalid else ""
            distinct = f", {column.distinct} values" if column.distinct < 1000 else ""
            text.append(f"column:   {column.name} ({column.dtype}) {column.low:.4g} to {column.high:.4g}{distinct}{invalid}")
        return text


def inspect_file(path: str | Path, *, layout: str | None = None) -> CloudFacts:
    """Reads a file, with points that are not finite, and says what it holds; raises `InputError` as `read_cloud` does."""
    return inspect_cloud(read_cloud(path, layout=layout, invalid="keep"))


def inspect_cloud(cloud: PointCloud) -> CloudFacts:
    """The facts about a cloud."""
    valid = np.isfinite(cloud.points).all(1)
    points = cloud.points[valid].astype(np.float64)
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(3), np.zeros(3))
    distinct = len(np.unique(points.view([("", points.dtype)] * 3))) if len(points) else 0
    return CloudFacts(
        path=cloud.path,
        count=len(cloud),
        invalid=int((~valid).sum()),
        duplicates=len(points) - distinct,
        low=low + cloud.offset,
        high=high + cloud.offset,
        columns=[_column(name, values) for name, values in cloud.columns.items()],
        spacing=_spacing(points),
        unit=_unit(low, high),
        up=_up_axis(points),
        kind=_kind(points),
    )


def _column(name: str, values: np.ndarray) -> ColumnFacts:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (float("nan"), float("nan"))
    return ColumnFacts(name, str(values.dtype), low, high, min(1000, len(np.unique(finite))), len(values) - len(finite))


def _spacing(points: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return 0.0
    chosen = points[np.linspace(0, len(points) - 1, min(_SAMPLE, len(points))).astype(int)]
    distances, _ = cKDTree(points).query(chosen, k=2)
    return float(np.median(distances[:, 1]))


def _unit(low: np.ndarray, high: np.ndarray) -> str:
    extent = float((high - low).max())
    if extent <= 0:
        return "unknown"
    if max(np.abs(low).max(), np.abs(high).max()) <= 1.01 and extent >= 0.5:
        return "normalised (unit sphere or cube)"
    if extent > 2 * SWEEP_LIMIT:
        return "millimetres"
    return "metres" if extent > 0.5 else "unknown"


def _up_axis(points: np.ndarray) -> str:
    """The axis along which one thin layer in the lower half holds at least a fifth of the points, and twice what the others' do."""
    if len(points) < 100:
        return "unknown"
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    thickness = (high - low).max() / _BINS
    if thickness <= 0:
        return "unknown"
    fullest = np.zeros(3)
    for axis in range(3):
        layers = np.bincount(np.clip((points[:, axis] - low[axis]) / thickness, 0, _BINS - 1).astype(int))
        layer = int(layers.argmax())
        if layer <= max(1, len(layers) // 2):
            fullest[axis] = layers[layer] / len(points)
    best, second = np.argsort(-fullest)[:2]
    return "xyz"[best] if fullest[best] >= 0.2 and fullest[best] >= 1.5 * fullest[second] else "unknown"


def _kind(points: np.ndarray) -> str:
    """A sweep thins out with distance from the origin: half of its points lie within a quarter of its reach."""
    if len(points) < 1000:
        return "scene or object"
    distances = np.linalg.norm(points[:, :2], axis=1)
    reach = np.percentile(distances, 99.9)
    return "lidar sweep" if 10 < reach < SWEEP_LIMIT and np.median(distances) < 0.3 * reach else "scene or object"


def _triple(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values)
