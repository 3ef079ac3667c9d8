"""Files, folders and patterns in; names, formats, what is skipped and refused; videos, animations and the slider page."""

from __future__ import annotations

import re
import shutil
import subprocess
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageSequence, features
from torch import Tensor, nn

from vsuite.core import InputError
from vsuite.restoration import video
from vsuite.restoration.batch import Outputs, restore_files
from vsuite.restoration.compare import Pair, pair_of_files, write_page
from vsuite.restoration.images import read_picture
from vsuite.restoration.inference import FinalSize, Restorer


class Nearest(nn.Module):
    scale, in_channels = 2, 3

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.fixture
def restorer() -> Restorer:
    return Restorer(Nearest(), device="cpu")


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"RGB": (10, 200, 30), "RGBA": (10, 200, 30, 128), "L": 90}[mode]
    Image.new(mode, size, colour).save(path, **options)
    return path


def test_a_folder_is_mirrored(tmp_path: Path, restorer: Restorer) -> None:
    for name in ("a.png", "inner/b.jpg", "inner/deeper/c.webp", "inner/d.tif", ".hidden.png", "notes.txt"):
        path = tmp_path / "in" / name
        save(path) if path.suffix != ".txt" else path.write_text("x")
    done = restore_files(restorer, tmp_path / "in", tmp_path / "out", show=False)
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a_x2.png", "inner/b_x2.jpg", "inner/d_x2.tif", "inner/deeper/c_x2.webp"]
    assert len(done.written) == 4
    assert read_picture(tmp_path / "out" / "inner" / "b_x2.jpg").pixels.shape == (12, 16, 3)


def test_patterns_and_single_outputs(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "a1.png"), save(tmp_path / "a2.png"), save(tmp_path / "b.png")
    done = restore_files(restorer, str(tmp_path / "a*.png"), tmp_path / "out", outputs=Outputs("", "jpg"), show=False)
    assert [job.output.name for job in done.written] == ["a1.jpg", "a2.jpg"]
    restore_files(restorer, tmp_path / "b.png", tmp_path / "big.webp", show=False)
    assert Image.open(tmp_path / "big.webp").size == (16, 12)


def test_transparency_never_goes_to_jpeg(tmp_path: Path, restorer: Restorer, capsys) -> None:
    save(tmp_path / "a.png", "RGBA")
    done = restore_files(restorer, tmp_path / "a.png", tmp_path / "out", outputs=Outputs("_x2", "jpg"))
    assert done.written[0].output == tmp_path / "out" / "a_x2.png"
    assert "JPEG holds no transparency; written as a_x2.png" in capsys.readouterr().err
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "a_x2.png").pixels[0, 0], (10, 200, 30, 128))


def test_results_in_png_instead_of_jpeg_are_planned_like_all_others(tmp_path: Path, restorer: Restorer) -> None:
    source = save(tmp_path / "in" / "a.png", "RGBA")
    done = restore_files(restorer, source, tmp_path / "in", outputs=Outputs("", "jpg", existing="overwrite"), show=False)
    assert done.failed == [f"{source}: is an input; results need another name or folder"]
    assert Image.open(source).size == (8, 6)
    skipping = Outputs("_x2", "jpg", existing="skip")
    written, skipped = (restore_files(restorer, source, tmp_path / "out", outputs=skipping, show=False) for _ in range(2))
    assert [job.output.name for job in written.written] == ["a_x2.png"]
    assert ([job.output.name for job in skipped.skipped], skipped.written) == (["a_x2.png"], [])


def test_results_inside_the_folder_of_inputs_are_no_inputs(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "a.png"), save(tmp_path / ".thumbnails" / "b.png")
    skipping = Outputs("_x2", existing="skip")
    first, second = (restore_files(restorer, tmp_path, tmp_path / "restored", outputs=skipping, show=False) for _ in range(2))
    assert [job.source.name for job in first.written] == ["a.png"]
    assert ([job.source.name for job in second.skipped], second.written) == (["a.png"], [])
    save(tmp_path / "scans" / "c.png")
    done = restore_files(restorer, tmp_path / "scans", tmp_path, show=False)
    assert [job.output for job in done.written] == [tmp_path / "c_x2.png"]


