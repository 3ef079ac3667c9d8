"""A page with a slider between before and after: one HTML file without anything from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsuite.core.files import write_text
from vsuite.restoration.images import Pixels, has_alpha, open_image

LONGEST_SIDE = 2048  # pixels on the page; larger results are shown reduced
SHORTEST_WIDTH = 512  # smaller ones are shown enlarged


@dataclass(frozen=True)
class Pair:
    """One picture of the page.

    Attributes:
        title: above it.
        before, after: (H, W, C), uint8; before is shown in the size of after.
        note: below it, such as scores.
        labels: what before and after are called on the picture.
    """

    title: str
    before: Pixels
    after: Pixels
    note: str = ""
    labels: tuple[str, str] = ("before", "after")


def pair_of_files(before: str | Path, after: str | Path) -> Pair:
    """A pair from two picture files, of any depth; raises `InputError` where one cannot be read."""
    return Pair(Path(before).name, _shown(before), _shown(after))


def _shown(path: str | Path) -> Pixels:
    """8-bit RGB or RGBA, upright, reduced to what the page shows."""
    from PIL import Image, ImageOps

    with open_image(path) as image:
        image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a large JPEG is decoded small
        shown = ImageOps.exif_transpose(image)
        if shown.mode.startswith("I;16"):
            shown = Image.fromarray((np.asarray(shown) >> 8).astype(np.uint8))
        shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return np.asarray(shown.convert("RGBA" if has_alpha(shown) else "RGB"))


def write_page(path: str | Path, pairs: Iterable[Pair], title: str = "Before and after", table: str = "") -> None:
    """Writes the page.

    Args:
        path: ends in .html.
        pairs: one slider each; a generator is taken pair by pair, so that only what the page holds lies in memory.
        table: HTML to put above the sliders.
    """
    sliders = "\n".join(map(_slider, pairs))
    write_text(path, PAGE.format(title=html.escape(title), table=table, sliders=sliders))


def _slider(pair: Pair) -> str:
    height, width = pair.after.shape[:2]
    return SLIDER.format(
        title=html.escape(pair.title),
        note=html.escape(pair.note),
        width=width,
        height=height,
        shown=max(width, SHORTEST_WIDTH),
        before=_data(pair.before),
        after=_data(pair.after),
        left=html.escape(pair.labels[0]),
        right=html.escape(pair.labels[1]),
    )


def _data(pixels: Pixels) -> str:
    """The picture as a data URI: PNG while that is small, else JPEG (or WebP, which keeps transparency)."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small = pixels.shape[0] * pixels.shape[1] <= 1 << 18
    kind = "png" if small else "webp" if pixels.shape[2] in (2, 4) else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), **({} if kind == "png" else {"quality": 92}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


SLIDER = """<figure>
<figcaption>{title}</figcaption>
<div class="pair" style="aspect-ratio: {width} / {height}; width: min(100%, {shown}px)">
<img class="before" alt="before" src="{before}"><img class="after" alt="after" src="{after}">
<div class="line"></div><span class="tag left">{left}</span><span class="tag right">{right}</span>
<input type="range" min="0" max="100" value="50" step="0.1" aria-label="how much of the picture shows {left}">
</div>
<p class="note">{note}</p>
</figure>"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: 2080px; padding: 0 1rem; background: #101214; color: #e6e6e6; font: 15px/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #333; }}
td:first-child, th:first-child {{ text-align: left; }}
figure {{ margin: 2rem 0; }} figcaption {{ font-weight: 600; margin-bottom: .4rem; }} .note {{ margin: .3rem 0; color: #9aa0a6; }}
.pair {{ position: relative; overflow: hidden; --at: 50%; background: repeating-conic-gradient(#444 0 25%, #555 0 50%) 0 0 / 16px 16px; }}
.pair img {{ position: absolute; inset: 0; width: 100%; height: 100%; }}
.before {{ clip-path: inset(0 calc(100% - var(--at)) 0 0); }} .after {{ clip-path: inset(0 0 0 var(--at)); }}
.pixels .before {{ image-rendering: pixelated; }}
.line {{ position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff; pointer-events: none; }}
.tag {{ position: absolute; bottom: 8px; padding: 0 .5rem; background: #0009; border-radius: 4px; pointer-events: none; }}
.left {{ left: 8px; }} .right {{ right: 8px; }}
.pair input {{ position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; touch-action: pan-y; }}
.pair:focus-within {{ outline: 2px solid #2dd48b; }}
</style></head>
<body>
<h1>{title}</h1>
{table}
<label><input type="checkbox" id="pixels"> show the pixels on the left as squares</label>
{sliders}
<script>
for (const pair of document.querySelectorAll(".pair")) {{
  const range = pair.querySelector("input");
  range.addEventListener("input", () => pair.style.setProperty("--at", range.value + "%"));
}}
document.getElementById("pixels").addEventListener("change", event => document.body.classList.toggle("pixels", event.target.checked));
</script>
</body></html>
"""
