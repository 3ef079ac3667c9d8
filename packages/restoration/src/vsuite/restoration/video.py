"""Videos and animated pictures, a frame at a time; videos go through ffmpeg."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.restoration.images import Pixels, has_alpha, open_image
from vsuite.restoration.inference import FinalSize, Restorer

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
MATRICES = {"bt709": "bt709", "smpte170m": "bt601", "bt470bg": "bt601", "bt2020nc": "bt2020"}  # as streams, and as its filters call them
ANIMATED_FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
CODECS = {".webm": ("-c:v", "libvpx-vp9", "-crf", "18", "-b:v", "0")}
H264 = ("-c:v", "libx264", "-crf", "16", "-preset", "medium")

Progress = Callable[[int, int | None], None]
"""Told the frames that are done, and of all, where that is known."""


@dataclass(frozen=True)
class Stream:
    """The pictures of a video.

    Attributes:
        width, height: as shown, after the rotation that a phone notes.
        rate: frames a second, a fraction such as "30000/1001".
        frames: about how many there are; None where the file does not say.
        colours: names of matrix, primaries and transfer, as the file says, or as its size lets expect.
    """

    width: int
    height: int
    rate: str
    frames: int | None
    colours: tuple[str, str, str]


def find_ffmpeg() -> str:
    """The program of the package imageio-ffmpeg, else the one on the PATH; raises `InputError` where there is neither."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if found is None:
        raise InputError('videos need ffmpeg: install it, or pip install "vsuite-restoration[video]"')
    return found


def read_stream(path: str | Path, ffmpeg: str) -> Stream:
    """Size and rate of a video, found by decoding its first frame; raises `InputError` for what ffmpeg cannot decode."""
    command = [ffmpeg, "-nostdin", "-i", _named(path), "-map", "0:v:0", "-frames:v", "1", "-f", "yuv4mpegpipe", "-pix_fmt", "yuv444p", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    header = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+)", done.stdout)
    said = done.stderr.decode("utf-8", "replace")
    if header is None:
        raise InputError(f"{path}: cannot be read as a video: {_reason(said)}")
    width, height, over, under = map(int, header.groups())
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said)
    seconds = None if length is None else 3600 * int(length[1]) + 60 * int(length[2]) + float(length[3])
    frames = None if seconds is None else max(1, round(seconds * over / under))
    return Stream(width, height, f"{over}/{under}", frames, _colours(said, height))


def _colours(said: str, height: int) -> tuple[str, str, str]:
    """Matrix, primaries and transfer from what ffmpeg says of a video: "yuv420p(tv, bt709)", or "(tv, bt2020nc/bt2020/smpte2084)"."""
    usual = "bt709" if height >= 720 else "smpte170m"
    found = re.search(rf"Video: [^\n]*\((?:tv, |pc, )?({'|'.join(MATRICES)})(?:/([\w-]+)/([\w-]+))?", said)
    if found is None:
        return usual, usual, usual
    primaries, transfer = (usual if name in ("unknown", "reserved") else name or found[1] for name in found.groups()[1:])
    return found[1], primaries, transfer


def _named(path: str | Path) -> str:
    """A path for ffmpeg, which takes "12:30.mp4" for the name of a protocol."""
    return f"file:{path}"


def _reason(said: str) -> str:
    """The line in which ffmpeg says what is wrong."""
    lines = [line for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"[Ee]rror|[Ii]nvalid|not found|does not contain|matches no streams", line)]
    return (telling or lines or ["no reason given"])[-1].strip()[:200]


