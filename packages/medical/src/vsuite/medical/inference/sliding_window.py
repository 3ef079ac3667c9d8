"""Overlapping windows over a volume, blended into one map of logits.

Window positions, padding and blending are MONAI's, so that a bundle run by MONAI gives the same result. The sums live in a
slab one window thick: planes that no further window touches leave it at once, so that memory does not grow with the length
of the volume.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.errors import InputError

Blend = Literal["gaussian", "constant"]
Network = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: equal steps, the last one moved back to end with the axis."""
    step = max(1, int(window * (1 - overlap)))
    count = 1 + max(0, -(-(size - window) // step))
    return [min(i * step, size - window) for i in range(count)]


def window_weights(window: Sequence[int], blend: Blend, sigma_scale: float | Sequence[float], device: torch.device) -> Tensor:
    """The weight of each voxel of a window: 1, or a Gaussian of sigma `sigma_scale` x side with a floor of 0.001.

    The scale may be one number an axis; along an axis of an infinite one all weigh the same.
    """
    scales = (sigma_scale,) * len(window) if isinstance(sigma_scale, int | float) else tuple(sigma_scale)
    return _window_weights(tuple(window), blend, scales, device)


@functools.lru_cache(maxsize=8)
def _window_weights(window: tuple[int, ...], blend: Blend, scales: tuple[float, ...], device: torch.device) -> Tensor:
    weights = torch.ones(window, device=device)
    if blend == "gaussian":
        for axis, (side, scale) in enumerate(zip(window, scales, strict=True)):
            distance = torch.arange(side, device=device) - (side - 1) / 2
            gauss = torch.exp(-0.5 * (distance / (scale * side)) ** 2)
            weights *= gauss.reshape([-1 if a == axis else 1 for a in range(len(window))])
        weights.clamp_(min=max(1e-3, float(weights.min())))
    return weights


def sliding_window(
    volume: Tensor,
    window: Sequence[int],
    network: Network,
    overlap: float = 0.5,
    blend: Blend = "gaussian",
    *,
    sigma_scale: float = 0.125,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The network's output for volumes larger (or smaller) than its window.

    Args:
        volume: B, C, D, H, W or C, D, H, W.
        window: sides D, H, W. An axis that is shorter is padded with 0 on both sides, and cropped again.
        network: B, C, *window -> logits B, K, *window (larger outputs are cropped to the window).
        overlap: share of a window that the next one covers, from 0 to below 1.
        blend: how overlapping windows are averaged; see `window_weights`.
        batch_size: windows a call of the network.
        device: where the network and the sums are; the volume's own if None. The result stays on the volume's device.
        progress: called with the windows done and the number of windows.

    Returns:
        Logits, float32, with K channels in place of C.
    """
    if volume.ndim == 5:
        options = {"sigma_scale": sigma_scale, "batch_size": batch_size, "device": device, "progress": progress}
        return torch.stack([sliding_window(one, window, network, overlap, blend, **options) for one in volume])  # type: ignore[arg-type]
    planes = stream_slabs(
        volume,
        window,
        network,
        overlap,
        blend,
        sigma_scale=sigma_scale,
        batch_size=batch_size,
        device=device or volume.device,
        progress=progress,
    )
    result, done = volume.new_empty(0), 0
    for slab in planes:
        if done == 0:
            result = torch.empty((slab.shape[0], *volume.shape[1:]), device=volume.device)
        result[:, done : done + slab.shape[1]] = slab
        done += slab.shape[1]
    return result


def thinnest_slab(size: Sequence[int], window: Sequence[int]) -> int:
    """The axis along which a slab one window thick holds the smallest share of the volume."""
    return min(range(len(window)), key=lambda axis: window[axis] / max(size[axis], window[axis]))


def stream_slabs(
    volume: Tensor,
    window: Sequence[int],
    network: Network,
    overlap: float | Sequence[float] = 0.5,
    blend: Blend = "gaussian",
    *,
    axis: int = 0,
    sigma_scale: float | Sequence[float] = 0.125,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Runs the windows along `axis` and yields logits K, D, H, W of the planes that are finished, in order.

    A slab holds good until the next one is asked for. See `sliding_window` for the arguments; `volume` is C, D, H, W, and
    `overlap` and `sigma_scale` may be one number an axis.
    Where the device has no room for the sums, they are kept in host memory.
    """
    overlaps = [overlap] * len(window) if isinstance(overlap, int | float) else list(overlap)
    _check(volume, window, overlaps, blend, batch_size)
    device, size = torch.device(device), volume.shape[1:]
    volume, before = _pad(volume, window)
    padded = volume.shape[1:]
    starts = [window_starts(n, w, o) for n, w, o in zip(padded, window, overlaps, strict=True)]
    groups = [s if a != axis else [0] for a, s in enumerate(starts)]  # windows that share a start along `axis`
    batches = list(_batched(list(itertools.product(*groups)), batch_size))
    sums = _Sums(
        window_weights(window, blend, sigma_scale, device),
        [w if a == axis else n for a, (n, w) in enumerate(zip(padded, window, strict=True))],
        axis,
    )
    done, total = 0, len(starts[axis]) * sum(map(len, batches))
    for first, following in itertools.pairwise([*starts[axis], padded[axis]]):
        part = volume.narrow(axis + 1, first, window[axis])
        for corners in batches:
            places = [tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True)) for corner in corners]
            windows = torch.stack([part[(slice(None), *place)] for place in places]).to(device)
            sums.add(_run(network, windows, sums), places)
            done += len(places)
            if progress is not None:
                progress(done, total)
        slab = sums.finished(following - first)
        for a, n in enumerate(size):  # without the padding
            start = max(0, before[a] - first) if a == axis else before[a]
            stop = min(following, before[a] + n) - first if a == axis else before[a] + n
            slab = slab.narrow(a + 1, start, max(0, stop - start))
        if slab.shape[axis + 1]:
            yield slab
        sums.advance(following - first)


class _Sums:
    """Weighted logits and weights of the planes that are still open: K, *shape and *shape, float32."""

    def __init__(self, weights: Tensor, shape: Sequence[int], axis: int) -> None:
        self.weights, self.shape, self.axis = weights, list(shape), axis
        self.logits: Tensor | None = None
        self.counts: Tensor | None = None

    def add(self, outputs: Tensor, places: Sequence[tuple[slice, ...]]) -> None:
        if self.logits is None or self.counts is None:
            self.logits, self.counts = self._allocate(outputs.shape[1], outputs.device)
        weights = self.weights.to(self.logits.device)
        for output, place in zip(outputs.to(self.logits.device, torch.float32), places, strict=True):
            self.logits[(slice(None), *place)].addcmul_(output, weights)
            self.counts[place] += weights

    def _allocate(self, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        try:
            return torch.zeros((classes, *self.shape), device=device), torch.zeros(self.shape, device=device)
        except torch.OutOfMemoryError:
            return torch.zeros((classes, *self.shape)), torch.zeros(self.shape)

    def to_host(self) -> bool:
        """Moves the sums off the device; False where they are not on it."""
        if self.logits is None or self.counts is None or self.logits.device.type == "cpu":
            return False
        self.logits, self.counts = self.logits.cpu(), self.counts.cpu()
        return True

    def finished(self, count: int) -> Tensor:
        """The mean logits of the first `count` planes: K, D, H, W with `count` along the axis; a view."""
        assert self.logits is not None
        assert self.counts is not None
        return self.logits.narrow(self.axis + 1, 0, count).div_(self.counts.narrow(self.axis, 0, count))

    def advance(self, count: int) -> None:
        """Drops the first `count` planes; the others move to the front, plane by plane, which needs no second slab."""
        for sums, axis in ((self.logits, self.axis + 1), (self.counts, self.axis)):
            assert sums is not None
            kept = self.shape[self.axis] - count
            for i in range(kept):
                sums.select(axis, i).copy_(sums.select(axis, i + count))
            sums.narrow(axis, max(kept, 0), min(count, self.shape[self.axis])).zero_()


def _run(network: Network, windows: Tensor, sums: _Sums) -> Tensor:
    """The network's output on the windows' grid; a full device is relieved of the sums first."""
    try:
        outputs = network(windows)
    except torch.OutOfMemoryError:
        if not sums.to_host():
            raise InputError(
                f"{len(windows)} windows of {_by(windows.shape[2:])} voxels do not fit the device's memory: lower the batch size"
            ) from None
        torch.cuda.empty_cache()
        outputs = network(windows)
    if outputs.ndim != windows.ndim or any(o < w for o, w in zip(outputs.shape[2:], windows.shape[2:], strict=True)):
        raise InputError(f"the network returns {_by(outputs.shape)} for windows of {_by(windows.shape)}; B x K x window is expected")
    return crop_to(outputs, windows.shape[2:])


def crop_to(outputs: Tensor, sides: Sequence[int]) -> Tensor:
    """B, K, D, H, W without what a network's stride has added at the end of each axis."""
    for axis, side in enumerate(sides, 2):
        outputs = outputs.narrow(axis, 0, side)
    return outputs


def _pad(volume: Tensor, window: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The volume padded with 0 to at least a window, and how many planes came before each axis."""
    missing = [max(0, w - n) for n, w in zip(volume.shape[1:], window, strict=True)]
    before = [m // 2 for m in missing]
    if not any(missing):
        return volume, before
    sides = [side for m, b in zip(reversed(missing), reversed(before), strict=True) for side in (b, m - b)]
    return F.pad(volume, sides), before


def _batched(items: list[tuple[int, ...]], count: int) -> Iterator[list[tuple[int, ...]]]:
    for i in range(0, len(items), count):
        yield items[i : i + count]


def _check(volume: Tensor, window: Sequence[int], overlaps: Sequence[float], blend: str, batch_size: int) -> None:
    if volume.ndim != 4 or len(window) != 3:
        raise InputError(f"a volume C, D, H, W and a window of three sides are expected; got {_by(volume.shape)} and {_by(window)}")
    if min(window) < 1:
        raise InputError(f"a window has at least one voxel a side; got {_by(window)}")
    for overlap in overlaps:
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must be from 0 to below 1; got {overlap}")
    if blend not in ("gaussian", "constant"):
        raise InputError(f"blend is 'gaussian' or 'constant'; got {blend!r}")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; got {batch_size}")


def _by(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
