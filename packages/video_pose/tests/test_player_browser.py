"""The player of 3D poses in headless Chromium: what pixels show, what controls change, and that nothing is asked from a network."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.video_pose.render.page import write_player
from vsuite.video_pose.render.stage import LEFT, PERSON_COLOURS, RIGHT
from vsuite.video_pose.skeletons import H36M17

HOSTILE = '</script><img src="http://example.org/x" onerror="document.title=1">{{data}}'
FRAMES = 40


def person(x: float = 0.0) -> np.ndarray:
    """Somebody who walks 2 m to the right, in metres, y up; the height of each joint tells which one it is."""
    pose = np.zeros((17, 3))
    for joint, name in enumerate(H36M17.names):
        side = 1 if "left" in name else -1 if "right" in name else 0
        pose[joint] = 0.25 * side, 0.1 * joint, 0.1 * side
    return pose + np.linspace(0, 2, FRAMES)[:, None, None] * [1, 0, 0] + [x, 0, 0]


def test_places_survive_the_page(tmp_path: Path) -> None:
    import base64
    import re

    walk = person()
    walk[3, 5] = np.nan
    write_player(walk, tmp_path / "a.html", skeleton=H36M17, fps=20, title="a", up="z")
    found = re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text())
    assert found is not None
    data = json.loads(found[1])
    kept = np.frombuffer(base64.b64decode(data["people"][0]["places"]), "<i2").reshape(walk.shape)
    assert (kept[3, 5] == -32768).all()
    places = kept / data["scale"] + data["centre"]
    places[3, 5] = np.nan
    np.testing.assert_allclose(places, walk - [0, 0, np.nanmin(walk[..., 2])], atol=data["radius"] / 25_000)


@pytest.mark.parametrize(
    ("people", "changes", "message"),
    [
        (np.full((4, 17, 3), np.nan), {}, "no joint"),
        (np.zeros((4, 16, 3)), {}, "h36m17"),
        (np.zeros((4, 17, 2)), {}, "T, J, 3"),
        ([person(), person()[:5]], {}, "one number of frames"),
        ([], {}, "nobody"),
        (person(), {"fps": -1}, "fps"),
        (person(), {"up": "down"}, "axis"),
        (person(), {"names": ["a", "b"]}, "1 people and 2 names"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path: Path, people: Any, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_player(people, tmp_path / "a.html", **({"skeleton": H36M17, "fps": 20, "title": "a"} | changes))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"\.html"):
        write_player(person(), tmp_path / "a.pdf", skeleton=H36M17, fps=20, title="a")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver on this machine")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    for argument in (*switches.split(), "disable-gpu", "window-size=900,640", f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield started
    started.quit()


def opened(browser: Any, path: Path, **changes: Any) -> Any:
    write_player(changes.pop("people", person()), path, **({"skeleton": H36M17, "fps": 20, "title": "walk", "up": "y"} | changes))
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    settle(browser)
    return browser


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    return opened(browser, tmp_path / "page.html")


def settle(browser: Any) -> None:
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));")


def pixels(browser: Any) -> np.ndarray:
    """Of the canvas, left of the panel and above the bar."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")).astype(int)[:-60, :680]


def near(browser: Any, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return (np.abs(pixels(browser) - colour).max(axis=2) <= 25).nonzero()


def put(browser: Any, control: str, value: object) -> None:
    script = "const c = document.getElementById(arguments[0]); c.value = arguments[1]; c.dispatchEvent(new Event('input'));"
    browser.execute_script(script, control, value)
    settle(browser)


def click(browser: Any, control: str) -> None:
    browser.find_element("id", control).click()
    settle(browser)


@pytest.mark.slow
def test_the_skeleton_shows_and_scrubbing_moves_it(page: Any) -> None:
    left, right = near(page, LEFT), near(page, RIGHT)
    assert min(len(left[0]), len(right[0])) > 300
    click(page, "front")
    before = near(page, LEFT)[1].mean()
    assert before > near(page, RIGHT)[1].mean(), "x points to the right when it is seen from the front"
    put(page, "frame", FRAMES - 1)
    assert near(page, LEFT)[1].mean() > before + 100, "it has walked to the right"
    assert page.find_element("id", "time").text.split() == ["40", "/", "40", "1.95", "s"]


@pytest.mark.slow
def test_it_plays_at_its_rate_pauses_and_steps_by_keys(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    canvas, first = page.find_element("id", "view"), pixels(page)
    put(page, "speed", "0.5")
    canvas.send_keys(" ")
    begin = time.monotonic()
    time.sleep(1.0)
    frame, passed = page.execute_script("return state.frame"), time.monotonic() - begin
    assert 0 < frame <= 0.5 * 20 * passed + 1
    assert page.find_element("id", "play").text == "Pause"
    assert (pixels(page) != first).any(axis=2).mean() > 0.005, "playing changes the picture"
    canvas.send_keys(" ")
    stopped = page.execute_script("return state.frame")
    time.sleep(0.3)
    assert page.execute_script("return state.frame") == stopped
    for keys, wanted in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.ARROW_LEFT * 2, FRAMES - 1), (Keys.END, FRAMES - 1)):
        canvas.send_keys(keys)
        assert page.execute_script("return state.frame") == wanted
    click(page, "loop")
    put(page, "speed", "4")
    put(page, "frame", FRAMES - 3)
    click(page, "play")
    time.sleep(0.8)
    assert page.execute_script("return [state.frame, state.playing]") == [FRAMES - 1, False], "without repeating it ends at the end"