def restore_video(
    restorer: Restorer,
    source: str | Path,
    output: str | Path,
    size: FinalSize | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Restores every frame. Rate, colour tags, sound (copied, or encoded anew where the format changes) and metadata are kept.

    Frames are restored one by one, so fine structures may flicker.

    Args:
        output: its suffix, one of `SUFFIXES`, says the format: H.264, or VP9 for .webm.

    Raises:
        InputError: where ffmpeg is missing, cannot read the file or cannot write the result.
    """
    source, output = Path(source), Path(output)
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"{output}: videos are written as {', '.join(SUFFIXES)}")
    ffmpeg = find_ffmpeg()
    stream = read_stream(source, ffmpeg)
    height, width = (size or FinalSize()).of(stream.height, stream.width, restorer.scale)
    done = 0
    with atomic_path(output) as temporary, tempfile.TemporaryFile() as said:
        encoder = subprocess.Popen(_encode(ffmpeg, source, temporary, stream, width, height), stdin=subprocess.PIPE, stderr=said)
        assert encoder.stdin is not None
        try:
            for frame in _frames(ffmpeg, source, stream):
                encoder.stdin.write(restorer.restore(frame, size).tobytes())
                done += 1
                progress(done, max(done, stream.frames) if stream.frames else None)
            encoder.stdin.close()
            failed = encoder.wait() != 0
        except BrokenPipeError:
            encoder.wait()
            failed = True
        finally:
            if encoder.poll() is None:
                encoder.kill()
                encoder.wait()
        if failed or done == 0:
            said.seek(0)
            raise InputError(f"{output}: cannot be written: {_reason(said.read().decode('utf-8', 'replace'))}")
    return output


def _encode(ffmpeg: str, source: Path, output: Path, stream: Stream, width: int, height: int) -> list[str]:
    frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", stream.rate, "-i", "-"]
    matrix, primaries, transfer = stream.colours
    even = f"pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix={MATRICES[matrix]}:out_range=tv"
    tags = f"setparams=colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}"
    suffix = output.suffix.lower()
    sound = "copy" if suffix == source.suffix.lower() else "libopus" if suffix == ".webm" else "aac"
    kept = ["-map", "0:v", "-map", "1:a?", "-c:a", sound, "-map_metadata", "1"]
    start = [ffmpeg, "-nostdin", "-y", *frames, "-i", _named(source)]
    return [*start, *kept, "-vf", f"{even},{tags}", *CODECS.get(suffix, H264), "-pix_fmt", "yuv420p", _named(output)]


def _frames(ffmpeg: str, source: Path, stream: Stream) -> Iterator[Pixels]:
    """Every frame, (H, W, 3), uint8, at the stream's constant rate."""
    matrix = f"scale=in_color_matrix={MATRICES[stream.colours[0]]}"
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", _named(source), "-map", "0:v:0", "-vf", matrix, "-r", stream.rate]
    with tempfile.TemporaryFile() as said:
        decoder = subprocess.Popen([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], stdout=subprocess.PIPE, stderr=said)
        assert decoder.stdout is not None
        try:
            while data := _exactly(decoder.stdout, stream.width * stream.height * 3):
                yield np.frombuffer(data, np.uint8).reshape(stream.height, stream.width, 3)
            if decoder.wait() != 0:
                said.seek(0)
                raise InputError(f"{source}: cannot be decoded to its end: {_reason(said.read().decode('utf-8', 'replace'))}")
        finally:
            decoder.stdout.close()
            if decoder.poll() is None:
                decoder.kill()
                decoder.wait()


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    return data if len(data) == count else b""


def restore_animation(
    restorer: Restorer,
    source: str | Path,
    output: str | Path,
    size: FinalSize | None = None,
    *,
    quality: int = 95,
    strip: bool = False,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Restores every frame of an animated GIF, WebP or PNG; times, repeats and the colour profile are kept.

    Args:
        output: .gif, .webp or .png. In a GIF, transparency is all or nothing.
        quality: of WebP.
        strip: drop the colour profile.

    Raises:
        InputError: for a damaged file, and another format of the output.
    """
    output = Path(output)
    name = ANIMATED_FORMATS.get(output.suffix.lower())
    if name is None:
        raise InputError(f"{source}: is animated; {output.suffix} holds a still picture (--ext gif, webp or png hold an animation)")
    times: list[int] = []

    def frames(image: Any) -> Iterator[Any]:
        from PIL import Image, ImageSequence

        for index, frame in enumerate(ImageSequence.Iterator(image)):
            pixels = np.asarray(frame.convert("RGBA" if has_alpha(frame) else "RGB"))
            found = restorer.restore(pixels, size)
            if name == "GIF" and found.shape[2] == 4:
                found[..., 3] = np.where(found[..., 3] < 128, 0, 255)
            progress(index + 1, image.n_frames)
            times.append(round(frame.info.get("duration", 100)))  # of WebP, known only once the frame is decoded
            yield Image.fromarray(found)

    with open_image(source) as image:
        loop, profile = image.info.get("loop"), image.info.get("icc_profile")
        whole = list(frames(image))
    options: dict[str, Any] = {"duration": times} | ({} if loop is None and name == "GIF" else {"loop": loop or 0})
    if profile and not strip and name != "GIF":
        options["icc_profile"] = profile
    if name == "WEBP":
        options |= {"quality": quality, "exact": True}
    if name == "GIF":
        options |= {"disposal": 2 if any(frame.mode == "RGBA" for frame in whole) else 1}
    with atomic_path(output) as temporary, temporary.open("wb") as file:
        whole[0].save(file, name, save_all=True, append_images=whole[1:], **options)
    return output
