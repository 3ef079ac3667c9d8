"""What `vsuite-restore predict` says of bad input: one line, exit code 2, nothing half written, and the rest of a batch goes on."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vsuite.core import create_model, save_weights
from vsuite.core.cli.app import run

TINY = {"embed_dim": 8, "growth": 4, "depths": (1,), "num_heads": 2, "window_size": 4, "upsample_dim": 8}


class Finished:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def refused(self, *parts: str) -> None:
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, len(lines)) == (2, 1), (self.code, self.err)
        assert "Traceback" not in self.err
        assert not [part for part in parts if part not in lines[0]], lines[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(create_model("drct_lite_x2", **TINY), path)
    return path


@pytest.fixture
def predict(weights: Path, tmp_path: Path) -> Callable[..., Finished]:
    from vsuite.restoration.cli import app

    def execute(*arguments: object, weights: Path = weights, out: Path = tmp_path / "out") -> Finished:
        given = ["predict", *arguments, "--weights", weights, "--out", out, "--device", "cpu"]
        stdout, stderr, formatting = io.StringIO(), io.StringIO(), warnings.formatwarning
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as left,
        ):
            run(app, [str(argument) for argument in given])
        warnings.formatwarning = formatting
        return Finished(int(left.value.code or 0), stdout.getvalue(), stderr.getvalue())

    return execute


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def cut(suffix: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        noise(60, 60).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    spoil.suffix = suffix  # type: ignore[attr-defined]
    return spoil


def png_of(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + header + struct.pack(">L", zlib.crc32(header)) + bytes(4) + b"IDAT" + bytes(4)


SPOILT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no picture": (".png", lambda path: path.write_text("hello, I am a text"), "is no picture, or damaged"),
    "empty": (".jpg", lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "zero width": (".png", lambda path: path.write_bytes(png_of(0, 5)), "spoilt.png: "),
    "huge claim": (".png", lambda path: path.write_bytes(png_of(2**31 - 1, 2**31 - 1)), "is more than 1,073,741,824 pixels"),
    "cut PNG": (".png", cut(".png"), "cannot be read as a picture"),
    "cut JPEG": (".jpg", cut(".jpg"), "cannot be read as a picture"),
    "cut WebP": (".webp", cut(".webp"), "spoilt.webp: "),
    "cut TIFF": (".tif", cut(".tif"), "spoilt.tif: "),
    "cut BMP": (".bmp", cut(".bmp"), "cannot be read as a picture"),
    "cut 16 bit": (".png", lambda path: path.write_bytes(_deep()[:-300]), "cannot be read as a picture"),
    "pages": (
        ".tif",
        lambda path: noise(4, 4).save(path, save_all=True, append_images=[noise(4, 4)]),
        "holds 2 pages; a still picture is expected",
    ),
    "floats": (".tif", lambda path: Image.fromarray(np.zeros((4, 4), np.float32)).save(path), "has floating-point pixels"),
    "fake video": (".mp4", lambda path: path.write_bytes(b"\0" * 100), "cannot be read as a video"),
}


def _deep() -> bytes:
    import cv2

    return cv2.imencode(".png", np.random.default_rng(0).integers(0, 65536, (20, 20, 3), dtype=np.uint16))[1].tobytes()


@pytest.mark.parametrize("kind", SPOILT)
def test_bad_pictures(tmp_path: Path, predict: Callable[..., Finished], kind: str) -> None:
    suffix, spoil, message = SPOILT[kind]
    if suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / f"spoilt{suffix}"
    spoil(path)
    predict(path).refused(message, "spoilt")
    assert not list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else True


def test_the_rest_of_a_batch_goes_on(tmp_path: Path, predict: Callable[..., Finished]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    noise(5, 6).save(folder / "a.png")
    (folder / "b.png").write_text("text")
    noise(5, 6).save(folder / "c.png")
    finished = predict(folder)
    finished.refused("1 of 3 files failed; first: ", "b.png")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.png", "c_x2.png"]


def test_the_rest_goes_on_where_some_collide_or_are_missing(tmp_path: Path, predict: Callable[..., Finished]) -> None:
    for name in ("a.png", "a.bmp", "b.png"):
        noise(4, 4).save(tmp_path / name)
    paths = [tmp_path / name for name in ("a.png", "a.bmp", "missing.png", "b.png")]
    finished = predict(*paths, "--ext", "png")
    finished.refused(f"3 of 4 files failed; first: {paths[2]}: no such file or folder")
    for line in (f"{paths[0]} and {paths[1]} would", f"{paths[1]} and {paths[0]} would", f"{paths[2]}: no such file"):
        assert len([said for said in finished.err.splitlines() if said.startswith(line)]) == 1, finished.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_x2.png"]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20000, 10), (3, 500)])
def test_odd_sizes_are_restored(tmp_path: Path, predict: Callable[..., Finished], width: int, height: int) -> None:
    noise(height, width).save(tmp_path / "odd.png")
    assert predict(tmp_path / "odd.png", "--tile", 256).code == 0
    assert Image.open(tmp_path / "out" / "odd_x2.png").size == (2 * width, 2 * height)


def test_sizes_that_the_format_cannot_hold(tmp_path: Path, predict: Callable[..., Finished]) -> None:
    noise(2, 10000).save(tmp_path / "long.webp")
    predict(tmp_path / "long.webp").refused("20000 x 4 is more than WEBP can hold (16383 a side); use PNG or TIFF")


def test_an_animation_where_a_still_is_expected(tmp_path: Path, predict: Callable[..., Finished]) -> None:
    noise(4, 4).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    predict(tmp_path / "a.gif", "--ext", "jpg").refused("is animated; .jpg holds a still picture")


def test_a_checkpoint_of_another_architecture(tmp_path: Path, predict: Callable[..., Finished]) -> None:
    noise(4, 4).save(tmp_path / "a.png")
    foreign = tmp_path / "foreign.pth"
    torch.save({"params": {"body.0.weight": torch.zeros(3)}}, foreign)
    predict(tmp_path / "a.png", weights=foreign).refused("foreign.pth: is not a checkpoint of", "it holds body.0.weight")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_download(tmp_path: Path, predict: Callable[..., Finished], weights: Path, suffix: str) -> None:
    noise(4, 4).save(tmp_path / "a.png")
    damaged = tmp_path / f"damaged{suffix}"
    if suffix == ".pth":
        torch.save({"params": create_model("drct_lite_x2", **TINY).state_dict()}, damaged)
    else:
        damaged.write_bytes(weights.read_bytes())
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    predict(tmp_path / "a.png", weights=damaged).refused(f"damaged{suffix}: cannot be read as weights, the file is damaged")


def test_outputs_that_cannot_be(tmp_path: Path, predict: Callable[..., Finished]) -> None:
    noise(4, 4).save(tmp_path / "a.png")
    noise(4, 4).save(tmp_path / "a.bmp")
    (tmp_path / "file").write_text("x")
    predict(tmp_path / "a.png", out=tmp_path / "file").refused("file: is a file; results need a folder")
    predict(tmp_path / "a.png", out=tmp_path / "file" / "inner").refused("file: is a file; results need a folder")
    predict(tmp_path / "a.png", tmp_path / "a.bmp", "--ext", "png").refused("would both become")
    predict(tmp_path / "missing.png").refused("missing.png: no such file or folder")
    predict(str(tmp_path / "*.xyz")).refused("no file matches")
    (tmp_path / "empty").mkdir()
    predict(tmp_path / "empty").refused("holds no pictures or videos")
    assert predict(tmp_path / "a.png").code == 0
    predict(tmp_path / "a.png").refused("a_x2.png: exists; --skip-existing leaves it, --overwrite replaces it")
    assert predict(tmp_path / "a.png", "--skip-existing").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scale", 4), "enlarges 2 times, not 4 times"),
        (("--outscale", 0), "outscale must be above 0"),
        (("--outscale", 2, "--width", 3), "give either an outscale, or a width or height"),
        (("--ext", "doc"), "--ext 'doc' is not known"),
        (("--suffix", "a/b"), "part of a file name"),
        (("--skip-existing", "--overwrite"), "give either --skip-existing or --overwrite"),
        (("--compare", "page.txt"), "must end in .html"),
        (("--blend-with", "nothing.pth"), "nothing.pth: no such file"),
        (("--precision", "fp8"), "fp8"),
        (("--part", "two"), "--part two: is not like 1/2"),
        (("--part", "0/2"), "part 0 of 2: there are 2 parts, 1 to 2"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, predict: Callable[..., Finished], options: tuple[object, ...], message: str) -> None:
    noise(4, 4).save(tmp_path / "a.png")
    predict(tmp_path / "a.png", *options).refused(message)
    assert not (tmp_path / "out").exists()
