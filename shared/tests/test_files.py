from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vsuite.core import InputError
from vsuite.core.files import atomic_path, write_text


def test_write_text_makes_folders_and_writes_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "Größe µm\n")
    assert path.read_bytes() == "Größe µm\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["label.nii.gz", "model.safetensors", "no_suffix", ".hidden"])
def test_the_temporary_name_ends_like_the_final_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary != path
        assert temporary.name.endswith(name.partition(".")[2] or name)
        assert not path.exists()
        temporary.write_text("x")
    assert path.read_text() == "x"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, InputError])
def test_an_error_leaves_the_old_file_and_no_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "out.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o640


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out\.txt: cannot be written"):
        write_text(tmp_path / "file" / "out.txt", "x")


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: cannot be written: Is a directory"):
        write_text(tmp_path / "out", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: cannot be written: it is no regular file"):
        write_text(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


def test_an_error_that_has_nothing_to_do_with_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "out.txt"):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_read_only_folder() -> None:
    with pytest.raises(InputError, match=r"/proc/self/out\.txt: cannot be written"):
        write_text("/proc/self/out.txt", "x")


FULL_DISK = """
import resource, signal, sys
import torch
from vsuite.core import InputError
from vsuite.core.files import write_text
from vsuite.core.weights import save_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for path in sys.argv[1:]:
    try:
        write_text(path, "x" * 100_000) if path.endswith(".txt") else save_weights(torch.nn.Linear(200, 200), path)
    except InputError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: writing fails half way, as there."""
    paths = [tmp_path / name for name in ("out.pth", "out.safetensors", "out.txt")]
    for path in paths:
        path.write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *map(str, paths)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert all(line.startswith(f"{path}: cannot be written") for line, path in zip(lines, paths, strict=True)), lines
    assert all(path.read_text() == "old" for path in paths)
    assert sorted(tmp_path.iterdir()) == paths