def test_links_are_files_of_their_own(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to("a.png")
    (tmp_path / "same").symlink_to("in")
    done = restore_files(restorer, [tmp_path / "in", tmp_path / "same" / "a.png"], tmp_path / "out", show=False)
    assert sorted(job.output.name for job in done.written) == ["a_x2.png", "b_x2.png"]


def test_several_results_do_not_go_into_one_file(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "a.png"), save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"c\.png: is the name of one picture or video, but there are 2 inputs"):
        restore_files(restorer, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "c.png", show=False)


def test_a_still_does_not_become_a_gif(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    done = restore_files(restorer, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", outputs=Outputs("", "gif"), show=False)
    assert len(done.failed) == 2
    assert all("pictures are written as .png" in message for message in done.failed)
    with pytest.raises(InputError, match="--ext 'ppm' is not known"):
        Outputs("", "ppm")


def test_16_bits_go_to_jpeg_rounded(tmp_path: Path, restorer: Restorer) -> None:
    Image.fromarray(np.full((5, 4), 257 * 90, np.uint16)).save(tmp_path / "a.png")
    restore_files(restorer, tmp_path / "a.png", tmp_path / "out", show=False)
    assert read_picture(tmp_path / "out" / "a_x2.png").pixels.dtype == np.uint16
    restore_files(restorer, tmp_path / "a.png", tmp_path / "out", outputs=Outputs("", "jpg"), show=False)
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "a.jpg").pixels, np.full((10, 8, 1), 90))


def test_metadata_are_kept_or_stripped(tmp_path: Path, restorer: Restorer) -> None:
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    save(tmp_path / "a.jpg", exif=exif)
    restore_files(restorer, tmp_path / "a.jpg", tmp_path / "out", show=False)
    kept = Image.open(tmp_path / "out" / "a_x2.jpg")
    assert kept.size == (12, 16)
    assert dict(kept.getexif()) == {271: "Maker", 274: 1}
    restore_files(restorer, tmp_path / "a.jpg", tmp_path / "out", outputs=Outputs("_bare", strip=True), show=False)
    assert not dict(Image.open(tmp_path / "out" / "a_bare.jpg").getexif())


