"""A model as a restorer of pictures: array in, array out, of any size, number of channels and depth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vsuite.core import InputError, devices, load_published, optimize_for_inference
from vsuite.core.errors import unknown
from vsuite.core.weights import find_weights
from vsuite.restoration.images import Pixels
from vsuite.restoration.resize import KERNELS, resize_weights, weighted_sums
from vsuite.restoration.tiling import Progress, Tiling, tiled

Precision = Literal["auto"] | devices.Precision
DTYPES: Mapping[devices.Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAFER: Mapping[devices.Precision, devices.Precision | None] = {"fp16": "bf16", "bf16": "fp32", "fp32": None}
MEMORY = 1 << 30  # bytes that one tile may take on a CPU; half of what is free on a GPU
STRIP = 5 << 27  # bytes that a row of tiles of the output may take, as floats
LARGEST_TILE, SMALLEST_TILE = 1024, 32  # of those that are not given
FILL_ROWS, FILL_MARGIN = 512, 128  # pixels
DEFAULT_SCALE = 4
SHIPPED_SCALES = (2, 4)


@dataclass(frozen=True)
class FinalSize:
    """The size asked for; all None: what the model gives.

    Attributes:
        outscale: factor on the sides of the input.
        width, height: in pixels; one alone keeps the shape.
        kernel: "bicubic" or "lanczos", which brings the model's output to that size.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None
    kernel: str = "lanczos"

    def __post_init__(self) -> None:
        if self.outscale is not None and (self.width is not None or self.height is not None):
            raise InputError("give either an outscale, or a width or height")
        if self.outscale is not None and not 0 < self.outscale <= 64:
            raise InputError(f"outscale must be above 0 and at most 64; got {self.outscale:g}")
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and side < 1:
                raise InputError(f"{name} must be 1 or more; got {side}")
        if self.kernel not in KERNELS:
            raise unknown("kernel", self.kernel, KERNELS)

    def of(self, height: int, width: int, scale: int) -> tuple[int, int]:
        """Height and width of the output, for the input's and the model's scale."""
        if self.width is not None or self.height is not None:
            factor = self.height / height if self.width is None and self.height is not None else (self.width or 1) / width
            return self.height or max(1, round(height * factor)), self.width or max(1, round(width * factor))
        factor = self.outscale or scale
        return max(1, round(height * factor)), max(1, round(width * factor))