@pytest.mark.slow
def test_a_drag_orbits_a_wheel_and_two_fingers_zoom_and_reset_goes_back(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    canvas, first = page.find_element("id", "view"), pixels(page)
    ActionChains(page).drag_and_drop_by_offset(canvas, 120, 0).perform()
    settle(page)
    assert page.execute_script("return camera.azimuth") == pytest.approx(0.45 + 0.96, abs=0.1)
    assert (pixels(page) != first).any(axis=2).mean() > 0.01
    click(page, "reset")
    assert (pixels(page) == first).all()
    far = page.execute_script("return camera.distance")
    page.execute_script("document.getElementById('view').dispatchEvent(new WheelEvent('wheel', {deltaY: -300, cancelable: true}))")
    assert page.execute_script("return camera.distance") == pytest.approx(far * np.exp(-0.3))
    click(page, "reset")
    fingers = {"pointerType": "touch"}
    touches = [
        {"type": "pointer", "id": f"finger{k}", "parameters": fingers, "actions": [
            {"type": "pointerMove", "duration": 0, "x": 300 + 40 * side, "y": 250},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 200, "x": 300 + 120 * side, "y": 250},
            {"type": "pointerUp", "button": 0},
        ]}
        for k, side in enumerate((-1, 1))
    ]  # fmt: skip
    page.execute("actions", {"actions": touches})
    settle(page)
    assert page.execute_script("return camera.distance") < 0.5 * far
    assert page.execute_script("return pointers.size") == 0


@pytest.mark.slow
def test_it_turns_light_and_dark_and_names_joints(page: Any) -> None:
    page.execute_script("state.dark = true; theme();")
    settle(page)
    assert (pixels(page)[5, 5] == (16, 18, 22)).all()
    plain = pixels(page)
    click(page, "names")
    assert (pixels(page) != plain).any(axis=2).sum() > 300
    click(page, "theme")
    assert (pixels(page)[5, 5] == (246, 247, 249)).all()
    assert len(near(page, LEFT)[0]) > 300


@pytest.mark.slow
def test_people_have_colours_of_their_own_can_be_hidden_and_be_absent(browser: Any, tmp_path: Path) -> None:
    other = person(-1.5)
    other[5:10] = np.nan
    page = opened(browser, tmp_path / "two.html", people=[person(), other])
    counts = [len(near(page, PERSON_COLOURS[k])[0]) for k in (0, 1)]
    assert min(counts) > 200
    put(page, "frame", 7)
    assert len(near(page, PERSON_COLOURS[1])[0]) == 0
    assert len(near(page, PERSON_COLOURS[0])[0]) > 0.5 * counts[0]
    page.find_elements("css selector", "#people input")[0].click()
    settle(page)
    assert len(near(page, PERSON_COLOURS[0])[0]) == 0


@pytest.mark.slow
def test_hostile_names_stay_names_and_nothing_leaves_the_machine(browser: Any, tmp_path: Path) -> None:
    page = opened(browser, tmp_path / "page.html", people=[person(), person(1)], title=HOSTILE, names=[HOSTILE, "b"])
    assert page.title == HOSTILE
    assert HOSTILE in page.find_element("id", "people").text
    assert not page.find_elements("tag name", "img")
    click(page, "play")
    time.sleep(0.2)
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_one_frame_of_one_point_works(browser: Any, tmp_path: Path) -> None:
    still = np.full((1, 17, 3), np.nan)
    still[0, 3] = 1
    page = opened(browser, tmp_path / "page.html", people=still)
    click(page, "play")
    click(page, "next")
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