def test_skip_overwrite_and_refuse(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    there = tmp_path / "out" / "a_x2.png"
    there.write_text("mine")
    done = restore_files(restorer, tmp_path / "in", tmp_path / "out", show=False)
    assert done.failed == [f"{there}: exists; --skip-existing leaves it, --overwrite replaces it"]
    assert ([job.source.name for job in done.written], there.read_text()) == (["b.png"], "mine")
    done = restore_files(restorer, tmp_path / "in", tmp_path / "out", outputs=Outputs("_x2", existing="skip"), show=False)
    assert (len(done.skipped), len(done.written), there.read_text()) == (2, 0, "mine")
    done = restore_files(restorer, tmp_path / "in", tmp_path / "out", outputs=Outputs("_x2", existing="overwrite"), show=False)
    assert len(done.written) == 2
    assert read_picture(there).pixels.shape == (12, 16, 3)


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, restorer: Restorer) -> None:
    for name in ("a.png", "c.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    done = restore_files(restorer, tmp_path / "in", tmp_path / "out", show=False)
    assert [job.source.name for job in done.written] == ["a.png", "c.png"]
    assert [message.partition(": ")[0] for message in done.failed] == [str(tmp_path / "in" / "b.png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.png", "c_x2.png"]


def test_only_those_that_collide_are_refused(tmp_path: Path, restorer: Restorer, capsys) -> None:
    first, second, third = (save(tmp_path / "in" / name) for name in ("a.jpg", "A.png", "b.png"))
    save(tmp_path / "in" / "inner" / "a.png")
    done = restore_files(restorer, tmp_path / "in", tmp_path / "out", outputs=Outputs("", "png"))
    assert [job.source for job in done.written] == [third, tmp_path / "in" / "inner" / "a.png"]
    what = "restore them into folders of their own"
    expected = {
        f"{first} and {second} would both become {tmp_path / 'out' / 'a.png'}; {what}",
        f"{second} and {first} would both become {tmp_path / 'out' / 'A.png'}; {what}",
    }
    assert set(done.failed) == expected
    assert set(capsys.readouterr().err.splitlines()[:2]) == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", "inner"]


def test_processes_share_a_batch(tmp_path: Path, restorer: Restorer) -> None:
    names = [f"{number:02}.png" for number in range(12)] + [f"inner/{number:02}.png" for number in range(12)]
    for name in names:
        save(tmp_path / "in" / name)
    done = []
    for number in (1, 2, 3):
        summary = restore_files(restorer, tmp_path / "in", tmp_path / "out", part=(number, 3), show=False)
        assert not summary.failed  # what other processes have written meanwhile is theirs
        assert 4 <= len(summary.written) <= 12
        done += [job.source.relative_to(tmp_path / "in").as_posix() for job in summary.written]
        summary.written[0].source.unlink()  # and what they have moved away changes nothing
    assert sorted(done) == names


def test_parts_that_there_are_not(tmp_path: Path, restorer: Restorer) -> None:
    for part, what in (((4, 3), "there are 3 parts, 1 to 3"), ((0, 1), "there is 1 part, 1 to 1"), ((1, 0), "must be at least one part")):
        with pytest.raises(InputError, match=f"part {part[0]} of {part[1]}: .*{what}$"):
            restore_files(restorer, save(tmp_path / "a.png"), tmp_path / "out", part=part, show=False)


@pytest.mark.parametrize("given", ["in", "in/*.png", "in/a.png"])
def test_parts_do_not_write_among_inputs(tmp_path: Path, restorer: Restorer, given: str) -> None:
    """Where the results of one would be inputs of the others."""
    for name in "abcdef":
        save(tmp_path / "in" / f"{name}.png")
    for number in (1, 2):
        with pytest.raises(InputError, match=r"in: holds inputs, .*; --part needs another --out$"):
            restore_files(restorer, str(tmp_path / given), tmp_path / "in", part=(number, 2), show=False)
    assert len(list((tmp_path / "in").iterdir())) == 6


def test_results_never_replace_inputs_or_folders(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "b.bmp")
    (tmp_path / "in" / "b.png").mkdir()
    before = (tmp_path / "in" / "a.png").read_bytes()
    done = restore_files(restorer, tmp_path / "in", tmp_path / "in", outputs=Outputs("", "png", existing="overwrite"), show=False)
    assert not done.written
    assert ["is an input" in message for message in done.failed] == [True, False]
    assert "b.png: is a folder" in done.failed[1]
    assert (tmp_path / "in" / "a.png").read_bytes() == before


def test_what_does_not_exist_does_not_stop_the_others(tmp_path: Path, restorer: Restorer, capsys) -> None:
    source = save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    given = [tmp_path / "missing.png", source, str(tmp_path / "*.tif"), tmp_path / "empty"]
    done = restore_files(restorer, given, tmp_path / "out")
    assert [job.source for job in done.written] == [source]
    nothing = "no such file or folder, and no file matches it"
    expected = [f"{tmp_path / name}: {nothing}" for name in ("missing.png", "*.tif")]
    assert done.failed[:2] == expected
    assert done.failed[2].startswith(f"{tmp_path / 'empty'}: holds no pictures or videos (")
    assert capsys.readouterr().err.splitlines()[:3] == done.failed
    with pytest.raises(InputError, match="no such file or folder"):
        restore_files(restorer, tmp_path / "missing.png", tmp_path / "out", show=False)


def test_what_does_not_exist_collides_with_nothing(tmp_path: Path, restorer: Restorer) -> None:
    source, missing = save(tmp_path / "a.png"), tmp_path / "a.bmp"
    done = restore_files(restorer, [source, missing], tmp_path / "out", outputs=Outputs("", "png"), show=False)
    assert [job.output for job in done.written] == [tmp_path / "out" / "a.png"]
    assert [message.partition(": ")[0] for message in done.failed] == [str(missing)]


def test_formats_that_are_not_read_are_mentioned(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "in" / "a.png")
    for name in ("b.HEIC", "c.heic", "d.cr2", ".hidden.heic"):
        (tmp_path / "in" / name).write_bytes(b"II*\0 whatever")
    with pytest.warns(UserWarning, match="left out") as caught:
        done = restore_files(restorer, tmp_path / "in", tmp_path / "out", show=False)
    line = "3 pictures are left out, as the format is not read (1 CR2, 2 HEIC); convert to PNG, JPEG or TIFF first"
    assert [str(warning.message) for warning in caught] == [f"{tmp_path / 'in'}: {line}"]
    assert [job.source.name for job in done.written] == ["a.png"]
    named = restore_files(restorer, tmp_path / "in" / "b.HEIC", tmp_path / "out", show=False)
    assert named.failed[0] == f"{tmp_path / 'in' / 'b.HEIC'}: HEIC is not read; convert it to PNG, JPEG or TIFF first"


@pytest.mark.parametrize("suffix", [".avif", ".jp2"])
def test_formats_that_are_only_read_become_png(tmp_path: Path, restorer: Restorer, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    save(tmp_path / "in" / f"a{suffix}", size=(40, 30))
    restore_files(restorer, tmp_path / "in", tmp_path / "out", show=False)
    found = read_picture(tmp_path / "out" / "a_x2.png").pixels
    assert found.shape == (60, 80, 3)
    np.testing.assert_allclose(found.reshape(-1, 3).mean(0), (10, 200, 30), atol=3)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".gif", 8), (".webp", 16), (".png", 0)])
