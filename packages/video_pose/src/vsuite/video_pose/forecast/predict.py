"""Predicting the next frames of videos and arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsuite.core.batch import Summary, check_names, check_results, find_files
from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.optimize import optimize_for_inference
from vsuite.core.terminal import console
from vsuite.video_pose.data.arrays import read_npy
from vsuite.video_pose.data.videos import VIDEO_SUFFIXES, list_pictures, stream_frames
from vsuite.video_pose.forecast.clips import prepared
from vsuite.video_pose.forecast.data import frames_of
from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.notes import load_model
from vsuite.video_pose.render.strips import write_animation, write_strip

Clip = NDArray[np.float32]


class Predictor:
    """A model kept in memory for any number of clips.

    Args:
        source: weights that `vsuite-pose train` saved, or a run folder.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.

    Raises:
        InputError: for files that are no weights of this package, and weights for another task.
    """

    def __init__(self, source: str | Path, *, device: str | torch.device | None = None, precision: Precision = "fp32") -> None:
        check_precision(precision)
        network, self.note = load_model(source, "forecast", Note)
        self.device, self.precision = pick_device(device), precision
        self.model: Any = optimize_for_inference(network, precision=precision).to(self.device)

    def predict(self, frames: NDArray, num_frames: int | None = None, *, source: object = "the clip") -> Clip:
        """The frames that come next, in the values that the data have: num_frames, C, H, W, float32.

        Args:
            frames: (T, C, H, W), or (T, H, W) of one channel; bytes are divided by 255. The last ones are observed.
            num_frames: None gives as many as the model observes. For more, it is given what it has predicted.
            source: what errors call the frames.

        Raises:
            InputError: for too few frames, another size than the model's, and NaN.
        """
        clip = frames_of(frames, source, dims=4)
        self.note.check(clip, source)
        return self.note.restore(self.predict_batch(self.note.normalise(clip[None, -self.note.frames :]), num_frames)[0])

    def predict_batch(self, observed: Clip, num_frames: int | None = None) -> Clip:
        """As the network reads and gives values: B, T, C, H, W -> B, num_frames, C, H, W."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            found = self.model.predict(torch.from_numpy(observed).to(self.device), num_frames or self.note.frames)
        return found.float().cpu().numpy()


def find_inputs(inputs: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Video files, arrays (.npy) and folders of pictures, in files, folders and patterns; see `vsuite.core.batch.find_files`."""

    def inside(folder: Path) -> list[Path]:
        return [folder] if list_pictures(folder) else sorted(file for file in folder.iterdir() if _usable(file))

    return find_files(inputs, inside, _usable, "videos, no pictures and no .npy")


def _usable(path: Path) -> bool:
    return bool(list_pictures(path)) if path.is_dir() else path.suffix.lower() in (*VIDEO_SUFFIXES, ".npy")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    num_frames: int | None = None,
    start: int | None = None,
    overwrite: bool = False,
) -> Summary:
    """Predicts every input, and writes NAME.npy (frames, channels, height, width), the strip NAME.png and the animation NAME.gif.

    Args:
        inputs: see `find_inputs`. An array is of the model's own size; videos are brought to it.
        num_frames: to predict; None gives as many as the model observes.
        start: first frame to observe; what comes after the observed ones is then compared with the prediction. None observes the last ones.
        overwrite: replace results that are there.

    Raises:
        InputError: where nothing that was given is there, two inputs have one name, or results are there: before anything is computed.
    """
    if num_frames is not None and num_frames < 1:
        raise InputError(f"the number of frames to predict must be 1 or more; got {num_frames}")
    if start is not None and start < 0:
        raise InputError(f"the first frame must be 0 or more; got {start}")
    (paths, missing), out = find_inputs(inputs), Path(out)
    names = [path.name if path.is_dir() else path.stem for path in paths]
    check_names(names)
    check_results(out, (f"{name}{ending}" for name in names for ending in (".npy", ".png", ".gif")), overwrite=overwrite)
    summary = Summary(failed=missing)
    with console(stderr=True).status("") as status:
        for number, (name, path) in enumerate(zip(names, paths, strict=True), 1):
            status.update(f"{number} of {len(paths)}: {name}")
            try:
                summary.lines.append(_predict_file(predictor, path, out / name, num_frames or predictor.note.frames, start))
            except InputError as error:
                summary.failed.append(str(error))
    return summary


def _predict_file(predictor: Predictor, path: Path, target: Path, num_frames: int, start: int | None) -> str:
    note = predictor.note
    observed, truth = _read(path, note, num_frames, start)
    predicted = predictor.predict(observed, num_frames, source=path)
    with atomic_path(target.with_name(f"{target.name}.npy")) as temporary:
        np.save(temporary, predicted)
    shown = as_rgb(observed, note), as_rgb(predicted, note), None if truth is None else as_rgb(truth, note)
    write_strip(target.with_name(f"{target.name}.png"), *shown)
    write_animation(target.with_name(f"{target.name}.gif"), *shown)
    compared = ""
    if truth is not None:
        errors = [float(((guess - truth) ** 2).mean()) for guess in (predicted, observed[-1:])]
        compared = f"; mean squared error {errors[0]:.4g}, that of repeating the last frame {errors[1]:.4g}"
    return f"{target.name}: {num_frames} frames{compared}"


def as_rgb(frames: Clip, note: Note) -> Clip:
    """Frames in the order of channels that pictures have."""
    return frames[:, ::-1] if note.colours == "bgr" and note.channels == 3 else frames


def _read(path: Path, note: Note, num_frames: int, start: int | None) -> tuple[Clip, Clip | None]:
    """The observed frames, and those after them where the start is given and all of these are there."""
    total = note.frames if start is None else note.frames + num_frames
    if path.suffix.lower() == ".npy":
        frames = frames_of(read_npy(path), path, dims=4)
        note.check(frames, path)
        frames = frames[:: -note.stride][::-1] if start is None else frames[start :: note.stride]
        chosen = frames[-total:] if start is None else frames[:total]
    else:
        chosen = _chosen(stream_frames(path), note, total, start)
    if len(chosen) < note.frames:
        whole = f"from frame {start} on it " if start else ""
        raise InputError(f"{path}: {whole}has {len(chosen)} frames{_apart(note)}; this model observes {note.frames}")
    observed, later = chosen[: note.frames], chosen[note.frames :]
    return observed, later if len(later) == num_frames else None


def _chosen(stream: Iterator[NDArray[np.uint8]], note: Note, total: int, start: int | None) -> Clip:
    """Frames of a video, at the model's stride and size: from the start on, or the last ones. No more are kept than needed."""
    kept: deque[NDArray[np.uint8]] = deque(maxlen=(total - 1) * note.stride + 1 if start is None else None)
    for number, frame in enumerate(stream):
        if start is None:
            kept.append(prepared(frame, (note.height, note.width), note.colours))
        elif number >= start and (number - start) % note.stride == 0:
            kept.append(prepared(frame, (note.height, note.width), note.colours))
            if len(kept) == total:
                break
    frames = list(kept)[:: -note.stride][::-1] if start is None else list(kept)
    if not frames:
        return np.zeros((0, *note.frame), np.float32)
    clip = np.stack(frames).astype(np.float32) / np.float32(255)
    if clip.shape[1:] != note.frame:
        raise InputError(f"this model reads frames of {note.channels} channels, which are no pictures: give it arrays (.npy)")
    return clip


def _apart(note: Note) -> str:
    return f" at a stride of {note.stride}" if note.stride > 1 else ""
