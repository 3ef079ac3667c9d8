"""Restoring files: what was asked is checked first, and one bad file does not stop the others."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsuite.core.batch import complaint, find_files
from vsuite.core.errors import InputError
from vsuite.core.terminal import console
from vsuite.restoration import video
from vsuite.restoration.images import READ_ONLY, Metadata, Picture, is_animated, is_transparent_still, read_picture, warn_of_unread
from vsuite.restoration.inference import FinalSize, Restorer
from vsuite.restoration.tiling import Progress
from vsuite.restoration.writers import SUFFIXES, WITH_16_BITS, WITH_ALPHA, check_format, write_picture

ANIMATED_SUFFIXES = (".gif", ".webp", ".png")
WRITTEN = (*SUFFIXES, ".gif", *video.SUFFIXES)
KNOWN = (*WRITTEN, *READ_ONLY)


@dataclass(frozen=True)
class Outputs:
    """How results are named and written.

    Attributes:
        suffix: behind the name: "cat.png" becomes "cat_x4.png".
        ext: format of all results, such as ".png" or "png"; None keeps that of each input.
        strip: drop EXIF, XMP, colour profile and texts.
        quality: of JPEG and WebP.
        existing: what to do where the result is there: "refuse", "skip" or "overwrite".
    """

    suffix: str
    ext: str | None = None
    strip: bool = False
    quality: int = 95
    existing: Literal["refuse", "skip", "overwrite"] = "refuse"

    def __post_init__(self) -> None:
        if "/" in self.suffix or "\\" in self.suffix:
            raise InputError(f"suffix {self.suffix!r} must be part of a file name, without folders")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality must lie in 1..100; got {self.quality}")
        if self.ext is not None and self.dotted not in WRITTEN:
            raise InputError(f"--ext {self.ext!r} is not known; allowed are {', '.join(known[1:] for known in WRITTEN)}")

    @property
    def dotted(self) -> str | None:
        return None if self.ext is None else f".{self.ext.lower().removeprefix('.')}"


@dataclass(frozen=True)
class Job:
    """One file, its path below the folder it was found in, where its result goes, and what people should know about that."""

    source: Path
    relative: Path
    output: Path
    note: str = ""


@dataclass
class Summary:
    """What became of a batch.

    Attributes:
        written: jobs whose result was written.
        skipped: jobs whose result was there.
        failed: what is wrong with each of the others, files and what was given but is not there: a line that names it.
    """

    written: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def find_jobs(inputs: Sequence[str | Path], out: str | Path, outputs: Outputs) -> tuple[list[Job], list[str]]:
    """The files to restore, and the name of each result.

    Args:
        inputs: files, folders (with their sub-folders, which `out` will mirror), and patterns such as "scans/*.png". Results that are
            there already, in an `out` inside such a folder, and hidden files are left out, and with a warning pictures whose format is
            not read.
        out: a folder; or for a single file, the result itself where the name ends like a picture or video. What is transparent and would
            go into a format that is not, becomes PNG.
        outputs: see `Outputs`.

    Returns:
        The jobs, and a line about each input that is missing or a folder without any such files.

    Raises:
        InputError: where nothing of what was given is there, and for a folder of results that is a file.
    """
    out = Path(out)
    files, complaints = _files(inputs, out)
    found = list({source.parent.resolve() / source.name: (source, relative) for source, relative in files}.values())
    if out.suffix.lower() in KNOWN and not out.is_dir():
        if len(found) > 1:
            raise InputError(f"{out}: is the name of one picture or video, but there are {len(found)} inputs; their results need a folder")
        return [_job(*found[0], out)], complaints
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; results need a folder")
    return [_job(source, relative, out / relative.with_name(_result_name(source, outputs))) for source, relative in found], complaints


def _files(inputs: Sequence[str | Path], out: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Files with their path below the folder they were found in, and complaints about inputs that are not there.

    What lies in `out` is left out, where that lies deeper in such a folder.
    """
    results = out.resolve()
    below: dict[Path, Path] = {}

    def inside(folder: Path) -> list[Path]:
        root = folder.resolve()

        def wanted(file: Path) -> bool:
            relative = file.relative_to(folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            result = root in results.parents and results in (root / relative).parents
            return file.is_file() and not hidden and not result

        files = sorted(filter(wanted, folder.rglob("*")))
        warn_of_unread(folder, files)
        known = [file for file in files if file.suffix.lower() in KNOWN]
        below.update({file: file.relative_to(folder) for file in known})
        return known

    files, complaints = find_files(inputs, inside, Path.is_file, f"pictures or videos ({', '.join(KNOWN)})")
    return [(file, below.get(file, Path(file.name))) for file in files], complaints


def _job(source: Path, relative: Path, output: Path) -> Job:
    """The result goes into a PNG instead where the source has alpha and the format has none."""
    name = SUFFIXES.get(output.suffix.lower())
    if name is None or name in WITH_ALPHA or not is_transparent_still(source):
        return Job(source, relative, output)
    other = output.with_suffix(".png")
    return Job(source, relative, other, f"{name} holds no transparency; written as {other.name}")


def _result_name(source: Path, outputs: Outputs) -> str:
    suffix = source.suffix.lower()
    own = suffix if suffix in (*SUFFIXES, *video.SUFFIXES) or (suffix == ".gif" and is_animated(source)) else ".png"
    if suffix in video.SUFFIXES and outputs.dotted not in (None, *video.SUFFIXES):
        return f"{source.stem}{outputs.suffix}{own}"  # --ext of a mixed folder means its pictures
    if suffix not in video.SUFFIXES and outputs.dotted in video.SUFFIXES and not is_animated(source):
        return f"{source.stem}{outputs.suffix}{own}"
    return f"{source.stem}{outputs.suffix}{outputs.dotted or own}"


def find_collisions(jobs: Sequence[Job], outputs: Outputs) -> dict[Path, str]:
    """Source -> why its result must not be written: for two inputs with one result, for results that are inputs, folders, or there."""
    sources = {job.source.resolve() for job in jobs}
    owners: dict[str, list[Path]] = {}
    for job in jobs:
        owners.setdefault(_key(job.output), []).append(job.source)
    found = {}
    for job in jobs:
        others = [source for source in owners[_key(job.output)] if source != job.source]
        if others:
            found[job.source] = f"{job.source} and {others[0]} would both become {job.output}; restore them into folders of their own"
        elif job.output.resolve() in sources:
            found[job.source] = f"{job.output}: is an input; results need another name or folder"
        elif job.output.is_dir():
            found[job.source] = f"{job.output}: is a folder; a file of this name cannot be written"
        elif job.output.exists() and outputs.existing == "refuse":
            found[job.source] = f"{job.output}: exists; --skip-existing leaves it, --overwrite replaces it"
    return found


def _key(output: Path) -> str:
    """Some disks do not tell large letters from small ones."""
    return str(output.resolve()).lower()


def _share(jobs: Sequence[Job], number: int, parts: int) -> list[Job]:
    """Those of one part.

    Each path has a part of its own, whatever other files are there: folders may change between the starts of two processes.
    """
    folders = {job.source.parent.resolve() for job in jobs} & {job.output.parent.resolve() for job in jobs}
    if parts > 1 and folders:
        raise InputError(f"{min(folders)}: holds inputs, and other parts would take results for inputs too; --part needs another --out")
    return [job for job in jobs if _spread(job.relative) % parts == number - 1]


def _spread(path: Path) -> int:
    """The same number in every process, evenly spread even over names that differ in a digit (those of `zlib.crc32` are not)."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path.as_posix()), digest_size=8).digest(), "big")


def restore_files(
    restorer: Restorer,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    size: FinalSize | None = None,
    outputs: Outputs | None = None,
    part: tuple[int, int] = (1, 1),
    show: bool = True,
) -> Summary:
    """Restores pictures, animations and videos; a file that cannot be restored or whose result collides is noted, and the others go on.

    Args:
        restorer: see `Restorer`.
        inputs, out: see `find_jobs`.
        size: of the results; None takes the model's scale.
        outputs: names and formats; None adds "_x4" (for a model of scale 4) and keeps formats.
        part: (1, 3) takes the first of three parts of the files, so that three processes, one on each GPU, share a batch. Which files
            these are depends on their paths alone. Results need a folder without inputs then.
        show: a progress bar on standard error, and a line for each file that fails or changes its kind.

    Raises:
        InputError: see `find_jobs`, for a part that is none, and where parts would write among their inputs; before anything is written.
    """
    number, parts = part
    if parts < 1:
        raise InputError(f"part {number} of {parts}: there must be at least one part")
    if not 1 <= number <= parts:
        raise InputError(f"part {number} of {parts}: there {'is 1 part' if parts == 1 else f'are {parts} parts'}, 1 to {parts}")
    outputs = outputs or Outputs(f"_x{restorer.scale}")
    jobs, complaints = find_jobs([inputs] if isinstance(inputs, str | Path) else inputs, out, outputs)
    mine, collisions = _share(jobs, number, parts), find_collisions(jobs, outputs)
    summary = Summary(failed=[*complaints, *(collisions[job.source] for job in mine if job.source in collisions)])
    jobs = [job for job in mine if job.source not in collisions]
    with _display(len(jobs), show) as display:
        for message in summary.failed:
            display.say(message)
        for job in jobs:
            if job.output.exists() and outputs.existing == "skip":
                summary.skipped.append(job)
            else:
                _run(restorer, job, size, outputs, display, summary)
            display.file_done()
    return summary


def _run(restorer: Restorer, job: Job, size: FinalSize | None, outputs: Outputs, display: _Display, summary: Summary) -> None:
    display.start(job.source.name)
    notes: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            if job.source.suffix.lower() in video.SUFFIXES:
                video.restore_video(restorer, job.source, job.output, size, progress=display.frames)
            elif job.source.suffix.lower() in ANIMATED_SUFFIXES and is_animated(job.source):
                video.restore_animation(
                    restorer, job.source, job.output, size, quality=outputs.quality, strip=outputs.strip, progress=display.frames
                )
            else:
                notes = restore_picture(restorer, job, size, outputs, progress=display.tiles)
        for note in [*notes, *sorted({str(w.message) for w in caught if w.category is UserWarning})]:
            display.say(f"{job.source}: {note}")
        summary.written.append(job)
    except InputError as error:
        message = complaint(error, job.source)
        summary.failed.append(message)
        display.say(message)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:  # whatever is wrong with one file must not stop the others
        what = " ".join(str(error).split())[:200] or type(error).__name__
        summary.failed.append(f"{job.source}: {what}")
        display.say(f"{job.source}: {what}")


def restore_picture(
    restorer: Restorer, job: Job, size: FinalSize | None, outputs: Outputs, *, progress: Progress = lambda done, total: None
) -> list[str]:
    """Restores one still picture.

    Returns:
        What changed beside its size, for people.
    """
    picture = read_picture(job.source)
    pixels, dtype = picture.pixels, picture.pixels.dtype
    height, width, channels = pixels.shape
    wanted = (size or FinalSize()).of(height, width, restorer.scale)
    strips: Iterator[Any] = restorer.strips(pixels, size, progress=progress)
    notes = [picture.note, job.note]
    name = SUFFIXES.get(job.output.suffix.lower())
    if dtype == np.uint16 and name not in WITH_16_BITS:
        dtype = np.dtype(np.uint8)
        strips = (np.rint(strip / np.float32(257)).astype(np.uint8) for strip in strips)
        notes.append(f"{name} holds 8 bits; its 16 were rounded")
    check_format(job.output, wanted, channels, dtype)
    write_picture(job.output, strips, wanted, channels, dtype, _kept(picture, wanted, outputs), quality=outputs.quality)
    return [note for note in notes if note]


def _kept(picture: Picture, size: tuple[int, int], outputs: Outputs) -> Metadata:
    return Metadata() if outputs.strip else picture.metadata.resized(size[1], size[0])


class _Display:
    """Two progress bars, files and the tiles of the current one, with the time that is left; or nothing."""

    def __init__(self, bars: Any, count: int) -> None:
        self.bars, self.began = bars, time.monotonic()
        if bars is not None:
            self.files = bars.add_task("files", total=count, visible=count > 1)
            self.current = bars.add_task("", total=None)

    def start(self, name: str) -> None:
        if self.bars is not None:
            self.bars.reset(self.current, description=f"{name}: tiles", total=None)

    def tiles(self, done: int, total: int) -> None:
        if self.bars is not None:
            self.bars.update(self.current, completed=done, total=total)

    def frames(self, done: int, total: int | None) -> None:
        if self.bars is not None:
            description = self.bars.tasks[self.current].description.replace(": tiles", ": frames")
            self.bars.update(self.current, completed=done, total=total, description=description)

    def file_done(self) -> None:
        if self.bars is not None:
            self.bars.advance(self.files)

    def say(self, line: str) -> None:
        if self.bars is not None:
            self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _display(count: int, show: bool) -> Iterator[_Display]:
    if not show:
        yield _Display(None, count)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True)) as bars:
        yield _Display(bars, count)