def test_animations_keep_their_times(tmp_path: Path, restorer: Restorer, suffix: str, tolerance: int) -> None:
    colours = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
    frames = [Image.new("RGB", (10, 8), colour) for colour in colours]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=[40, 120, 80], loop=3)
    done = restore_files(restorer, tmp_path / f"a{suffix}", tmp_path / "out", show=False)
    assert not done.failed
    found = Image.open(tmp_path / "out" / f"a_x2{suffix}")
    assert (found.n_frames, found.size, found.info["loop"]) == (3, (20, 16), 3)
    times = []
    for frame, colour in zip(ImageSequence.Iterator(found), colours, strict=True):
        pixels = np.asarray(frame.convert("RGB")).astype(int)
        assert np.abs(pixels - colour).max() <= tolerance
        times.append(frame.info["duration"])
    assert times == [40, 120, 80]


def test_an_animation_does_not_go_into_a_still(tmp_path: Path, restorer: Restorer) -> None:
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    done = restore_files(restorer, tmp_path / "a.gif", tmp_path / "out", outputs=Outputs("", "jpg"), show=False)
    assert "is animated; .jpg holds a still picture" in done.failed[0]
    with pytest.raises(InputError, match="holds 2 frames, an animation; a still picture is expected"):
        read_picture(tmp_path / "a.gif")


def ffmpeg() -> str:
    try:
        return video.find_ffmpeg()
    except InputError:
        pytest.skip("no ffmpeg")


def test_a_video_keeps_rate_and_sound(tmp_path: Path, restorer: Restorer) -> None:
    program = ffmpeg()
    sources = ["-f", "lavfi", "-i", "color=c=0x20a040:s=32x24:r=30000/1001", "-f", "lavfi", "-i", "sine=440"]
    source = tmp_path / "a.mp4"
    subprocess.run([program, "-v", "error", *sources, "-t", "0.4", "-c:v", "libx264", "-c:a", "aac", source], check=True)
    seen: list[tuple[int, int | None]] = []
    out = video.restore_video(restorer, source, tmp_path / "b.mp4", progress=lambda done, total: seen.append((done, total)))
    stream, said = video.read_stream(out, program), subprocess.run([program, "-i", out], capture_output=True, text=True, check=False).stderr
    assert (stream.width, stream.height, stream.rate) == (64, 48, "30000/1001")
    assert re.search(r"Audio: aac", said)
    assert len(seen) == 12
    command = [program, "-v", "error", "-i", out, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    colour = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(colour, (0x20, 0xA0, 0x40), atol=4)


def make_video(path: Path, *options: str) -> Path:
    sources = ["-f", "lavfi", "-i", "color=c=0x20a040:s=32x24:r=25", "-f", "lavfi", "-i", "sine=440"]
    command = [ffmpeg(), "-v", "error", *sources, "-t", "0.2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", *options]
    subprocess.run([*command, f"file:{path}"], check=True)
    return path


def said_of(path: Path) -> str:
    return subprocess.run([ffmpeg(), "-i", f"file:{path}"], capture_output=True, text=True, check=False).stderr


def test_a_video_named_by_the_time_of_day(tmp_path: Path, restorer: Restorer, monkeypatch) -> None:
    """Which ffmpeg would take for the name of a protocol."""
    monkeypatch.chdir(tmp_path)
    make_video(Path("12:30.mp4"))
    video.restore_video(restorer, "12:30.mp4", "12:30_x2.mp4")
    assert "64x48" in said_of(Path("12:30_x2.mp4"))


def test_colours_of_a_video_keep_their_meaning(tmp_path: Path, restorer: Restorer) -> None:
    tags = ["-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", "arib-std-b67", "-color_range", "tv"]
    sides = "scale=out_color_matrix=bt2020:out_range=tv,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=arib-std-b67"
    source = make_video(tmp_path / "a.mp4", "-vf", sides, *tags)
    assert "bt2020nc/bt2020/arib-std-b67" in said_of(source)
    out = video.restore_video(restorer, source, tmp_path / "b.mp4")
    assert "bt2020nc/bt2020/arib-std-b67" in said_of(out)
    planes = []
    for path in (source, out):
        command = [ffmpeg(), "-v", "error", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "yuv444p", "-"]
        planes.append(np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8).reshape(3, -1).mean(1))
    np.testing.assert_allclose(planes[1], planes[0], atol=2)


