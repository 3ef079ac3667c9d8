"""What somebody new runs into: few speakers, damaged tables, options of another task, a wrong size of the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vsuite.core import InputError
from vsuite.video_pose.data.detections import read_detections
from vsuite.video_pose.export import write_onnx
from vsuite.video_pose.keywords.data import read_recordings
from vsuite.video_pose.lift.evaluate import print_report
from vsuite.video_pose.lift.walk import make_walk
from vsuite.video_pose.metrics.pose import PoseReport


def walk_seen(path: Path, *, frames: int = 12) -> Path:
    """A walk of Human3.6M's joints from straight ahead: pixels from (0, 0) to about (1900, 1000)."""
    poses = make_walk(1.0)[:frames]
    flat = poses[..., :2] * (1, -1)
    np.save(path, (flat - flat.min((0, 1))) * 500 + (800, 50))
    return path


# --- words ---


@pytest.mark.parametrize(("speakers", "held_out"), [(2, 1), (3, 1), (20, 1), (200, 21)])
def test_some_speaker_is_held_out_however_few_there_are(tmp_path: Path, speakers: int, held_out: int) -> None:
    for word in ("no", "yes"):
        (tmp_path / word).mkdir()
        for number in range(speakers):
            (tmp_path / word / f"spk{number}_nohash_0.wav").touch()
    sides = [read_recordings(tmp_path, split, words=["no", "yes"], fraction=0.1) for split in ("train", "validation")]
    train, validation = ({clip.path.stem for clip in side} for side in sides)
    assert not train & validation
    assert (len(train), len(validation)) == (speakers - held_out, held_out)


def test_one_speaker_alone_cannot_be_held_out(tmp_path: Path) -> None:
    for word in ("no", "yes"):
        (tmp_path / word).mkdir()
        (tmp_path / word / "anna_nohash_0.wav").touch()
    with pytest.raises(InputError, match="one speaker"):
        read_recordings(tmp_path, "validation", words=["no", "yes"], fraction=0.1)


# --- tables and folders of 2D poses ---

HEADER = "frame,nose_x,nose_y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv: is empty"),
        (HEADER + "\n", "a.csv: has a header and no line below it"),
        ("a,b\n1,2\n", "a.csv: has no column 'frame'"),
        (HEADER.replace(",", ";") + "\n1;2;3\n", "a.csv: has no column 'frame'; commas stand between its columns"),
        (HEADER + "\n0,1,2\n1,2\n", "a.csv: line 3 has 2 cells, and the header 3"),
        (HEADER + "\n0,1,2\n1,2,x\n", "a.csv: line 3: could not convert string to float: 'x'"),
    ],
    ids=["empty", "header alone", "no frames", "semicolons", "short line", "a word"],
)
def test_tables_say_what_is_wrong_with_them(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path / "a.csv")


@pytest.mark.parametrize("layout", [None, "body25"])
def test_a_folder_of_openpose_without_anyone(tmp_path: Path, layout: str | None) -> None:
    for frame in range(3):
        (tmp_path / f"a_{frame:012d}_keypoints.json").write_text(json.dumps({"people": []}))
    with pytest.raises(InputError, match="nobody is seen in any of its 3 files"):
        read_detections(tmp_path, layout=layout)


# --- the command line ---


@pytest.mark.parametrize("size", ["1920", "0x0", "1920x", "3x640x480", "axb"])
def test_sizes_that_are_none(vsuite: Callable[..., tuple[int, str, str]], tmp_path: Path, size: str) -> None:
    code, _, error = vsuite("predict", tmp_path, "--size", size)
    assert (code, error) == (2, f"error: --size '{size}' is not of the form 1920x1080: width and height in pixels\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--stream"], "--stream is for action, keywords; these weights are for lift"),
        (["--frames", "5"], "--frames is for forecast; these weights are for lift"),
        (["--explain"], "--explain is for action; these weights are for lift"),
    ],
)
def test_options_of_another_task_are_refused(
    vsuite: Callable[..., tuple[int, str, str]], tmp_path: Path, given: list[str], message: str
) -> None:
    code, _, error = vsuite("predict", walk_seen(tmp_path / "a.npy"), "--out", tmp_path / "out", *given)
    assert (code, error) == (2, f"error: {message}\n")
    assert not (tmp_path / "out").exists()
    code, _, error = vsuite("evaluate", "--data", tmp_path, "--most", "3")
    assert (code, error) == (2, "error: --most is for forecast; these weights are for lift\n")


def test_joints_outside_of_the_picture_are_told(vsuite: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    arguments = ["predict", walk_seen(tmp_path / "a.npy"), "--layout", "h36m17", "--fps", 60, "--no-flip", "--format", "npz"]
    _, said, _ = vsuite(*arguments, "--size", "1920x1080", "--out", tmp_path / "right")
    assert "outside of" not in said
    _, said, _ = vsuite(*arguments, "--size", "640x480", "--out", tmp_path / "wrong")
    assert "100 % of the joints lie outside of the picture of 640x480: is that its size?" in said


def test_nothing_is_said_to_be_written_where_nothing_is(vsuite: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, said, error = vsuite("predict", walk_seen(tmp_path / "a.npy", frames=1), "--out", tmp_path / "out", "--layout", "h36m17")
    assert (code, said) == (2, "")
    assert error.count("\n") == 1


def test_errors_are_told_with_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"mpjpe": 29.4, "p_mpjpe": 24.0, "n_mpjpe": 29.0, "mpjve": 6.0, "pck": 98.8, "auc": 79.6}
    print_report(PoseReport(average=figures, actions={"walking": figures}, joints=[0.0] * 17, num_frames=1), "a walk")
    title, names, units, *rows = capsys.readouterr().out.splitlines()
    assert title.strip() == "a walk"
    assert names.split() == list(figures)
    assert units.split() == ["action", "mm", "mm", "mm", "mm/frame", "%", "%"]
    assert rows[0].split() == ["walking", "29.4", "24.0", "29.0", "6.0", "98.8", "79.6"]


def test_runs_are_called_by_the_whole_name_of_a_folder(
    vsuite: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("words_v0.02", "words.npz"):
        Path("runs", f"{name.removesuffix('.npz')}-lmuformer_speech_small").mkdir(parents=True)
    Path("words_v0.02").mkdir()
    Path("words.npz").touch()
    for name, run_name in (("words_v0.02", "words_v0.02"), ("words.npz", "words")):
        folder = Path("runs", f"{run_name}-lmuformer_speech_small")
        (folder / "settings.yaml").touch()
        code, _, error = vsuite("train", "--data", name, "--recipe", "lmuformer_speech_small", "--device", "cpu")
        assert (code, error) == (2, f"error: {folder}: holds a run already; resume it (--resume), or train into another folder\n")


def test_onnx_of_any_batch_calls_it_so(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    write_onnx(torch.nn.Linear(3, 2), {"points": torch.ones(2, 3)}, "found", tmp_path / "a.onnx", tolerance=1e-5, any_batch=True)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [(one.name, one.shape) for one in (*session.get_inputs(), *session.get_outputs())] == [
        ("points", ["batch", 3]),
        ("found", ["batch", 2]),
    ]


def test_weights_that_are_nowhere(vsuite: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is no run folder: it has no checkpoints/best.safetensors"),
        (tmp_path / "x", "no such file or run folder"),
    ):
        code, _, error = vsuite("export", "--weights", path, "--out", tmp_path / "a.onnx")
        assert (code, error) == (2, f"error: {path}: {message}\n")
