"""The demo: pictures are drawn, made small, and restored by the shipped model; a table and a page show what that is worth."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError
from vsuite.restoration.compare import Pair, write_page
from vsuite.restoration.data.pictures import list_pictures, read_rgb
from vsuite.restoration.evaluation import (
    LABELS,
    Conventions,
    Evaluation,
    evaluate_methods,
    print_evaluation,
    resize_method,
    write_evaluation,
)
from vsuite.restoration.images import Pixels
from vsuite.restoration.inference import Restorer
from vsuite.restoration.resize import imresize
from vsuite.restoration.writers import strips_of, write_picture

SIDE = 192  # pixels of a drawn picture; a multiple of every shipped scale
REPORT = "report.html"


def run_demo(out: str | Path, *, scale: int = 4, overwrite: bool = False, say: Callable[[str], None] = print) -> Evaluation:
    """Draws five pictures, reduces them, restores them, and compares with bicubic and Lanczos.

    Args:
        out: gets `pictures`, `low`, `restored`, `metrics.csv`, `metrics.json` and `report.html` with a slider for each picture.
        scale: of the shipped model to use.
        overwrite: replace an earlier demo.

    Returns:
        PSNR and SSIM by method.
    """
    out, began = Path(out), time.monotonic()
    if (out / REPORT).exists() and not overwrite:
        raise InputError(f"{out}: holds an earlier demo; --overwrite replaces it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; the demo needs a folder")
    say(f"1/3 drawing pictures in {out / 'pictures'}")
    for name, draw in DRAWINGS.items():
        high = (np.clip(draw(SIDE), 0, 1) * 255).round().astype(np.uint8)
        _write(out / "pictures" / f"{name}.png", high)
        _write(out / "low" / f"{name}.png", imresize(high, 1 / scale))
    restorer = Restorer(scale=scale, device="cpu", tile=SIDE)  # given, as finding one out takes as long as a picture
    say(f"2/3 restoring with {restorer.describe()}")
    results: list[Pixels] = []

    def restore(low: Pixels) -> Pixels:
        results.append(restorer.restore(low))
        return results[-1]

    methods = {"bicubic": resize_method("bicubic", scale), "lanczos": resize_method("lanczos", scale), restorer.name: restore}
    found = evaluate_methods(out / "pictures", methods, Conventions(scale, scale), progress=lambda name: say(f"    {name}"))
    say("3/3 writing the report")
    pairs = []
    for path, restored in zip(list_pictures(out / "pictures"), results, strict=True):
        low = read_rgb(out / "low" / path.name)
        _write(out / "restored" / path.name, restored)
        pairs.append(Pair(path.stem, imresize(low, scale), restored, _note(found, path.stem, restorer.name), ("bicubic", restorer.name)))
    write_evaluation(found, out)
    small = SIDE // scale
    write_page(out / REPORT, pairs, f"{small} x {small} pixels enlarged {scale} times: bicubic and {restorer.name}", _table(found))
    print_evaluation(found)
    say(f"{time.monotonic() - began:.0f} s; pictures and tables: {out / REPORT}")
    return found


def _write(path: Path, pixels: Pixels) -> None:
    write_picture(path, strips_of(pixels), pixels.shape[:2], pixels.shape[2], pixels.dtype)


def _note(found: Evaluation, picture: str, name: str) -> str:
    values = {method: next(row.values for row in found.results[method].rows if row.name == picture) for method in ("bicubic", name)}
    return ", ".join(f"{method} {scores['psnr_y']:.2f} dB, SSIM {scores['ssim_y']:.4f}" for method, scores in values.items()) + " (luma)"


def _table(found: Evaluation) -> str:
    columns = next(iter(found.results.values())).summary
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("mean", *found.results))
    lines = []
    for column in columns:
        values = "".join(
            f"<td>{result.summary[column]:.{2 if column.startswith('psnr') else 4}f}</td>" for result in found.results.values()
        )
        lines.append(f"<tr><td title='{html.escape(found.conventions.describe(column))}'>{LABELS[column]}</td>{values}</tr>")
    convention = html.escape(found.conventions.describe("psnr_y"))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table><p class='note'>{convention}</p>"


Drawing = npt.NDArray[np.float64]
"""(H, W, 3) in [0, 1]."""


def _grid(side: int) -> tuple[Drawing, Drawing]:
    y, x = np.mgrid[:side, :side] / side
    return y, x


def _edge(distance: Drawing, side: int) -> Drawing:
    """1 inside (distance below 0), 0 outside, a pixel of transition: shapes drawn so have no staircase."""
    return np.clip(0.5 - distance * side, 0, 1)


def _over(picture: Drawing, mask: Drawing, colour: tuple[float, float, float]) -> Drawing:
    return picture + mask[..., None] * (np.array(colour) - picture)


def draw_discs(side: int) -> Drawing:
    """Discs and rings of many sizes."""
    y, x = _grid(side)
    picture = np.stack([0.85 - 0.2 * y, 0.82 - 0.1 * x, 0.75 + 0.1 * y], 2)
    rng = np.random.default_rng(1)
    for _ in range(40):
        cy, cx, radius = rng.random(), rng.random(), rng.uniform(0.02, 0.12)
        distance = np.hypot(y - cy, x - cx)
        ring = distance - radius if rng.random() < 0.6 else np.abs(distance - radius) - 0.008
        red, green, blue = rng.random(3)
        picture = _over(picture, _edge(ring, side), (red, green, blue))
    return picture


def draw_city(side: int) -> Drawing:
    """Houses with windows under an evening sky."""
    y, x = _grid(side)
    picture = np.stack([0.95 - 0.5 * (1 - y), 0.6 - 0.2 * (1 - y), 0.45 + 0.3 * (1 - y)], 2)
    rng = np.random.default_rng(2)
    left = 0.0
    while left < 1:
        width, top, shade = rng.uniform(0.08, 0.2), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.4)
        house = np.maximum(np.maximum(left - x, x - left - width), top - y)
        picture = _over(picture, _edge(house, side), (shade, shade, shade * 1.2))
        u, v = (x - left) / 0.03 % 1, (y - top) / 0.045 % 1
        window = np.maximum(np.maximum(np.abs(u - 0.5) - 0.28, np.abs(v - 0.5) - 0.3) * 0.03, house + 0.012)
        lit = 0.9 if rng.random() < 0.6 else 0.55
        picture = _over(picture, _edge(window, side), (lit, lit * 0.85, 0.4))
        left += width + rng.uniform(0, 0.03)
    return picture


def draw_rays(side: int) -> Drawing:
    """Spokes that grow finer towards the centre."""
    y, x = _grid(side)
    angle, radius = np.arctan2(y - 0.5, x - 0.5), np.hypot(y - 0.5, x - 0.5)
    wave = 0.5 + 0.5 * np.clip(np.sin(18 * angle) * radius * side / 9, -1, 1)
    picture = np.stack([wave, 0.2 + 0.6 * wave, 0.9 - 0.7 * wave], 2)
    return _over(picture, _edge(0.03 - 0 * radius - (0.06 - radius), side), (0.9, 0.2, 0.2))


def draw_weave(side: int) -> Drawing:
    """A woven cloth with a slow change of colour."""
    y, x = _grid(side)
    u, v = 14 * (x + 0.3 * y), 14 * (y - 0.3 * x)
    over = (np.floor(u) + np.floor(v)) % 2
    thread = np.where(over == 1, np.sin(math.pi * (u % 1)), np.sin(math.pi * (v % 1))) ** 0.7
    colours = np.where(
        over[..., None] == 1,
        np.stack([0.3 + 0.5 * x, 0.4 + 0 * x, 0.7 - 0.4 * y], 2),
        np.stack([0.9 - 0.3 * y, 0.8 - 0.4 * x, 0.5 + 0 * x], 2),
    )
    return colours * (0.35 + 0.65 * thread[..., None])


def draw_letters(side: int) -> Drawing:
    """Text in several sizes."""
    from PIL import Image, ImageDraw, ImageFont

    big = 4 * side
    image = Image.new("RGB", (big, big), (244, 240, 230))
    pen = ImageDraw.Draw(image)
    top = big // 40
    for size, text in (
        (16, "Restoration"),
        (12, "of pictures drawn"),
        (9, "and made small again."),
        (7, "How much of this can be read?"),
        (22, "R2"),
    ):
        font = ImageFont.load_default(size=size * big // 120)
        pen.text((big // 30, top), text, fill=(30, 30, 60), font=font)
        top += size * big // 85
    return np.asarray(image.resize((side, side), Image.Resampling.BOX)) / 255.0


DRAWINGS: dict[str, Callable[[int], Drawing]] = {
    "discs": draw_discs,
    "city": draw_city,
    "rays": draw_rays,
    "weave": draw_weave,
    "letters": draw_letters,
}
