"""Reports: one file without scripts or network that shows what the run folder holds."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.core.training.report import _log_ticks, _ticks, grid, line_chart, page, picture, table, write_report

PNG = b"\x89PNG\r\n\x1a\n not a real picture"


class Balanced(html.parser.HTMLParser):
    """Fails on tags that do not match; collects attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def run_folder(tmp_path: Path, *, validated: bool = True) -> Path:
    folder = tmp_path / "a <run> & more"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "case_7.png").write_bytes(PNG)
    (folder / "settings.yaml").write_text("data: <here>\ntraining:\n  best_metric: dice\n  best_mode: max\n")
    lines: list[dict[str, Any]] = []
    for step in range(10, 60, 10):
        terms = {"ce": 1 / step, "dice": 0.5 if step != 30 else None}
        lines.append(
            {"step": step, "epoch": step / 20, "loss": 1 / step + 0.5, "terms": terms, "learning_rate": 1e-3, "seconds": 3700.0 + step}
        )
        if validated and step % 20 == 0:
            lines.append({"step": step, "validation": {"dice": 0.9 - step / 100, "dice/liver": 0.25, "hd95": None}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 60, "lo')
    return folder


def test_the_report_shows_the_run_and_needs_nothing_else(tmp_path: Path) -> None:
    path = write_report(run_folder(tmp_path))
    text = path.read_text()
    parsed = Balanced(text)
    assert "a &lt;run&gt; &amp; more" in text
    assert "data: &lt;here&gt;" in text
    assert "step 50, epoch 2.5, 1:02:30 of training" in text
    assert not [a for a in parsed.attributes if a[0] in ("script", "link", "iframe")]
    assert all((value or "").startswith("data:image/png;base64,") for _, name, value in parsed.attributes if name in ("src", "href"))
    assert "@import" not in text
    assert "url(" not in text
    titles = re.findall(r"<figcaption>([^<]*)", text)
    assert titles == ["Training loss", "Learning rate", "Validation: dice", "case 7"]  # nothing known of hd95, so no chart
    assert "best weights (step 20)" in text
    assert "last (step 40)" in text
    rows = re.findall(r"<tr><td>(.*?)</td><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>", text)
    assert rows == [("dice", "0.7", "0.5"), ("dice/liver", "0.25", "0.25"), ("hd95", "-", "-")]


def test_a_report_may_be_written_before_anything_is_logged(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, validated=False)
    (folder / "metrics.jsonl").unlink()
    text = write_report(folder).read_text()
    Balanced(text)
    assert "nothing logged yet" in text
    assert "<svg" not in text


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ("name: hippocampus\nplan: {model: segformer3d}\ntraining: {steps: 3}\n", "segformer3d trained by the recipe hippocampus"),
        ("model: swin_tiny\ntraining: {steps: 3}\n", "Training of swin_tiny"),
        ("name: mine\ntraining: {steps: 3}\n", "Training by the recipe mine"),
        ("steps: 3\n", "Training"),
        ("name: [1]\nplan: {model: null}\n", "Training"),
    ],
)
def test_the_title_says_what_is_trained(tmp_path: Path, settings: str, title: str) -> None:
    folder = tmp_path / "demo" / "run"
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(settings)
    text = write_report(folder).read_text()
    assert f"<h1>{title}</h1>" in text
    assert f"<title>{title}: demo/run</title>" in text
    assert '<p class="faint">demo/run, nothing logged yet</p>' in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        write_report(tmp_path)


def coordinates(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg)]


def test_a_line_goes_where_its_values_are() -> None:
    svg = line_chart("a", {"one": [(0, 0.0), (5, 5.0), (10, 10.0)]})
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2
    assert y0 > y2  # up is more
    assert "one: 5 at step 5" in svg
    assert 'class="legend"' not in svg  # one line needs none
    assert 'class="legend"' in line_chart("a", {"one": [(0, 0.0)], "two": [(0, 1.0)]})


def test_decades_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    svg = line_chart("a", {"one": [(0, 1.0), (1, 0.1), (2, 0.001)]})
    assert "(logarithmic)" in svg
    y = [place[1] for place in coordinates(svg)]
    assert (y[2] - y[1]) == pytest.approx(2 * (y[1] - y[0]), abs=0.2)
    assert "(logarithmic)" not in line_chart("a", {"one": [(0, 1.0), (1, 0.5)]})


def test_gaps_break_the_line() -> None:
    svg = line_chart("a", {"one": [(0, 1.0), (1, None), (2, float("nan")), (3, 2.0)]})
    path = re.search(r'class="curve"[^>]* d="([^"]*)"', svg)
    assert path is not None
    assert path.group(1).count("M") == 2
    assert "L" not in path.group(1)
    assert line_chart("a", {"one": [(0, None)]}) == ""


def test_long_lines_are_averaged_and_keep_their_mean() -> None:
    svg = line_chart("a", {"one": [(i, float(i % 2)) for i in range(100_000)]})
    assert len(svg) < 120_000
    assert len(coordinates(svg)) <= 400
    assert ": 0.5 at step" in svg


numbers = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(low=numbers, high=numbers)
def test_ticks_cover_their_range_with_few_round_numbers(low: float, high: float) -> None:
    if not low < high or high - low < 1e-6 * max(abs(low), abs(high), 1e-3):
        return
    ticks = _ticks(low, high)
    slack = 1e-6 * (high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


@given(low=st.floats(1e-12, 1e6), factor=st.floats(1, 1e15))
def test_logarithmic_ticks_cover_their_range(low: float, factor: float) -> None:
    ticks = _log_ticks(low, low * factor)
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= low * factor * (1 - 1e-9)
    assert len(ticks) <= 9


@given(points=st.lists(st.tuples(st.integers(0, 10**7), st.none() | st.floats(width=32)), max_size=30), name=st.text(max_size=10))
def test_any_values_give_a_chart_inside_its_frame(points: list[tuple[int, float | None]], name: str) -> None:
    svg = line_chart(name, {name: sorted(points, key=lambda p: p[0])})
    Balanced(svg)
    assert "nan" not in re.sub(r"<title>.*?</title>|<figcaption>.*?</figcaption>|aria-label=\"[^\"]*\"", "", svg)
    for x, y in coordinates(svg):
        assert 0 <= x <= 370
        assert 0 <= y <= 245


def test_a_table_aligns_numbers_and_escapes_text() -> None:
    text = table(["name", "dice"], [["<liver>", 0.123456], ["spleen", None]])
    Balanced(text)
    assert '<td class="number">0.1235</td>' in text
    assert "<td>&lt;liver&gt;</td>" in text
    assert '<td class="number">-</td>' in text


def test_pieces_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "a_b.png").write_bytes(PNG)
    text = page("Results", [("Cases", grid([picture(tmp_path / "a_b.png", "Case <1>")])), ("Nothing", "")], subtitle="two & two")
    Balanced(text)
    assert "Case &lt;1&gt;" in text
    assert "two &amp; two" in text
    assert "Nothing" not in text
    assert text.count("<section>") == 1
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        picture(tmp_path / "none.png")
