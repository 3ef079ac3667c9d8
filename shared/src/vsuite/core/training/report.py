"""`report.html` of a run folder, and the pieces that other reports are made of.

A page is one file without scripts or network: charts are inline SVG, pictures are embedded. It follows the reader's
light or dark mode and the width of the screen.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsuite.core.errors import InputError
from vsuite.core.files import write_text

Points = Sequence[tuple[float, float | None]]

MOST_PICTURES = 24
MOST_POINTS = 400  # of a line; more are averaged in bins, since no screen shows them
WIDTH, HEIGHT = 370, 245
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 42

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2329; --faint: #66707a; --line: #dfe3e8; --card: #f6f8fa;
  --c0: #0b66c3; --c1: #c4520a; --c2: #1a7f4b; --c3: #8a3ffc; --c4: #b3261e; --c5: #00808a; --c6: #8b6a00; --c7: #c2258f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaee; --faint: #98a3ae; --line: #313942; --card: #1c2229;
  --c0: #6bb0ff; --c1: #ff9f5a; --c2: #5fd08f; --c3: #c19bff; --c4: #ff8a80; --c5: #4fd4de; --c6: #e0c04c; --c7: #ff8fd0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px 16px 48px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 32px 0 10px; }
p { margin: 4px 0 12px; } .faint { color: var(--faint); }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); align-items: start; }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-size: 0.9rem; margin-bottom: 4px; overflow-wrap: anywhere; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font-size: 12px; }
svg .axis { stroke: var(--line); fill: none; }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .point { fill: transparent; } svg .point:hover { fill: currentColor; } svg .point.shown { fill: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 0.85rem; margin-top: 4px; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle; background: currentColor; }
.legend span span { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto; font-size: 0.85rem; }
summary { cursor: pointer; }
""" + "".join(f".c{i} {{ color: var(--c{i}); stroke: var(--c{i}); }}\n" for i in range(8))


def page(title: str, sections: Sequence[tuple[str, str]], *, subtitle: str = "", tab: str = "") -> str:
    """A whole HTML page.

    Args:
        sections: (heading, HTML) pairs; one with empty HTML is left out.
        subtitle: a line of plain text below the title.
        tab: the title of the window; `title` unless given.
    """
    body = "".join(f"<section><h2>{html.escape(heading)}</h2>\n{content}</section>\n" for heading, content in sections if content)
    below = f'<p class="faint">{html.escape(subtitle)}</p>\n' if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(tab or title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{below}{body}</body></html>\n"
    )


def grid(figures: Sequence[str]) -> str:
    """Charts and pictures side by side, as many as the screen is wide."""
    return f'<div class="grid">{"".join(figures)}</div>\n' if figures else ""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers are flush right and get four significant digits, None is a dash."""

    def cell(value: Any, tag: str, number: bool) -> str:
        return f'<{tag} class="number">{html.escape(_text(value))}</{tag}>' if number else f"<{tag}>{html.escape(_text(value))}</{tag}>"

    numbers = [
        all(row[i] is None or (isinstance(row[i], int | float) and not isinstance(row[i], bool)) for row in rows)
        for i in range(len(header))
    ]
    head = "".join(cell(name, "th", number) for name, number in zip(header, numbers, strict=True))
    body = "".join("<tr>" + "".join(cell(v, "td", n) for v, n in zip(row, numbers, strict=True)) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(path: str | Path, caption: str | None = None) -> str:
    """A PNG file, embedded; the caption is the file's name unless given."""
    path = Path(path)
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    shown = html.escape(path.stem.replace("_", " ") if caption is None else caption)
    return f'<figure><figcaption>{shown}</figcaption><img alt="{shown}" src="data:image/png;base64,{data}"></figure>\n'


