"""The stand-alone page and the live viewer in headless Chromium: what pixels show, what controls change, what is asked from a network."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.pointcloud.viewer import ClassColours, Scene, save_page
from vsuite.pointcloud.viewer.colours import COLOUR_MAP, ERRORS

pytestmark = pytest.mark.slow
HOSTILE = '</script><img src="http://example.org/x" onerror="document.title=1">{{data}}'
PAINTS = {"orange": ClassColours()["car"], "blue": tuple(COLOUR_MAP[0].tolist()), "red": tuple(COLOUR_MAP[255].tolist())}


def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    frames = []
    for number in range(3):
        ground = np.column_stack([rng.uniform(-15, 15, (6000, 2)), np.full(6000, -1.0)])
        wall = np.column_stack([np.full(1500, 14.0), rng.uniform(-15, 15, 1500), rng.uniform(-1, 4, 1500)])
        boxes = np.array([[0, 4, 0, 4, 2, 1.6, 0.4], [3, -5, 0, 4, 2, 1.6, 1.5]], np.float32) + number * np.eye(7, dtype=np.float32)[0]
        frames.append(
            Scene(
                HOSTILE if number == 2 else f"frame {number}",
                np.concatenate([ground, wall, boxes[0, :3] + rng.uniform(-0.6, 0.6, (500, 3))]),
                columns={"intensity": rng.uniform(0, 1, 8000)},
                boxes=boxes,
                box_labels=["car", "car" if number == 0 else HOSTILE],
                box_scores=np.array([0.9, 0.4]),
                truth_boxes=boxes[:1],
                truth_labels=["car"],
            )
        )
    return frames


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver on this machine")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    drawing = "use-angle=swiftshader enable-unsafe-swiftshader window-size=800,600"
    for argument in (*switches.split(), *drawing.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield started
    started.quit()


def requests(browser: Any) -> set[str]:
    """Addresses that the browser asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    return asked | {event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"}


def pixels(browser: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")).astype(int)[:, :450]  # left of the panel


def count(browser: Any, colour: tuple[int, ...], tolerance: int = 30) -> int:
    return int((np.abs(pixels(browser) - colour).max(2) <= tolerance).sum())


def until(condition: Callable[[], Any], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.2)


def put(browser: Any, control: str, value: object) -> None:
    """Moves a control of the page as a hand would, and waits for the drawing."""
    script = "const c = document.getElementById(arguments[0]); c.value = arguments[1]; c.dispatchEvent(new Event('input'));"
    browser.execute_script(script, control, value)
    wait_for_frames(browser)


def wait_for_frames(browser: Any) -> None:
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));")


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    save_page(scenes(), tmp_path / "page.html")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get((tmp_path / "page.html").as_uri())
    wait_for_frames(browser)
    return browser


def test_the_page_shows_boxes_and_colours_and_its_sliders_change_them(page: Any) -> None:
    both = count(page, PAINTS["orange"], 8)
    assert both > 200
    assert count(page, PAINTS["blue"]) > 1000, "the ground is at the lower end of the heights"
    put(page, "score", 0.5)
    one = count(page, PAINTS["orange"], 8)
    assert 0.2 * both < one < 0.8 * both
    assert page.find_element("id", "status").text.count("1 of 2 boxes") == 1
    put(page, "score", 0.95)
    assert count(page, PAINTS["orange"], 8) < 0.05 * both
    put(page, "score", 0)
    page.find_element("css selector", "[data-class=car]").click()
    wait_for_frames(page)
    assert count(page, PAINTS["orange"], 8) < 0.05 * both
    page.find_element("css selector", "[data-class=car]").click()
    small = count(page, PAINTS["blue"])
    put(page, "size", 6)
    assert count(page, PAINTS["blue"]) > 2 * small
    put(page, "size", 2)
    put(page, "colour", "error")
    assert count(page, ERRORS["found"]) > 20
    assert count(page, PAINTS["blue"]) < 0.02 * small
    put(page, "colour", "height")
    put(page, "high", 1)
    assert count(page, PAINTS["red"]) > 100, "nearly all of the wall is beyond the end of the range"