def test_sound_that_the_format_does_not_take_is_encoded_anew(tmp_path: Path, restorer: Restorer) -> None:
    out = video.restore_video(restorer, make_video(tmp_path / "a.mp4"), tmp_path / "a.webm")
    assert re.search(r"Audio: opus", said_of(out))


def test_no_ffmpeg_and_no_video_are_clear(tmp_path: Path, restorer: Restorer, monkeypatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    ffmpeg()
    with pytest.raises(InputError, match=r"a\.mp4: cannot be read as a video: "):
        video.restore_video(restorer, tmp_path / "a.mp4", tmp_path / "b.mp4")
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="videos need ffmpeg: install it, or pip install"):
        video.restore_video(restorer, tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_final_size_of_files(tmp_path: Path, restorer: Restorer) -> None:
    save(tmp_path / "a.png")
    restore_files(restorer, tmp_path / "a.png", tmp_path / "b.png", size=FinalSize(width=20), show=False)
    assert Image.open(tmp_path / "b.png").size == (20, 15)


def test_the_slider_page_shows_before_on_the_left_and_after_on_the_right(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    before, after = np.full((100, 150, 3), (255, 0, 0), np.uint8), np.full((200, 300, 3), (0, 0, 255), np.uint8)
    page = tmp_path / "page.html"
    write_page(page, [Pair("<b>one</b>", before, after, "a & b")])
    text = page.read_text()
    assert "http" not in text
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    move = "<script>const r = document.querySelector('.pair input'); r.value = 80; r.dispatchEvent(new Event('input'));</script>"
    (tmp_path / "moved.html").write_text(text.replace("</body>", move + "</body>"))
    shares = []
    for name in ("page", "moved"):
        shot = tmp_path / f"{name}.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=800,600"]
        profile = f"--user-data-dir={tmp_path / ('profile_' + name)}"
        command = [chromium, *flags, profile, f"--screenshot={shot}", (tmp_path / f"{name}.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
        red, blue = ((pixels == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
        assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min()
        shares.append(red.sum() / (red.sum() + blue.sum()))
    np.testing.assert_allclose(shares, [0.5, 0.8], atol=0.02)


def test_pairs_of_files_are_upright_and_reduced(tmp_path: Path, monkeypatch) -> None:
    from vsuite.restoration import compare

    monkeypatch.setattr(compare, "LONGEST_SIDE", 10)
    exif = Image.Exif()
    exif[274] = 6
    save(tmp_path / "a.jpg", size=(40, 20), exif=exif)
    Image.fromarray(np.full((5, 4), 257 * 90, np.uint16)).save(tmp_path / "b.png")
    pair = pair_of_files(tmp_path / "a.jpg", tmp_path / "b.png")
    assert pair.before.shape == (10, 5, 3)
    np.testing.assert_array_equal(pair.after, np.full((5, 4, 3), 90))
    Image.fromarray(np.zeros((3, 8), np.uint16)).save(tmp_path / "deep.png", exif=exif)
    assert pair_of_files(tmp_path / "deep.png", tmp_path / "b.png").before.shape == (8, 3, 3)


def test_the_page_takes_one_pair_at_a_time(tmp_path: Path) -> None:
    """The pixels of a whole batch do not fit into memory."""
    references: list[weakref.ref[Pair]] = []

    def pairs():
        for number in range(5):
            assert not [1 for reference in references[:-1] if reference() is not None]
            pair = Pair(str(number), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))
            references.append(weakref.ref(pair))
            yield pair

    write_page(tmp_path / "page.html", pairs())
    assert (tmp_path / "page.html").read_text().count("<figure>") == 5


def test_animations_keep_their_colour_profile_unless_stripped(tmp_path: Path, restorer: Restorer) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], icc_profile=profile)
    for strip, kept in ((False, profile), (True, None)):
        outputs = Outputs("_x2", strip=strip, existing="overwrite")
        restore_files(restorer, tmp_path / "a.webp", tmp_path / "out", outputs=outputs, show=False)
        assert Image.open(tmp_path / "out" / "a_x2.webp").info.get("icc_profile") == kept