class Restorer:
    """Restores pictures with one model.

    Args:
        weights: file, run folder, name of shipped weights, or a model (B, C, H, W in [0, 1] -> B, C, sH, sW, with attributes `scale`
            and `in_channels`, if that is not 3). None: the shipped small model of `scale`.
        scale: the model must have it, as must the one it is blended with; None takes any, x4 where `weights` is None too.
        device: see `pick_device`.
        precision: "auto" is fp16 on a GPU and fp32 on a CPU. Where a half precision gives infinite values or NaN, the next safer one
            is used from then on, with a warning.
        tile: side of the tiles in input pixels; None takes as much as memory allows, less for pictures that are very wide.
        overlap: context of the tiles, in input pixels.
        wrap: pictures are textures whose opposite sides touch.
        ensemble: mean over the eight flips and turns: eight times as slow, a little better.
        blend_with: file or name of weights of the same model to interpolate with.
        blend: share of these: 0 none, 1 only them.

    Raises:
        InputError: for weights that are no restoration model, of another scale, or damaged, and for settings out of range.
    """

    def __init__(
        self,
        weights: str | Path | nn.Module | None = None,
        *,
        scale: int | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        tile: int | None = None,
        overlap: int = 32,
        wrap: bool = False,
        ensemble: bool = False,
        blend_with: str | Path | None = None,
        blend: float = 0.5,
    ) -> None:
        self.device = devices.pick_device(device)
        model = weights if isinstance(weights, nn.Module) else load_model(weights, scale)
        self.name = type(weights).__name__ if isinstance(weights, nn.Module) else Path(weights or shipped(scale)).stem
        self.scale, self.channels = _facts(model, self.name, scale)
        if blend_with is not None:
            model = interpolate(model, load_model(blend_with, self.scale), blend)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        if precision not in ("auto", *DTYPES):
            raise unknown("precision", precision, ("auto", *DTYPES))
        self.precision: devices.Precision = precision if precision != "auto" else "fp16" if self.device.type == "cuda" else "fp32"
        self.model = optimize_for_inference(model, precision=self.precision).to(self.device)
        self.multiple = int(getattr(model, "window_size", 1))
        self.ensemble = ensemble
        self.tiling = Tiling(self._affordable_tile(overlap) if tile is None else tile, overlap, self.multiple, wrap)
        self.tile_given = tile is not None

    def describe(self) -> str:
        """What restores, and how, in one line."""
        window = f", window {self.multiple}" if self.multiple > 1 else ""
        channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
        model = f"{self.name}: {type(self.model).__name__} x{self.scale}, {channels}{window}, {self.parameters / 1e6:.2f} M parameters"
        precision = f"{self.precision} ({' and '.join(name for name in DTYPES if name != self.precision)} possible)"
        return f"{model}; {self.device}, {precision}, tiles of {self.tiling.tile}{', ensemble of 8' * self.ensemble}"

    def restore(self, pixels: Pixels, size: FinalSize | None = None, *, progress: Progress = lambda done, total: None) -> Pixels:
        """A restored picture.

        Args:
            pixels: (H, W, C) or (H, W); uint8, uint16, or floats in [0, 1]. C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA).
            size: of the output; None takes the model's scale.
            progress: told the tiles that are done, and of all.

        Returns:
            The same kind of array.
        """
        flat = pixels.ndim == 2
        whole = pixels[..., None] if flat else pixels
        found = np.concatenate(list(self.strips(whole, size, progress=progress)))
        return found[..., 0] if flat else found

    def strips(self, pixels: Pixels, size: FinalSize | None = None, *, progress: Progress = lambda done, total: None) -> Iterator[Pixels]:
        """As `restore`, but in strips from top to bottom, so that the whole output never lies in memory."""
        most = _check_pixels(pixels)
        height, width, channels = pixels.shape
        wanted = (size or FinalSize()).of(height, width, self.scale)
        opaque = pixels
        constant = None  # alpha that is the same everywhere needs no model
        if channels in (2, 4):
            alpha = pixels[..., -1]
            constant = alpha.flat[0] if bool((alpha == alpha.flat[0]).all()) else None
            opaque = pixels[..., :-1] if constant is not None else fill_transparent(pixels)
        tiling = self._tiling(width, opaque.shape[2])
        found: Iterator[Pixels] = tiled(opaque, lambda part: self._part(part, most), self.scale, tiling, progress=progress)
        if wanted != (height * self.scale, width * self.scale):
            found = resize_strips(found, (height * self.scale, width * self.scale), wanted, (size or FinalSize()).kernel)
        for strip in found:
            whole = _quantised(strip, pixels.dtype, most)
            del strip  # else it lies in memory beside the next one
            yield whole if constant is None else np.concatenate([whole, np.full_like(whole[..., :1], constant)], axis=2)

    def _tiling(self, width: int, channels: int) -> Tiling:
        """For a picture of this width: a row of tiles of the output is held in memory."""
        rows = STRIP // (4 * width * self.scale**2 * channels)
        lower = max(rows - rows % 16, SMALLEST_TILE)
        return self.tiling if self.tile_given or lower >= self.tiling.tile else replace(self.tiling, tile=lower)

    def _part(self, part: Pixels, most: float) -> npt.NDArray[np.float32]:
        """A tile: its colours, and its alpha as a grey picture of its own."""
        x = torch.from_numpy(np.ascontiguousarray(part).astype(np.float32)).to(self.device).permute(2, 0, 1)[None] / most
        colours = 3 if x.shape[1] > 2 else 1
        planes = [self._run(x[:, :colours])]
        if x.shape[1] > colours:
            planes.append(self._run(x[:, colours:]))
        return torch.cat(planes, 1)[0].permute(1, 2, 0).cpu().numpy()

    def _run(self, x: Tensor) -> Tensor:
        """1, 1 or 3, h, w -> the same channels: a model of colours sees grey three times, one of grey each colour alone."""
        if x.shape[1] == self.channels:
            return self._safe(x)
        if x.shape[1] == 1:
            return self._safe(x.expand(-1, self.channels, -1, -1)).mean(1, keepdim=True)
        if self.channels == 1:
            return torch.cat([self._safe(x[:, c : c + 1]) for c in range(x.shape[1])], 1)
        raise InputError(f"{self.name}: takes {self.channels} channels, the picture has {x.shape[1]}")

    def _safe(self, x: Tensor) -> Tensor:
        """The model's output, in a precision in which it is finite."""
        while True:
            found = self._oriented(x)
            if bool(found.isfinite().all()):
                return found
            safer = SAFER[self.precision]
            if safer is None:
                raise InputError(f"{self.name}: gives values that are infinite or no numbers; its weights are damaged")
            warnings.warn(f"{self.name}: {self.precision} gives infinite values or NaN; continuing in {safer}", stacklevel=2)
            self.precision = safer

    def _oriented(self, x: Tensor) -> Tensor:
        if not self.ensemble:
            return self._forward(x)
        total: Tensor | None = None
        for turn in range(8):
            y = x.flip(3) if turn & 1 else x
            y = y.flip(2) if turn & 2 else y
            y = self._forward(y.transpose(2, 3) if turn & 4 else y)
            y = y.transpose(2, 3) if turn & 4 else y
            y = y.flip(2) if turn & 2 else y
            y = y.flip(3) if turn & 1 else y
            total = y if total is None else total + y
        assert total is not None
        return total / 8

    def _forward(self, x: Tensor) -> Tensor:
        dtype = DTYPES[self.precision]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.model(x).float()

    def _affordable_tile(self, overlap: int) -> int:
        """Side of the largest tile for which four tensors of the size of the model's largest fit into the memory.

        On a small map: what goes through a large one piece by piece is counted whole.
        """
        side = max(32, self.multiple)
        largest = 1

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel() * 4)

        hooks = [module.register_forward_hook(note) for module in self.model.modules()]
        with torch.inference_mode():
            self.model(torch.zeros(1, self.channels, side, side, device=self.device))
        for hook in hooks:
            hook.remove()
        memory = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else MEMORY
        around = 2 * (overlap + self.multiple)
        tile = math.isqrt(memory // (4 * largest // side**2)) - around
        return min(LARGEST_TILE, max(tile - tile % 16, SMALLEST_TILE))


def shipped(scale: int | None) -> str:
    """The name of the small model that comes with the package, for a scale (None: x4)."""
    scale = scale or DEFAULT_SCALE
    if scale not in SHIPPED_SCALES:
        known = " and ".join(map(str, SHIPPED_SCALES))
        raise InputError(f"no weights come with the package for scale {scale}, but for {known}; another size is had by --outscale")
    return f"drct_lite_x{scale}"


def load_model(weights: str | Path | None, scale: int | None = None) -> nn.Module:
    """The model of a file, run folder or name; None: the shipped one of a scale.

    Raises:
        InputError: where there is none, or its file is damaged or of another kind of model, or of another scale.
    """
    path = find_weights(weights or shipped(scale))
    model = load_published(path)
    _facts(model, str(weights), scale)
    return model


def _facts(model: nn.Module, name: str, wanted: int | None) -> tuple[int, int]:
    """Scale, which must be the wanted one if there is one, and number of channels."""
    scale, channels = getattr(model, "scale", None), getattr(model, "in_channels", 3)
    if not isinstance(scale, int) or not isinstance(channels, int):
        raise InputError(f"{name}: holds a {type(model).__name__}, which is no model that restores pictures")
    if wanted not in (None, scale):
        raise InputError(f"{name}: enlarges {scale} times, not {wanted} times; another size is had by predict --outscale")
    return scale, channels


def interpolate(model: nn.Module, other: nn.Module, share: float) -> nn.Module:
    """Fills the model with (1 - share) * its weights + share * those of another of the same architecture.

    Raises:
        InputError: for a share outside [0, 1] and for models that differ.
    """
    if not 0 <= share <= 1:
        raise InputError(f"the share of the other weights must lie in [0, 1]; got {share:g}")
    mine, others = model.state_dict(), other.state_dict()
    shapes = {name: value.shape for name, value in mine.items()}
    if shapes != {name: value.shape for name, value in others.items()}:
        raise InputError("weights can be blended only where both are of the same architecture and size")
    mixed = {name: torch.lerp(value, others[name], share) if value.is_floating_point() else value for name, value in mine.items()}
    model.load_state_dict(mixed)
    return model


def _check_pixels(pixels: Pixels) -> float:
    """The value of white; raises `InputError` for what is no picture."""
    shape = " x ".join(map(str, pixels.shape))
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or pixels.size == 0:
        raise InputError(f"a picture is H, W or H, W, C with 1 to 4 channels, none of them empty; got {shape}")
    if pixels.dtype.kind == "f":
        if not bool(np.isfinite(pixels).all()):
            raise InputError("the picture holds NaN or infinite values")
        return 1.0
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"pixels are uint8, uint16, or floats in [0, 1]; got {pixels.dtype}")
    return float(np.iinfo(pixels.dtype).max)


