"""Sampling and neighbour search on clouds: farthest points, balls, nearest neighbours, interpolation.

The rules are exact, so that every form finds the same indices, on any device and any number of threads:

* squared distances are `dx*dx + dy*dy + dz*dz` in float32 (never the expanded formula);
* farthest point sampling starts at index 0 and breaks ties to the lowest index;
* a ball holds the points with squared distance below r * r (strictly), the first ones in index order;
* nearest neighbours are in order of (squared distance, index).

On a CPU the searches run as compiled loops (numba) over `torch.get_num_threads()` threads; on other devices, while
exporting, and where numba is absent, as plain torch. Indices have no gradients; gathers and interpolation do.

Axes: B samples, N points, M centres or queries, C channels, k neighbours.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from vsuite.core import InputError

# --- what users call


def farthest_points(points: Tensor, num_samples: int) -> Tensor:
    """Indices of a farthest point sampling that starts at index 0; ties go to the lowest index.

    The first m indices of a longer sampling are the sampling of m points, also when the sampled points are sampled again.
    Points near the origin are not skipped, as pointnet2_ops does.

    Args:
        points: B, N, 3.
        num_samples: 1 to N.

    Returns:
        B, num_samples, int64.

    Raises:
        InputError: for another shape, NaN or infinite coordinates, and more samples than points.
    """
    _check_points(points)
    if not 1 <= num_samples <= points.shape[1]:
        raise InputError(f"farthest points: {num_samples} of {points.shape[1]} points asked for; 1 to {points.shape[1]} are possible")
    return _run(_farthest, points.detach().float(), num_samples)


def ball_query(points: Tensor, centres: Tensor, radius: float, num_samples: int) -> Tensor:
    """`ball_queries` for one radius: B, M, num_samples, int64."""
    return ball_queries(points, centres, (radius,), (num_samples,))[0]


def ball_queries(points: Tensor, centres: Tensor, radii: Sequence[float], num_samples: Sequence[int]) -> list[Tensor]:
    """The first points in index order within each radius of each centre; the distances are computed once for all radii.

    Unused places repeat the first point found; a ball without any point holds index 0 everywhere.

    Args:
        points: B, N, 3.
        centres: B, M, 3.
        radii: above 0, in the unit of the points.
        num_samples: places for each radius.

    Returns:
        One tensor a radius: B, M, places, int64.
    """
    _check_points(points)
    _check_points(centres, len(points))
    if not radii or len(radii) != len(num_samples):
        raise InputError(f"ball query: {len(radii)} radii but {len(num_samples)} numbers of samples; one each is needed")
    if min(radii) <= 0 or min(num_samples) < 1:
        raise InputError(f"ball query: radii must be above 0 and samples 1 or more; got {list(radii)} and {list(num_samples)}")
    found = _run(_balls, points.detach().float(), centres.detach().float(), list(radii), list(num_samples))
    return list(found.split(list(num_samples), dim=2))


def nearest_points(points: Tensor, queries: Tensor, k: int) -> Tensor:
    """The k nearest points of each query, in order of (squared distance, index).

    Args:
        points: B, N, 3.
        queries: B, M, 3.
        k: 1 to N.

    Returns:
        B, M, k, int64.

    Raises:
        InputError: also where there are fewer than k points.
    """
    _check_points(points)
    _check_points(queries, len(points))
    if not 1 <= k <= points.shape[1]:
        raise InputError(f"nearest points: k is {k} and there are {points.shape[1]} points; k must be 1 to their number")
    return _run(_nearest, points.detach().float(), queries.detach().float(), k)


def nearest_features(features: Tensor, queries: Tensor, k: int) -> Tensor:
    """The k vectors nearest to each query in any number of dimensions; all of them where there are fewer.

    Uses the expanded formula, in float32 also under autocast: which of two neighbours at equal distance to rounding is
    kept is not defined. The order is not defined either.

    Args:
        features: B, N, C.
        queries: B, M, C.
        k: 1 or more.

    Returns:
        B, M, min(k, N), int64.
    """
    with torch.autocast(features.device.type, enabled=False):
        keys, asked = features.detach().float(), queries.detach().float()
        scores = torch.baddbmm(keys.square().sum(-1)[:, None], asked, keys.transpose(1, 2), alpha=-2)  # the query's own norm ranks nothing
    return _run(_smallest, scores, min(k, features.shape[1]))


def interpolate_three(points: Tensor, queries: Tensor, features: Tensor) -> Tensor:
    """Features carried from points to queries: the three nearest, weighted by 1 / (squared distance + 1e-8).

    Args:
        points: B, N, 3.
        queries: B, M, 3.
        features: B, N, C, of the points. Fewer than three points: all of them.

    Returns:
        B, M, C.
    """
    index = nearest_points(points, queries, min(3, points.shape[1]))
    distance = (gather_points(points.float(), index) - queries.float().unsqueeze(2)).square().sum(-1, keepdim=True)  # B, M, 3, 1
    weight = 1 / (1e8 * distance + 1)  # up to scale, which divides out; ONNX's optimiser drops the addition of 1e-8
    weight = (weight / weight.sum(2, keepdim=True)).to(features.dtype)
    return (gather_points(features, index) * weight).sum(2)


def gather_points(features: Tensor, index: Tensor) -> Tensor:
    """features: B, N, C; index: B, M or B, M, k -> B, M, C or B, M, k, C."""
    batch, num_points, channels = features.shape
    rows = index + torch.arange(batch, device=index.device).view(-1, *[1] * (index.ndim - 1)) * num_points
    return features.reshape(-1, channels).index_select(0, rows.reshape(-1)).view(*index.shape, channels)


# --- which form runs


@functools.cache
def has_compiled_loops() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def _run(search: Callable[..., Tensor], points: Tensor, *arguments: Any) -> Tensor:
    """The search as one opaque operator while compiling (a loop of 500 steps would be unrolled), else directly."""
    if torch.compiler.is_exporting():
        return _PLAIN[search](points, *arguments)
    if torch.compiler.is_compiling():
        return _OPERATORS[search](points, *arguments)
    return search(points, *arguments)


def _compiled_here(points: Tensor) -> bool:
    return points.device.type == "cpu" and has_compiled_loops()


def _check_points(points: Tensor, batch: int | None = None) -> None:
    if points.ndim != 3 or points.shape[2] != 3 or points.shape[1] == 0 or not points.is_floating_point():
        raise InputError(f"points must be B, N, 3 floating-point with N of 1 or more; got {tuple(points.shape)} of {points.dtype}")
    if batch not in (None, points.shape[0]):
        raise InputError(f"points and queries must be of as many samples; got {batch} and {points.shape[0]}")
    if points.is_meta or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    if not bool(points.isfinite().all()):
        raise InputError("points must be finite; there are NaN or infinite coordinates")


# --- the searches: compiled on a CPU, else plain


def _farthest(points: Tensor, num_samples: int) -> Tensor:
    if not _compiled_here(points):
        return plain_farthest(points, num_samples)
    coordinates = points.transpose(1, 2).contiguous()
    chosen = torch.empty(len(points), num_samples, dtype=torch.int64)
    nearest = torch.empty(points.shape[:2], dtype=torch.float32)
    _spread("farthest", len(points), points.shape[1] * num_samples, coordinates, nearest, chosen)
    return chosen


def _balls(points: Tensor, centres: Tensor, radii: list[float], num_samples: list[int]) -> Tensor:
    if not _compiled_here(points):
        return plain_balls(points, centres, radii, num_samples)
    limits, sizes = torch.tensor(radii, dtype=torch.float32).square(), torch.tensor(num_samples)
    found = torch.empty(*centres.shape[:2], sum(num_samples), dtype=torch.int64)
    items = centres.shape[0] * centres.shape[1]
    coordinates = points.transpose(1, 2).contiguous()
    _spread("balls", items, points.shape[1], coordinates, centres.contiguous(), limits, sizes, sizes.cumsum(0) - sizes, found)
    return found


def _nearest(points: Tensor, queries: Tensor, k: int) -> Tensor:
    if not _compiled_here(points):
        return plain_nearest(points, queries, k)
    found = torch.empty(*queries.shape[:2], k, dtype=torch.int64)
    items = queries.shape[0] * queries.shape[1]
    _spread("nearest", items, points.shape[1], points.transpose(1, 2).contiguous(), queries.contiguous(), found)
    return found


def _smallest(values: Tensor, k: int) -> Tensor:
    if not _compiled_here(values):
        return plain_smallest(values, k)
    rows = values.reshape(-1, values.shape[-1]).contiguous()
    found = torch.empty(len(rows), k, dtype=torch.int64)
    _spread("smallest", len(rows), values.shape[-1], rows, found)
    return found.view(*values.shape[:-1], k)


MIN_WORK = 200_000  # distances a thread: below some 0.1 ms, handing work to another thread costs more than it saves


def _spread(kernel: str, items: int, work: int, *arrays: Tensor) -> None:
    """Runs a kernel on all items, a run of neighbouring items a thread. `work`: distances an item."""
    from vsuite.pointcloud import point_kernels

    run = getattr(point_kernels, kernel)
    values = [array.numpy() for array in arrays]
    threads = max(1, min(torch.get_num_threads(), items, items * work // MIN_WORK))
    if threads == 1:
        run(0, items, *values)
        return
    ends = [items * i // threads for i in range(threads + 1)]
    list(_pool(os.getpid(), threads).map(lambda first, last: run(first, last, *values), ends[:-1], ends[1:]))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of one process: those of a parent do not live on in a forked worker, and OpenMP's must not be forked at all."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"points-{process}")


# --- the plain forms


def plain_farthest(points: Tensor, num_samples: int) -> Tensor:
    """`farthest_points` as a loop of torch operators, vectorised over the batch; points: float32."""
    if torch.compiler.is_exporting():
        return _scanned_farthest(points, num_samples)
    batch, num_points, _ = points.shape
    nearest = points.new_full((batch, num_points), 1e10)
    index = torch.zeros(batch, 1, dtype=torch.int64, device=points.device)
    chosen = [index]
    for _ in range(num_samples - 1):
        nearest, index = _farther(points, nearest, index)
        chosen.append(index)
    return torch.cat(chosen, dim=1)


def _farther(points: Tensor, nearest: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """One step: distances to the chosen points B, N, given those before and the last one chosen, B, 1; and the next one."""
    last = points.gather(1, index.unsqueeze(2).expand(-1, -1, 3))  # B, 1, 3
    nearest = torch.minimum(nearest, _squared(points, last))
    return nearest, _first_maximum(nearest)


def _first_maximum(values: Tensor) -> Tensor:
    """Lowest index of the maximum along the last axis, kept; torch's argmax promises no order of ties."""
    order = torch.arange(values.shape[-1], device=values.device)
    return torch.where(values == values.amax(-1, keepdim=True), order, values.shape[-1]).amin(-1, keepdim=True)


