"""Restorers: any number of channels and depth, any final size, precision that falls back, ensembles and blends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsuite.core import InputError, create_model, save_weights
from vsuite.restoration import inference
from vsuite.restoration.inference import FinalSize, Restorer, fill_transparent, resize_strips
from vsuite.restoration.resize import imresize


class Nearest(nn.Module):
    """Repeats each pixel twice; remembers what it saw."""

    def __init__(self, in_channels: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.scale, self.in_channels = scale, in_channels

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.in_channels
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


class Overflowing(Nearest):
    """Finite in float32 only."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if not torch.is_autocast_enabled(x.device.type) else y / 0


rng = np.random.default_rng(0)


def repeated(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("model_channels", [1, 3])
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1), (7, 5, 2), (7, 5, 3), (7, 5, 4), (1, 1, 3), (1, 40, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_kind_of_picture_keeps_its_kind(model_channels: int, shape: tuple[int, ...], dtype: type) -> None:
    most = 1 if dtype is np.float32 else np.iinfo(dtype).max
    pixels = (rng.random(shape) * most).astype(dtype)
    if len(shape) == 3 and shape[2] in (2, 4):
        pixels[..., -1] = np.maximum(pixels[..., -1], 0.01 * most)
    found = Restorer(Nearest(model_channels), device="cpu").restore(pixels)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, repeated(pixels), atol=1e-6 if dtype is np.float32 else 0)


def test_constant_alpha_needs_no_model() -> None:
    seen: list[int] = []

    class Counting(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    restorer = Restorer(Counting(), device="cpu")
    seen.clear()
    pixels = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
    pixels[..., 3] = 77
    np.testing.assert_array_equal(restorer.restore(pixels), repeated(pixels))
    assert len(seen) == 1


def test_colours_under_full_transparency_come_from_the_nearest_pixel() -> None:
    pixels = np.zeros((5, 6, 4), np.uint8)
    pixels[:, :2] = (200, 10, 20, 255)
    pixels[:, 2:, :3] = (0, 255, 0)  # invisible, and would bleed
    filled = fill_transparent(pixels)
    np.testing.assert_array_equal(filled[..., :3], np.broadcast_to([200, 10, 20], (5, 6, 3)))
    np.testing.assert_array_equal(filled[..., 3], pixels[..., 3])


def test_tiles_do_not_show() -> None:
    pixels = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Restorer(Nearest(), device="cpu", tile=16, overlap=4).restore(pixels), repeated(pixels))


def test_tiles_of_wide_pictures_are_lower_unless_their_side_is_given(monkeypatch) -> None:
    """A row of them is held in memory."""
    monkeypatch.setattr(inference, "STRIP", 100 * 400 * 4 * 3 * 4)
    pixels = rng.integers(0, 256, (500, 400, 3), dtype=np.uint8)
    heights = [max(len(strip) for strip in Restorer(Nearest(), device="cpu", tile=tile, overlap=0).strips(pixels)) for tile in (None, 250)]
    assert heights[0] <= 2 * 100 + 4 * 8
    assert heights[1] >= 2 * 250 - 4 * 8


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (FinalSize(outscale=2.5), (50, 75)),
        (FinalSize(outscale=0.7), (14, 21)),
        (FinalSize(width=45), (30, 45)),
        (FinalSize(height=31), (31, 46)),
        (FinalSize(width=100, height=20), (20, 100)),
        (FinalSize(outscale=3, kernel="bicubic"), (60, 90)),
    ],
)
def test_final_sizes_are_the_models_output_resampled(size: FinalSize, wanted: tuple[int, int]) -> None:
    pixels = rng.random((20, 30, 3)).astype(np.float32)
    found = Restorer(Nearest(), device="cpu", tile=8, overlap=2).restore(pixels, size)
    assert found.shape[:2] == wanted
    expected = imresize(repeated(pixels).astype(np.float64), size=wanted, kernel=size.kernel).clip(0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_resizing_in_strips_is_resizing_the_whole(rows: int) -> None:
    pixels = rng.random((33, 9, 2)).astype(np.float32)
    for after in ((77, 20), (5, 9), (33, 4), (1, 1)):
        strips = (pixels[start : start + rows] for start in range(0, 33, rows))
        found = np.concatenate(list(resize_strips(strips, (33, 9), after, "lanczos")))
        np.testing.assert_allclose(found, imresize(pixels.astype(np.float64), size=after, kernel="lanczos"), atol=2e-6)


def test_half_precision_that_overflows_falls_back_with_a_warning() -> None:
    restorer = Restorer(Overflowing(), device="cpu", precision="fp16")
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="gives infinite values or NaN; continuing in") as warned:
        found = restorer.restore(pixels)
    assert [str(w.message).rpartition(" ")[2] for w in warned] == ["bf16", "fp32"]
    assert restorer.precision == "fp32"
    np.testing.assert_array_equal(found, repeated(pixels))