def line_chart(title: str, series: Mapping[str, Points], *, x_label: str = "step", logarithmic: bool | None = None) -> str:
    """Lines over common axes, as inline SVG with a legend and the values on hovering.

    Args:
        series: name -> (x, y) points in order of x; a y that is None or not finite breaks the line.
        logarithmic: scale of y; None chooses it for positive values that span more than a factor of 100.
    """
    lines = {name: _thinned(points) for name, points in series.items()}
    known = [(x, y) for points in lines.values() for x, y in points if y is not None]
    if not known:
        return ""
    lowest, highest = min(y for _, y in known), max(y for _, y in known)
    if logarithmic is None:
        logarithmic = lowest > 0 and highest > 100 * lowest
    left, right = min(x for x, _ in known), max(x for x, _ in known)
    if 0 < left < right / 2:
        left = 0.0
    y_ticks = _log_ticks(lowest, highest) if logarithmic else _ticks(lowest, highest)
    bottom, top = min(y_ticks[0], lowest), max(y_ticks[-1], highest)

    def scaled(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    def place_x(x: float) -> float:
        return LEFT + scaled(x, left, right) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        part = scaled(math.log(y), math.log(bottom), math.log(top)) if logarithmic else scaled(y, bottom, top)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    shapes = []
    for tick in y_ticks:
        y = place_y(tick)
        shapes.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        shapes.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(left, right, most=5):
        if left <= tick <= right:
            x, label = place_x(tick), f"{tick:,.6g}"
            middle = min(x, WIDTH - 3.5 * len(label))  # kept inside the picture
            shapes.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
            shapes.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    shapes.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{html.escape(x_label)}</text>')
    for i, (name, points) in enumerate(lines.items()):
        shapes.append(f'<g class="c{i % 8}">{_curve(name, points, place_x, place_y, x_label)}</g>')
    legend = "".join(f'<span class="c{i % 8}"><i></i><span>{html.escape(name)}</span></span>' for i, name in enumerate(lines))
    note = ' <span class="faint">(logarithmic)</span>' if logarithmic else ""
    return (
        f"<figure><figcaption>{html.escape(title)}{note}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(shapes)}</svg>'
        f'{f"""<div class="legend">{legend}</div>""" if len(lines) > 1 else ""}</figure>\n'
    )


def _curve(name: str, points: Points, place_x: Any, place_y: Any, x_label: str) -> str:
    path, marks, pen = "", [], "M"
    alone = len(points) <= 30  # few points are drawn, since a line alone hides how few they are
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        path += f"{pen}{place_x(x):.1f} {place_y(y):.1f}"
        pen = "L"
        label = html.escape(f"{name}: {y:.5g} at {x_label} {x:,.7g}")
        size = 'class="point shown" r="2.5"' if alone else 'class="point" r="5"'
        marks.append(f'<circle {size} stroke="none" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}"><title>{label}</title></circle>')
    return f'<path class="curve" stroke="currentColor" d="{path}"/>{"".join(marks)}'


def _thinned(points: Points) -> list[tuple[float, float | None]]:
    """At most `MOST_POINTS` points, each the mean of a bin; what is not finite becomes None."""
    clean = [(float(x), float(y) if y is not None and math.isfinite(y) else None) for x, y in points]
    size = math.ceil(len(clean) / MOST_POINTS)
    if size <= 1:
        return clean
    bins = [clean[i : i + size] for i in range(0, len(clean), size)]
    thin: list[tuple[float, float | None]] = []
    for chunk in bins:
        values = [y for _, y in chunk if y is not None]
        thin.append((sum(x for x, _ in chunk) / len(chunk), sum(values) / len(values) if values else None))
    return thin


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover low..high: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 6) or 1
    return [10.0**i for i in range(first, last + every, every)]


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` of a run folder from what the folder holds, also while the run goes on.

    Raises:
        InputError: for a folder without a run, or one that cannot be written to.
    """
    from vsuite.core.training.progress import duration, read_records

    folder = Path(folder)
    if not (folder / "settings.yaml").exists():
        raise InputError(f"{folder}: is no run folder: it has no settings.yaml")
    records = read_records(folder / "metrics.jsonl")
    losses = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    place = "/".join(folder.resolve().parts[-2:])
    state = "nothing logged yet"
    if losses:
        last = losses[-1]
        state = f"step {last['step']:,}, epoch {last['epoch']:.4g}, {duration(last['seconds'])} of training"
    settings = (folder / "settings.yaml").read_text(encoding="utf-8")
    sections = [
        ("Validation", _validation_table(validations, settings)),
        ("Curves", grid(_loss_charts(losses) + _validation_charts(validations))),
        ("Pictures", _pictures(folder / "pictures")),
        ("Settings", f"<details><summary>All settings of this run</summary><pre>{html.escape(settings)}</pre></details>"),
    ]
    title = _title(settings)
    write_text(folder / "report.html", page(title, sections, subtitle=f"{place}, {state}", tab=f"{title}: {place}"))
    return folder / "report.html"


def _title(settings: str) -> str:
    """What was trained and by which recipe, as far as the settings say so."""
    import yaml

    values = yaml.safe_load(settings)
    model, recipe = _find(values, "model"), values.get("name") if isinstance(values, Mapping) else None
    by = f" by the recipe {recipe}" if isinstance(recipe, str) else ""
    if not isinstance(model, str):
        return f"Training{by}"
    return f"{model} trained{by}" if by else f"Training of {model}"


def _loss_charts(losses: Sequence[Mapping[str, Any]]) -> list[str]:
    if not losses:
        return []
    names = list(losses[-1]["terms"])
    lines: dict[str, Points] = {"loss": [(record["step"], record["loss"]) for record in losses]}
    if len(names) > 1:
        lines |= {name: [(record["step"], record["terms"].get(name)) for record in losses] for name in names}
    rates = [(record["step"], record["learning_rate"]) for record in losses]
    return [line_chart("Training loss", lines), line_chart("Learning rate", {"learning rate": rates}, logarithmic=False)]


def _validation_charts(validations: Sequence[Mapping[str, Any]]) -> list[str]:
    """One chart for each metric, with those of the same name before a slash on one chart."""
    charts: dict[str, dict[str, Points]] = {}
    for name in dict.fromkeys(name for record in validations for name in record["validation"]):
        points = [(record["step"], record["validation"].get(name)) for record in validations]
        charts.setdefault(name.split("/", 1)[0], {})[name.split("/", 1)[-1]] = points
    return [line_chart(f"Validation: {title}", lines) for title, lines in charts.items()]


def _validation_table(validations: Sequence[Mapping[str, Any]], settings: str) -> str:
    """The last metrics and the best, by the metric that the settings name."""
    if not validations:
        return ""
    import yaml

    name, mode = _find(yaml.safe_load(settings), "best_metric"), _find(yaml.safe_load(settings), "best_mode")
    last = validations[-1]
    ranked = [record for record in validations if record["validation"].get(name) is not None]
    best = (max if mode == "max" else min)(ranked, key=lambda record: record["validation"][name]) if ranked else last
    rows = [[metric, best["validation"].get(metric), value] for metric, value in last["validation"].items()]
    header = ["metric", f"best weights (step {best['step']:,})", f"last (step {last['step']:,})"]
    chosen = f'<p class="faint">Best by {html.escape(str(name))} ({"more" if mode == "max" else "less"} is better).</p>' if name else ""
    return table(header, rows) + chosen


def _find(settings: Any, key: str) -> Any:
    """The value of a key at any depth, since domains nest the training settings in theirs."""
    if not isinstance(settings, Mapping):
        return None
    if key in settings:
        return settings[key]
    return next((found for value in settings.values() if (found := _find(value, key)) is not None), None)


def _pictures(folder: Path) -> str:
    paths = sorted(folder.glob("*.png"))
    newest = sorted(paths, key=lambda path: path.stat().st_mtime)[-MOST_PICTURES:]
    note = f'<p class="faint">The newest {len(newest)} of {len(paths)}; the others are in {html.escape(folder.name)}/.</p>'
    return (note if len(paths) > len(newest) else "") + grid([picture(path) for path in paths if path in newest])