def _scanned_farthest(points: Tensor, num_samples: int) -> Tensor:
    """The same loop as one operator with a body, for graphs that leave torch."""
    from torch._higher_order_ops.scan import scan

    def step(state: tuple[Tensor, Tensor], _: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        nearest, index = state
        nearest, following = _farther(points, nearest, index)
        return (nearest, following), index.clone()

    state = (torch.full_like(points[..., 0], 1e10), torch.zeros_like(points[:, :1, 0], dtype=torch.int64))
    _, chosen = scan(step, state, torch.zeros(num_samples, 1))
    return chosen.squeeze(2).transpose(0, 1)


def plain_balls(points: Tensor, centres: Tensor, radii: Sequence[float], num_samples: Sequence[int]) -> Tensor:
    """`ball_queries` by torch operators, the places of all radii side by side; points and centres: float32."""
    distance = _squared(points.unsqueeze(1), centres.unsqueeze(2))  # B, M, N
    num_points = points.shape[1]
    order = torch.arange(num_points, device=points.device)
    found = []
    for radius, places in zip(radii, num_samples, strict=True):
        limit = torch.tensor(radius, dtype=torch.float32).square().item()
        inside = torch.where(distance < limit, order, num_points)
        first = inside.topk(min(places, num_points), dim=2, largest=False, sorted=True).values
        first = torch.nn.functional.pad(first, (0, places - first.shape[2]), value=num_points)
        filler = torch.where(first[..., :1] == num_points, 0, first[..., :1])
        found.append(torch.where(first == num_points, filler, first))
    return torch.cat(found, dim=2)


def plain_nearest(points: Tensor, queries: Tensor, k: int) -> Tensor:
    """`nearest_points` by torch operators; points and queries: float32."""
    distance = _squared(points.unsqueeze(1), queries.unsqueeze(2))  # B, M, N
    if torch.compiler.is_exporting():  # ONNX has no stable sort, but its TopK takes the first of equals
        return distance.topk(k, dim=2, largest=False, sorted=True).indices
    return distance.sort(dim=2, stable=True).indices[..., :k]


def plain_smallest(values: Tensor, k: int) -> Tensor:
    """Indices of the k smallest values along the last axis, in no defined order."""
    return values.topk(k, dim=-1, largest=False, sorted=False).indices


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of broadcast points ..., 3, summed in the order x, y, z."""
    x, y, z = (a - b).square().unbind(-1)
    return x + y + z


_PLAIN: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    _farthest: plain_farthest,
    _balls: plain_balls,
    _nearest: plain_nearest,
    _smallest: plain_smallest,
}

# --- the searches as operators of torch, which a compiler takes as they are


def _indices(points: Tensor, *shape: int) -> Tensor:
    return points.new_empty(shape, dtype=torch.int64)


def _operator(name: str, search: Callable[..., Tensor], schema: str, shape: Callable[..., Tensor]) -> Callable[..., Tensor]:
    operator = torch.library.custom_op(f"vsuite_pointcloud::{name}", search, mutates_args=(), schema=schema)
    operator.register_fake(shape)
    return operator


_OPERATORS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    _farthest: _operator(
        "farthest", _farthest, "(Tensor points, SymInt num_samples) -> Tensor", lambda points, m: _indices(points, points.shape[0], m)
    ),
    _balls: _operator(
        "balls",
        _balls,
        "(Tensor points, Tensor centres, float[] radii, SymInt[] num_samples) -> Tensor",
        lambda points, centres, radii, sizes: _indices(points, *centres.shape[:2], sum(sizes)),
    ),
    _nearest: _operator(
        "nearest",
        _nearest,
        "(Tensor points, Tensor queries, SymInt k) -> Tensor",
        lambda points, queries, k: _indices(points, *queries.shape[:2], k),
    ),
    _smallest: _operator(
        "smallest", _smallest, "(Tensor values, SymInt k) -> Tensor", lambda values, k: _indices(values, *values.shape[:-1], k)
    ),
}
