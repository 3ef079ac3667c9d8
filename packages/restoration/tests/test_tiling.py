"""Tiles: whatever their size, a convolution that looks no further than the overlap gives what it gives on the whole picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vsuite.core import InputError
from vsuite.restoration.tiling import Tiling, plan_spans, tiled

KERNEL = torch.arange(1.0, 26.0).view(1, 1, 5, 5)  # whole numbers: sums are exact in any order


def convolve(part: np.ndarray, scale: int = 2) -> np.ndarray:
    """Looks 2 pixels around itself, with zeros beyond the picture; then repeats each pixel."""
    x = torch.from_numpy(np.ascontiguousarray(part).astype(np.float32)).permute(2, 0, 1)[:, None]
    y = F.conv2d(x, KERNEL, padding=2)[:, 0].repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return y.permute(1, 2, 0).numpy()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 1), dtype=np.uint8)


@settings(max_examples=25)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.sampled_from([5, 9, 16, 31, 50]),
    overlap=st.integers(2, 12),
    multiple=st.sampled_from([1, 4, 7, 16]),
)
def test_tiled_equals_whole_exactly(height: int, width: int, tile: int, overlap: int, multiple: int) -> None:
    whole = picture(height, width)
    got = np.concatenate(list(tiled(whole, convolve, 2, Tiling(tile, overlap, multiple))))
    np.testing.assert_array_equal(got, convolve(whole))


@settings(max_examples=10)
@given(height=st.integers(6, 40), width=st.integers(6, 40), tile=st.integers(8, 30))
def test_wrapped_tiles_equal_the_middle_of_a_repeated_picture(height: int, width: int, tile: int) -> None:
    whole = picture(height, width)
    got = np.concatenate(list(tiled(whole, convolve, 1 + 1, Tiling(tile, 4, wrap=True))))
    middle = convolve(np.tile(whole, (3, 3, 1)))[2 * height : 4 * height, 2 * width : 4 * width]
    np.testing.assert_array_equal(got, middle)


@given(length=st.integers(1, 3000), tile=st.integers(1, 600), multiple=st.sampled_from([1, 8, 16]))
def test_tiles_are_balanced_aligned_and_no_larger_than_asked(length: int, tile: int, multiple: int) -> None:
    tile = max(tile, length // 50 + 1)
    tiling = Tiling(tile, 32, multiple)
    spans = plan_spans(length, tiling)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert all(a.stop - a.after == b.start and a.after == b.before for a, b in itertools.pairwise(spans))
    assert all(span.first % multiple == 0 and (span.last % multiple == 0 or span.last == length) for span in spans)
    cores = [span.stop - span.after // 2 - span.start - span.before // 2 for span in spans]
    assert sum(cores) == length
    assert max(cores) - min(cores) <= 1
    assert len(spans) == 1 or max(cores) <= tile


def test_1200_pixels_make_two_tiles_of_600() -> None:
    spans = plan_spans(1200, Tiling(1024))
    assert len(spans) == 2
    assert spans[0].stop - spans[0].after // 2 == 600


def test_out_of_memory_continues_with_smaller_tiles() -> None:
    whole, calls = picture(150, 130), []

    def careful(part: np.ndarray) -> np.ndarray:
        calls.append(part.size)
        if len(calls) > 2 and part.size > 60 * 60:  # from the second row on
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return convolve(part)

    strips = list(tiled(whole, careful, 2, Tiling(80, 4)))
    assert len(strips) > 2
    np.testing.assert_array_equal(np.concatenate(strips), convolve(whole))


def test_no_memory_at_all_is_one_clear_error() -> None:
    def never(part: np.ndarray) -> np.ndarray:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    with pytest.raises(InputError, match=r"out of memory even with tiles of \d+ pixels"):
        list(tiled(picture(64, 64), never, 2, Tiling(64)))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(part: np.ndarray) -> np.ndarray:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(tiled(picture(8, 8), broken, 2, Tiling(8)))


def test_progress_counts_to_the_total_and_may_stop_the_work() -> None:
    seen: list[tuple[int, int]] = []
    list(tiled(picture(100, 60), convolve, 2, Tiling(20, 2), progress=lambda done, total: seen.append((done, total))))
    assert seen == [(done + 1, 15) for done in range(15)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(tiled(picture(100, 60), convolve, 2, Tiling(20, 2), progress=stop))


def test_one_row_of_tiles_is_held_at_a_time() -> None:
    heights = [len(strip) for strip in tiled(picture(400, 30), convolve, 2, Tiling(32, 4))]
    assert max(heights) <= 2 * (32 + 8)
    assert sum(heights) == 800


def test_seams_of_a_process_that_looks_further_fade() -> None:
    """Every tile adds a constant of its own: between tiles the result goes from one to the next without a step."""
    number = iter(range(100))

    def constant(part: np.ndarray) -> np.ndarray:
        return np.full((*part.shape[:2], 1), 8.0 * next(number), np.float32)

    (row,) = tiled(picture(20, 200), constant, 1, Tiling(50, 8))
    assert np.abs(np.diff(row[0, :, 0])).max() <= 8 / 16 + 1e-6
