"""What a classifier looked at: attention roll-out and occlusion maps, laid over the picture.

Roll-out: Abnar and Zuidema, ACL 2020. Occlusion: Zeiler and Fergus, ECCV 2014. Both tell where the network looks, not why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError, unknown
from vsuite.core.images.files import read_image
from vsuite.core.images.predictor import Prediction, Predictor, find_images
from vsuite.core.images.preprocessing import preprocess, restore
from vsuite.medical.data.pictures2d import write_png

Method = Literal["rollout", "occlusion"]
OPACITY = 0.45
COVERS = 8  # occluding squares along the shorter side


def attention_rollout(maps: Iterable[Tensor], *, residual: bool = True) -> Tensor:
    """How much each token of the last block comes from each token of the first: B, N, N, rows that sum to 1.

    Args:
        maps: the attention of each block, first to last: B, heads, N, N.
        residual: the blocks add their input, which counts as half of what each token takes.
    """
    total: Tensor | None = None
    for weights in maps:
        mixed = weights.float().mean(1)
        if residual:
            mixed = (mixed + torch.eye(mixed.shape[-1], device=mixed.device)) / 2
        total = mixed if total is None else mixed @ total
    if total is None:
        raise InputError("a roll-out needs the attention of one block at least")
    return total


def check_method(model: nn.Module, method: str) -> None:
    """Raises `InputError` for an unknown way to explain, and for a roll-out of a model that gives no attention maps."""
    if method not in get_args(Method):
        raise unknown("way to explain", method, get_args(Method))
    if method == "rollout" and not hasattr(model, "attention_maps"):
        raise InputError(f"{type(model).__name__} gives no attention maps (ViT and DuoFormer do); use occlusion")


@torch.no_grad()
def rollout_map(model: nn.Module, image: Tensor) -> NDArray[np.float32]:
    """Where what is classified comes from: h, w from 0 to 1, one value a patch (ViT) or region (DuoFormer).

    A ViT that classifies the mean of its patches is looked at from their mean, others from the class token.

    Args:
        image: C, H, W, prepared as for prediction.

    Raises:
        InputError: for a model without attention between the parts of the image.
    """
    check_method(model, "rollout")
    residual = getattr(getattr(model, "vision_transformer", None), "patch_residual", True)
    maps: Any = model.attention_maps
    total = attention_rollout(maps(image[None]), residual=bool(residual))[0]
    shares = total[1:, 1:].mean(0) if getattr(model, "pool", "token") == "mean" else total[0, 1:]
    height, width = _grid(len(shares), image.shape[1], image.shape[2])
    return _unit(shares.reshape(height, width).cpu().numpy())


def _grid(count: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of that shape."""
    rows = max(1, round(math.sqrt(count * height / width)))
    if count % rows:
        raise InputError(f"{count} patches make no grid on an image of {height} x {width}")
    return rows, count // rows


@torch.no_grad()
def occlusion_map(predictor: Predictor, image: Tensor, target: int, *, size: int | None = None) -> NDArray[np.float32]:
    """How far the probability of a class falls when a square of the image is covered: h, w, negative where it rises.

    Args:
        image: C, H, W, prepared as for prediction; the squares take its mean colour.
        target: index of the class.
        size: side of a square in pixels; None takes an eighth of the shorter side. Squares move by half of it.
    """
    _, height, width = image.shape
    side = size if size is not None else max(2, min(height, width) // COVERS)
    if not 0 < side <= min(height, width):
        raise InputError(f"an occluding square's side must be 1 to {min(height, width)} pixels; got {side}")
    tops, lefts = (_starts(length, side) for length in (height, width))
    fill = image.mean((1, 2))[:, None, None]
    drops = []
    whole = float(predictor.scores(image[None])[0, target])
    places = [(top, left) for top in tops for left in lefts]
    for start in range(0, len(places), predictor.batch_size):
        batch = image.repeat(len(places[start : start + predictor.batch_size]), 1, 1, 1)
        for covered, (top, left) in zip(batch, places[start:], strict=False):
            covered[:, top : top + side, left : left + side] = fill
        drops.append(whole - predictor.scores(batch)[:, target])
    return np.concatenate(drops).reshape(len(tops), len(lefts)).astype(np.float32)


def _starts(length: int, side: int) -> list[int]:
    """From edge to edge in steps of about half a square."""
    number = max(1, math.ceil((length - side) / max(1, side // 2)) + 1)
    return np.linspace(0, length - side, number).round().astype(int).tolist()


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """H, W, 3 bytes with a map h, w from 0 to 1 laid over it, blue to red, clearer where it is low."""
    import cv2

    height, width = picture.shape[:2]
    full = F.interpolate(torch.from_numpy(heat)[None, None], (height, width), mode="bicubic", align_corners=False)[0, 0].clamp(0, 1).numpy()
    colours = cv2.applyColorMap(np.rint(full * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    opacity = OPACITY * (0.35 + 0.65 * full[..., None])
    return np.rint(picture * (1 - opacity) + colours * opacity).astype(np.uint8)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12)).astype(np.float32)


def explain_files(
    predictor: Predictor, inputs: Sequence[str | Path], found: Sequence[Prediction], out: str | Path, method: str
) -> list[Path]:
    """Writes a PNG for each picture: what the network sees of it, and beside it the same under the map.

    An occlusion map is that of the likeliest class, which the file's name ends with; a roll-out is the same for all classes.

    Args:
        inputs: as given to `predict_files`. found: what that found; pictures that could not be used are not explained.
        out: folder of the pictures.
        method: "rollout" (ViT, DuoFormer) or "occlusion" (any model).
    """
    check_method(predictor.model, method)
    by_name = {one.name: one for one in found}
    samples = [sample for sample in find_images(inputs)[0] if sample.name in by_name]
    paths = []
    for index, sample in enumerate(samples):
        image = preprocess(read_image(sample.image), predictor.note.image)
        target = int(by_name[sample.name].scores.argmax())
        if method == "rollout":
            heat = rollout_map(predictor.model, image.to(predictor.device))
        else:
            heat = _unit(np.maximum(occlusion_map(predictor, image, target), 0))
        picture = restore(image, predictor.note.image)
        stem = _letters(Path(sample.name).name.split(".")[0])
        of = f"_{_letters(predictor.classes[target])}" if method == "occlusion" else ""
        paths.append(Path(out) / f"{index:04d}_{stem}_{method}{of}.png")
        write_png(np.concatenate([picture, overlay(picture, heat)], axis=1), paths[-1])
    return paths


def _letters(name: str) -> str:
    """The name with "_" for all that file names had better not hold."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
