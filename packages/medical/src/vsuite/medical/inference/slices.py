"""Volumes through a network for 2D images, slice by slice, as TransUNet and its successors are evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.medical.data.zoom import zoom_labels, zoom_slice
from vsuite.medical.plan import Plan

Network = Callable[[Tensor], Tensor]
FloatArray = NDArray[np.floating]


def run_network(network: Network, windows: Tensor, plan: Plan) -> Tensor:
    """The logits of windows B, C, D, H, W -> B, K, D, H, W: a 2D plan's network takes each of their slices for itself."""
    if not plan.is_2d:
        return network(windows)
    logits = network(windows.transpose(1, 2).flatten(0, 1))  # B * D, C, H, W
    return logits.unflatten(0, (windows.shape[0], windows.shape[2])).transpose(1, 2)


def stream_slices(
    network: Network,
    volume: Tensor,
    image_size: int,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    num_threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """The logits K, n, H, W of slices zoomed to the network's size, at most `batch_size` at a time, zoomed back by the nearest pixel.

    Their largest gives the labels of `predict_slices`. Splines are scipy's own for a network on the CPU, and matrix products
    elsewhere, which are equal to rounding.

    Args:
        network: B, C, image_size, image_size -> logits B, K, h, w.
        volume: C, D, H, W; slices lie along D.
        progress: called with the slices done and the number of slices.
    """
    slices, done = volume.transpose(0, 1).numpy(), 0
    size, exact = slices.shape[2:], torch.device(device).type == "cpu"
    for logits in _small_logits(network, slices, image_size, device, batch_size, exact, num_threads):
        rows, columns = (torch.from_numpy(_nearest(old, new)).to(device) for old, new in zip(logits.shape[2:], size, strict=True))
        done += len(logits)
        if progress is not None:
            progress(done, len(slices))
        yield logits.index_select(2, rows).index_select(3, columns).transpose(0, 1)


@functools.lru_cache(maxsize=8)
def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """For each of `new` pixels of a row, the one of `old` that `zoom_labels` takes."""
    return zoom_labels(np.arange(old)[None, None], (1, new))[0, 0].astype(np.int64)


@torch.inference_mode()
def predict_slices(
    network: Network,
    volume: FloatArray,
    image_size: int,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    exact_zoom: bool = True,
    num_threads: int = 2,
) -> NDArray[np.integer]:
    """The label map of a volume: each slice zoomed to the network's size, classified, and the labels zoomed back.

    The network should be in eval mode; `optimize_for_inference` makes it faster. Slices run in batches, and the next ones
    are zoomed meanwhile.

    Args:
        network: B, C, image_size, image_size in float32 -> logits B, K, h, w.
        volume: D, H, W, or C, D, H, W for several channels; slices lie along D. As normalised in training.
        device: of the network.
        batch_size: slices in one call of the network.
        exact_zoom: zoom by scipy, to the bit as the authors do. Otherwise by the same splines as two matrix products on the
            network's device: equal to rounding, and what keeps a fast GPU busy.
        num_threads: that zoom slices (with `exact_zoom`).

    Returns:
        D, H, W labels in the smallest unsigned type that holds K - 1.

    Raises:
        InputError: for arrays of another rank, without voxels, or with NaN or infinite values.
    """
    if volume.ndim not in (3, 4) or 0 in volume.shape:
        raise InputError(f"a volume has the axes D, H, W or C, D, H, W, none empty; got the shape {volume.shape}")
    if not np.isfinite(volume).all():
        raise InputError("the volume holds NaN or infinite values")
    if batch_size < 1 or num_threads < 1:
        raise InputError(f"batch_size and num_threads must be 1 or more; got {batch_size} and {num_threads}")
    channels = volume[None] if volume.ndim == 3 else volume
    slices = np.moveaxis(channels, 0, 1).astype(np.float32, copy=False)  # D, C, H, W
    labels = []
    for logits in _small_logits(network, slices, image_size, device, batch_size, exact_zoom, num_threads):
        found = logits.argmax(1).cpu().numpy().astype(np.min_scalar_type(logits.shape[1] - 1))
        labels.append(zoom_labels(found, slices.shape[2:]))
    return np.concatenate(labels)


def _small_logits(
    network: Network, slices: FloatArray, image_size: int, device: torch.device | str, batch_size: int, exact: bool, num_threads: int
) -> Iterator[Tensor]:
    """The network's own logits B, K, h, w of slices N, C, H, W, a batch at a time."""
    size = (image_size, image_size)
    for batch in _zoomed(slices, size, batch_size, num_threads) if exact else _batches(slices, batch_size):
        x = torch.from_numpy(batch).to(device)
        yield network(x if exact else _zoom_by_matrices(x, size))


def _batches(slices: FloatArray, batch_size: int) -> Iterator[FloatArray]:
    for start in range(0, len(slices), batch_size):
        yield np.ascontiguousarray(slices[start : start + batch_size])


def _zoomed(slices: FloatArray, size: Sequence[int], batch_size: int, num_threads: int) -> Iterator[FloatArray]:
    """Batches of zoomed slices; while one is in use, threads zoom the next."""

    def zoomed(image: FloatArray) -> FloatArray:
        return np.stack([zoom_slice(channel, size) for channel in image])

    with ThreadPoolExecutor(num_threads) as pool:
        batches = (slices[start : start + batch_size] for start in range(0, len(slices), batch_size))
        waiting = [pool.submit(zoomed, image) for image in next(batches)]
        while waiting:
            ready, waiting = waiting, [pool.submit(zoomed, image) for image in next(batches, ())]
            yield np.stack([future.result() for future in ready])


def _zoom_by_matrices(x: Tensor, size: Sequence[int]) -> Tensor:
    """`zoom_slice` of B, C, H, W: splines are linear in the pixels and separable, so each axis is one matrix product."""
    rows, columns = (torch.from_numpy(_zoom_matrix(old, new)).to(x.device, x.dtype) for old, new in zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.T


@functools.lru_cache(maxsize=8)
def _zoom_matrix(old: int, new: int) -> NDArray[np.float64]:
    """new, old: what each output pixel takes from each input pixel of a row."""
    if old == new:
        return np.eye(old)
    return np.stack([ndimage.zoom(unit, new / old, order=3) for unit in np.eye(old)], axis=1)