def _quantised(strip: Pixels, dtype: np.dtype[Any], most: float) -> Pixels:
    """Values in [0, 1], clipped (in place) and in the number type of the picture, rounded to nearest."""
    np.clip(strip, 0, 1, out=strip)
    if dtype.kind == "f":
        return strip.astype(dtype)
    strip *= most
    return np.rint(strip, out=strip).astype(dtype)


def fill_transparent(pixels: Pixels) -> Pixels:
    """The colours of fully transparent pixels taken from the nearest others, so that they do not bleed into these.

    It goes by bands of rows, as the distances need many bytes a pixel; what is further away than `FILL_MARGIN` shows nowhere.
    """
    if bool(pixels[..., -1].all()):
        return pixels
    filled = pixels.copy()
    for start in range(0, len(pixels), FILL_ROWS):
        first = max(start - FILL_MARGIN, 0)
        band = _filled(pixels[first : start + FILL_ROWS + FILL_MARGIN])
        filled[start : start + FILL_ROWS] = band[start - first : start - first + FILL_ROWS]
    return filled


def _filled(pixels: Pixels) -> Pixels:
    import cv2

    empty = pixels[..., -1] == 0
    if not empty.any() or empty.all():
        return pixels
    _, nearest = cv2.distanceTransformWithLabels(empty.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    opaque = np.empty((int(nearest.max()) + 1, pixels.shape[2] - 1), pixels.dtype)
    opaque[nearest[~empty]] = pixels[~empty][:, :-1]
    filled = pixels.copy()
    filled[..., :-1][empty] = opaque[nearest[empty]]
    return filled


def resize_strips(strips: Iterator[Pixels], before: tuple[int, int], after: tuple[int, int], kernel: str) -> Iterator[Pixels]:
    """Resizes a picture that comes in strips (n, W, C), float32; equal to `imresize` of the whole.

    Args:
        before, after: height and width.
        kernel: see `imresize`.
    """
    rows, row_weights = resize_weights(before[0], after[0], after[0] / before[0], kernel=kernel)
    columns, column_weights = resize_weights(before[1], after[1], after[1] / before[1], kernel=kernel)
    lowest, highest = rows.min(1), np.maximum.accumulate(rows.max(1))
    needed_from = np.minimum.accumulate(lowest[::-1])[::-1]
    window: Pixels | None = None
    start = done = 0  # first row of the window; rows given out
    for strip in strips:
        narrow = weighted_sums(strip, 1, columns, column_weights)
        window = narrow if window is None else np.concatenate([window, narrow])
        ready = int(np.searchsorted(highest, start + len(window)))
        if ready > done:
            yield weighted_sums(window, 0, rows[done:ready] - start, row_weights[done:ready])
            done = ready
            if done < after[0]:
                dropped = int(needed_from[done]) - start
                window, start = window[dropped:].copy(), start + dropped