def test_the_page_plays_turns_picks_and_changes_its_background(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    first = pixels(page)
    canvas = page.find_element("id", "points")
    ActionChains(page).drag_and_drop_by_offset(canvas, 90, 30).perform()
    time.sleep(0.5)
    assert (pixels(page) != first).any(2).mean() > 0.05, "a drag orbits"
    page.find_element("id", "reset").click()
    wait_for_frames(page)
    assert (pixels(page) != first).any(2).mean() < 0.01
    spot = page.execute_script("const b = data.frames[0].boxes[0]; return projector()(b[0], b[1], b[2]);")
    size = canvas.size
    ActionChains(page).move_to_element_with_offset(
        canvas, round(spot[0] - size["width"] / 2), round(spot[1] - size["height"] / 2)
    ).click().perform()
    facts = page.find_element("id", "facts").text.split("\n")
    assert "0.900" in facts or "true box" in facts
    assert "car" in facts
    page.find_element("id", "play").click()
    until(lambda: page.execute_script("return state.frame") == 2)
    page.find_element("id", "play").click()
    page.find_element("id", "theme").click()
    wait_for_frames(page)
    assert count(page, (246, 247, 249), 3) > 20_000
    page.find_element("id", "top").click()
    wait_for_frames(page)


def test_hostile_names_stay_names_and_nothing_is_asked_from_a_network(page: Any) -> None:
    put(page, "frame", 2)
    assert page.find_element("id", "name").text == HOSTILE
    assert HOSTILE in page.find_element("id", "classes").text
    assert page.title == "frame 0"
    assert not page.find_elements("tag name", "img")
    assert [url for url in requests(page) if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("points", [0, 1])
def test_the_page_of_hardly_any_points_works(browser: Any, tmp_path: Path, points: int) -> None:
    save_page([Scene("few", np.ones((points, 3)), columns={"intensity": np.ones(points)})], tmp_path / "page.html")
    browser.get_log("browser")
    browser.get((tmp_path / "page.html").as_uri())
    put(browser, "colour", "intensity")
    assert browser.find_element("id", "status").text == f"{points} points"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_page_says_that_it_is_thinned(browser: Any, tmp_path: Path) -> None:
    save_page(scenes(), tmp_path / "page.html", most_points=3000)
    browser.get((tmp_path / "page.html").as_uri())
    wait_for_frames(browser)
    assert browser.find_element("id", "status").text.startswith("thinned: 1,000 points of 8,000")


def test_without_frames_or_with_an_unknown_colour_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame"):
        save_page([], tmp_path / "page.html")
    with pytest.raises(InputError, match="rgb"):
        save_page(scenes(), tmp_path / "page.html", colour="rgb")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def live(browser: Any) -> Iterator[tuple[Any, Any]]:
    from vsuite.pointcloud.viewer.app import Viewer

    viewer = Viewer(scenes(), port=0)
    browser.get_log("performance")
    browser.get(viewer.address)
    until(lambda: viewer.server.get_clients() and count(browser, PAINTS["blue"]) > 1000)
    yield viewer, browser
    browser.get("about:blank")
    viewer.stop()


def test_the_live_viewer_draws_filters_plays_thins_and_stays_on_the_machine(live: tuple[Any, Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    viewer, browser = live
    orange = (235, 160, 60)  # after viser's tone mapping
    until(lambda: count(browser, orange, 50) > 200)
    both = count(browser, orange, 50)
    viewer.score.value = 0.95
    until(lambda: count(browser, orange, 50) < both / 4)
    viewer.score.value = 0.0
    until(lambda: count(browser, orange, 50) > both / 2)
    viewer.class_boxes["car"].value = False
    until(lambda: count(browser, orange, 50) < both / 4)
    viewer.class_boxes["car"].value = True
    viewer.colour.value = "error"
    until(lambda: count(browser, ERRORS["found"]) > 10 and count(browser, PAINTS["blue"]) < 50)
    canvas = browser.find_element("css selector", "canvas")
    assert not viewer._points("some").visible
    time.sleep(1)
    ActionChains(browser).click_and_hold(canvas).move_by_offset(60, 20).perform()
    until(lambda: time.monotonic() - viewer.last_move < 5)
    ActionChains(browser).release().perform()
    until(lambda: viewer._points("whole").visible and not viewer._points("some").visible)
    viewer.show(2)
    assert "&lt;/script&gt;" in viewer.name.content
    assert "<img" not in viewer.name.content + viewer.legend.content
    outside = [url for url in requests(browser) if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))]
    assert outside == []


def test_ports_that_cannot_be_had_are_said_in_one_line() -> None:
    import socket

    from vsuite.pointcloud.viewer.app import Viewer

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="another, or 0"):
            Viewer(scenes(), port=taken.getsockname()[1])
    with pytest.raises(InputError, match="65535"):
        Viewer(scenes(), port=70000)


def test_the_live_viewer_listens_on_the_loopback_address_and_ends_with_an_interrupt() -> None:
    import signal
    import subprocess
    import sys
    import urllib.request

    code = "import numpy; from vsuite.pointcloud.viewer import Scene, view; view([Scene('s', numpy.ones((5, 3)))], port=0)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[0], timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ""
    assert "Traceback" not in errors


def test_a_frame_that_cannot_be_read_is_said_and_the_next_one_shows() -> None:
    from vsuite.pointcloud.viewer import LazyScenes
    from vsuite.pointcloud.viewer.app import Viewer

    def load(index: int) -> Scene:
        if index == 1:
            raise InputError("b.bin: is <empty>")
        return Scene(f"frame {index}", np.ones((4, 3)))

    viewer = Viewer(LazyScenes(["a", "b", "c"], load), port=0)
    viewer.show(1)
    assert "b.bin: is &lt;empty&gt;" in viewer.name.content
    viewer.show(2)
    assert "frame 2" in viewer.name.content
    viewer.stop()
