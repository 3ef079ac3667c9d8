"""Sparse tensors: features at the few occupied cells of a grid, for a batch of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vsuite.core.errors import InputError

if TYPE_CHECKING:
    from vsuite.pointcloud.nn.neighbours import Table


class Sites:
    """The occupied cells of a grid, and the neighbour tables that were made for them.

    Tensors of the same cells share one object, so each table is made once however many layers read it.

    Attributes:
        coordinates: N, 1 + D of int64: sample, then the cell along each axis; ascending, without duplicates.
        spatial_shape: cells along each of the D axes.
        batch_size: samples; some may have no cell.
    """

    def __init__(self, coordinates: Tensor, spatial_shape: tuple[int, ...], batch_size: int) -> None:
        self.coordinates, self.spatial_shape, self.batch_size = coordinates, spatial_shape, batch_size
        self._tables: dict[Hashable, Table] = {}

    def __len__(self) -> int:
        return len(self.coordinates)

    def table(self, make: Callable[..., Table], *geometry: Hashable) -> Table:
        """`make(self, *geometry)`, made at the first call."""
        key = make, geometry
        if key not in self._tables:
            with torch.inference_mode(False):  # what prediction made first must serve training too
                self._tables[key] = make(self, *geometry)
        return self._tables[key]

    def samples(self) -> Tensor:
        """How many cells each sample has: B of int64."""
        return torch.bincount(self.coordinates[:, 0], minlength=self.batch_size)


def linear_keys(coordinates: Tensor, sizes: Sequence[int]) -> Tensor:
    """One number a row that orders rows as their coordinates do: N, 1 + D -> N; `sizes` are those of the D last columns."""
    key = coordinates[:, 0]
    for axis, size in enumerate(sizes, start=1):
        key = key * size + coordinates[:, axis]
    return key


class SparseTensor:
    """Features at the occupied cells of a grid; every other cell is zero.

    Rows may come in any order and are kept in ascending order of their coordinates, so that results never depend on it.

    Args:
        features: N, C.
        coordinates: N, 1 + D of an integer type: sample, then the cell along each axis (z, y, x in three dimensions).
        spatial_shape: cells along each of the D axes.
        batch_size: samples; some may have no row.

    Raises:
        InputError: for arrays that do not fit each other, cells outside the shape or the batch, and duplicates.
    """

    def __init__(self, features: Tensor, coordinates: Tensor, spatial_shape: Sequence[int], batch_size: int) -> None:
        shape = tuple(int(size) for size in spatial_shape)
        _check(features, coordinates, shape, batch_size)
        coordinates = coordinates.long()
        keys = linear_keys(coordinates, shape)
        if not bool((keys[1:] > keys[:-1]).all()):
            keys, order = torch.sort(keys, stable=True)
            features, coordinates = features[order], coordinates[order]
            _check_duplicates(keys, coordinates)
        self.features = features
        self.sites = Sites(coordinates, shape, int(batch_size))
        self.named: dict[str, Table] = {}

    @classmethod
    def of(cls, features: Tensor, sites: Sites, named: dict[str, Table]) -> SparseTensor:
        """Features (N, C) of cells that are known to be good; `named` are the tables that inverse convolutions may ask for."""
        tensor = cls.__new__(cls)
        tensor.features, tensor.sites, tensor.named = features, sites, named
        return tensor

    @property
    def coordinates(self) -> Tensor:
        """N, 1 + D of int64, ascending."""
        return self.sites.coordinates

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.sites.spatial_shape

    @property
    def batch_size(self) -> int:
        return self.sites.batch_size

    def replace_feature(self, features: Tensor) -> SparseTensor:
        """The same cells with other features: N, C."""
        if len(features) != len(self.sites):
            raise InputError(f"{len(features)} rows of features do not fit {len(self.sites)} cells")
        return SparseTensor.of(features, self.sites, self.named)

    def dense(self) -> Tensor:
        """The whole grid: B, C, then the spatial axes; zero where there is no cell."""
        cells = self.features.new_zeros(self.batch_size * math.prod(self.spatial_shape), self.features.shape[1])
        cells[linear_keys(self.coordinates, self.spatial_shape)] = self.features
        return cells.view(self.batch_size, *self.spatial_shape, -1).movedim(-1, 1).contiguous()

    def __repr__(self) -> str:
        rows, channels = self.features.shape
        return f"SparseTensor({rows} rows of {channels} channels, shape {self.spatial_shape}, batch of {self.batch_size})"


def _check(features: Tensor, coordinates: Tensor, shape: tuple[int, ...], batch_size: int) -> None:
    if not shape or min(shape) < 1 or batch_size < 1:
        raise InputError(f"the spatial shape and the batch size must be 1 or more; got {shape} and {batch_size}")
    if math.prod(shape) * batch_size >= 2**62:
        raise InputError(f"a batch of {batch_size} grids of {shape} has too many cells to number them")
    if coordinates.is_floating_point() or coordinates.is_complex() or coordinates.dtype == torch.bool:
        raise InputError(f"coordinates are integers; got {coordinates.dtype}")
    if coordinates.ndim != 2 or coordinates.shape[1] != 1 + len(shape):
        raise InputError(
            f"coordinates are rows of {1 + len(shape)} (sample, then {len(shape)} cells); got shape {tuple(coordinates.shape)}"
        )
    if features.ndim != 2 or len(features) != len(coordinates):
        raise InputError(f"features are N, C for N = {len(coordinates)} coordinates; got shape {tuple(features.shape)}")
    if features.device != coordinates.device:
        raise InputError(f"features are on {features.device} and coordinates on {coordinates.device}; both must be on one device")
    limits = coordinates.new_tensor((batch_size, *shape))
    outside = ((coordinates < 0) | (coordinates >= limits)).any(1)
    if bool(outside.any()):
        first = coordinates[outside][0].tolist()
        raise InputError(
            f"{int(outside.sum())} of {len(coordinates)} coordinates lie outside a batch of {batch_size} grids of {shape};"
            f" the first is sample {first[0]}, cell {tuple(first[1:])}"
        )


def _check_duplicates(keys: Tensor, coordinates: Tensor) -> None:
    same = keys[1:] == keys[:-1]
    if bool(same.any()):
        first = coordinates[1:][same][0].tolist()
        raise InputError(
            f"{int(same.sum())} of {len(keys)} coordinates are duplicates; the first is sample {first[0]}, cell {tuple(first[1:])}"
        )