def test_damaged_weights_that_give_nan_are_an_error() -> None:
    class Broken(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(InputError, match="its weights are damaged"):
        Restorer(Broken(), device="cpu").restore(np.zeros((4, 4, 3), np.uint8))


def test_the_ensemble_undoes_every_flip_and_turn() -> None:
    """A model that marks its top left corner marks, in the mean, all four corners alike."""

    class Marking(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            y[..., 0, 1] += 0.8
            return y

    found = Restorer(Marking(), device="cpu", ensemble=True).restore(np.zeros((3, 3, 1), np.float32))[..., 0]
    np.testing.assert_allclose(found, found[::-1])
    np.testing.assert_allclose(found, found.T)
    assert found.sum() == pytest.approx(0.8)
    assert found[0, 1] == pytest.approx(0.1)


def tiny(path, seed: int, **options) -> str:
    torch.manual_seed(seed)
    sizes = {"embed_dim": 8, "growth": 4, "depths": (1,), "num_heads": 2, "window_size": 4, "upsample_dim": 8, "initialise": "random"}
    save_weights(create_model("drct_lite_x2", **sizes | options), path)
    return str(path)


def test_blending_two_checkpoints_mixes_their_weights(tmp_path) -> None:
    a, b = tiny(tmp_path / "a.safetensors", 0), tiny(tmp_path / "b.safetensors", 1)
    pixels = rng.random((6, 6, 3)).astype(np.float32)
    alone = [Restorer(path, device="cpu").restore(pixels) for path in (a, b)]
    np.testing.assert_array_equal(Restorer(a, device="cpu", blend_with=b, blend=0.0).restore(pixels), alone[0])
    np.testing.assert_allclose(Restorer(a, device="cpu", blend_with=b, blend=1.0).restore(pixels), alone[1], atol=1e-5)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]; got 1.5"):
        Restorer(a, device="cpu", blend_with=b, blend=1.5)
    with pytest.raises(InputError, match="same architecture"):
        Restorer(a, device="cpu", blend_with=tiny(tmp_path / "c.safetensors", 2, embed_dim=16))


def test_what_restores_is_said(tmp_path) -> None:
    line = Restorer(tiny(tmp_path / "mine.safetensors", 0), device="cpu", tile=64).describe()
    assert line.startswith("mine: DRCT x2, 3 channels, window 4, 0.0")
    assert line.endswith("M parameters; cpu, fp32 (fp16 and bf16 possible), tiles of 64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 3}, "no weights come with the package for scale 3"),
        ({"weights": Nearest(), "scale": 4}, "enlarges 2 times, not 4 times"),
        ({"weights": nn.Linear(1, 1)}, "no model that restores pictures"),
        ({"weights": Nearest(), "precision": "fp8"}, "unknown precision 'fp8'"),
        ({"weights": Nearest(), "overlap": -1}, "overlap must be 0"),
        ({"weights": "nothing.pth"}, "no such file"),
    ],
)
def test_wrong_settings_are_one_clear_line(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Restorer(**{"weights": None} | options, device="cpu")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 3), np.int32), np.full((4, 4, 3), np.nan, np.float32)],
)
def test_arrays_that_are_no_pictures_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"picture|pixels"):
        Restorer(Nearest(), device="cpu").restore(pixels)


@pytest.mark.parametrize(
    ("options", "message"), [({"outscale": 0}, "outscale"), ({"width": 0}, "width"), ({"outscale": 2, "width": 3}, "either")]
)
def test_final_sizes_that_make_no_sense(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FinalSize(**options)
