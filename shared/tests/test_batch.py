"""Batches of files: what is meant, what may be written, what is said at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsuite.core import InputError
from vsuite.core.batch import Summary, check_failed, check_names, check_results, complaint, find_files
from vsuite.core.cli import options


def found(*inputs: str | Path) -> list[str]:
    return [path.name for path in find(*inputs)[0]]


def find(*inputs: str | Path) -> tuple[list[Path], list[str]]:
    return find_files(inputs, lambda folder: sorted(folder.glob("*.txt")), lambda path: path.suffix == ".txt", "texts")


def test_files_folders_and_patterns_each_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.bin", "[1].txt"):
        (tmp_path / name).touch()
    assert found(tmp_path) == ["[1].txt", "a.txt", "b.txt"]
    assert found(tmp_path / "b.txt", str(tmp_path / "*"), tmp_path) == ["b.txt", "[1].txt", "a.txt"]
    assert found(tmp_path / "c.bin", tmp_path / "[1].txt") == ["c.bin", "[1].txt"]  # what is named is meant, whatever it is called
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no texts$"):
        found(tmp_path / "empty")
    for missing in ("none.txt", "*.bin", "**/d.txt"):
        with pytest.raises(InputError, match="no such file or folder, and no file matches it"):
            found(str(tmp_path / missing))


def test_what_is_missing_is_told_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    missing, empty = tmp_path / "none.txt", tmp_path / "empty"
    empty.mkdir()
    paths, failed = find(missing, tmp_path, empty, str(tmp_path / "*.bin"), missing)
    assert paths == [tmp_path / "a.txt"]
    assert failed == [
        f"{missing}: no such file or folder, and no file matches it",
        f"{empty}: holds no texts",
        f"{tmp_path}/*.bin: no such file or folder, and no file matches it",
    ]
    with pytest.raises(InputError, match=r"none\.txt: no such file or folder, and no file matches it$"):
        find(missing, str(tmp_path / "*.bin"), empty)


def test_results_of_one_name_and_results_that_are_there(tmp_path: Path) -> None:
    check_names(["a", "b"])
    with pytest.raises(InputError, match="two inputs are called 'b'"):
        check_names(["a", "b", "b"])
    (tmp_path / "b.json").touch()
    check_results(tmp_path, ["a.json"], overwrite=False)
    check_results(tmp_path, ["a.json", "b.json"], overwrite=True)
    with pytest.raises(InputError, match=r"b\.json: exists; --overwrite replaces it"):
        check_results(tmp_path, ["a.json", "b.json"], overwrite=False)
    with pytest.raises(InputError, match=r"b\.json: is a file; --out names a folder"):
        check_results(tmp_path / "b.json", [], overwrite=True)


def test_what_is_said_of_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    done = Summary([f"{number}: good" for number in range(30)], [f"{number}: bad" for number in range(9)])
    options.say_predicted(done, Path("out"))
    with pytest.raises(InputError, match=r"^9 of 39 files failed; first: 0: bad$"):
        options.say_failed(done.failed, done.total, "files failed")
    said = capsys.readouterr()
    assert said.out.splitlines() == [*done.lines[:20], "30 predicted; files in out"]
    assert said.err.splitlines() == [f"not used: {number}: bad" for number in range(1, 5)]
    check_failed([], 3)
    with pytest.raises(InputError, match=r"^a: bad$"):
        check_failed(["a: bad"], 1)
    assert complaint(InputError("a.txt: is empty"), Path("a.txt")) == complaint(InputError("is empty"), Path("a.txt")) == "a.txt: is empty"
