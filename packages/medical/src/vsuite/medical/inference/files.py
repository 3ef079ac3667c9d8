"""Prediction for a list or folder of files: everything is checked first, and one bad file does not stop the others."""

from __future__ import annotations

import contextlib
import json
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.medical.data.datasets import Case
from vsuite.medical.data.dicom import is_series
from vsuite.medical.data.files import ENDINGS, ending_of, is_image, label_ending, read_grid, stem_of
from vsuite.medical.data.labels import first_items
from vsuite.medical.inference.predictor import Predictor
from vsuite.medical.plan import Plan

NUMBERED = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names: one file a channel, case_0000, case_0001, ...


def find_cases(inputs: str | Path | Sequence[str | Path], plan: Plan) -> list[Case]:
    """The cases in files and folders, sorted by name.

    Files named `case_0000.nii.gz`, `case_0001.nii.gz`, ... are the channels of one case; any other is a case of its own
    (4D with the channels last where the plan has several). A folder of a DICOM series is one volume. The `._*` companions that
    macOS leaves are passed over.

    Args:
        inputs: a file, a folder (without its subfolders), or a list of these.

    Raises:
        InputError: for missing files, an empty folder, mixed endings, missing channels, and two cases of one name.
    """
    given = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    files: list[Path] = []
    for path in given:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        whole = path.is_file() or is_series(path)
        found = [path] if whole else sorted(p for p in path.iterdir() if is_image(p))
        if not found:
            raise InputError(f"{path}: holds no images ({', '.join(ENDINGS)})")
        endings = {ending_of(p) for p in found}
        if len(endings) > 1:
            raise InputError(f"{path}: mixes {' and '.join(sorted(endings))} files; one ending is expected")
        files += found
    cases = _numbered(files, plan) or [Case(stem_of(path), (path,)) for path in files]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several inputs would be written as {first_items(twice)}; predict them into folders of their own")
    return sorted(cases, key=lambda case: case.name)


def _numbered(files: Sequence[Path], plan: Plan) -> list[Case]:
    """Cases of one file a channel, if all names say so; else none."""
    matches = [NUMBERED.fullmatch(stem_of(path)) for path in files]
    channels: dict[str, dict[int, Path]] = {}
    for path, match in zip(files, matches, strict=True):
        if match is None:
            return []
        channels.setdefault(match[1], {})[int(match[2])] = path
    if not any(0 in found for found in channels.values()):
        return []
    if len(plan.channels) == 1 and any(len(found) > 1 for found in channels.values()):
        return []  # numbers of cases, not of channels
    wanted = set(range(len(plan.channels)))
    wrong = [f"{name} has {', '.join(f'{i:04}' for i in sorted(found))}" for name, found in channels.items() if set(found) != wanted]
    if wrong:
        names = ", ".join(f"{i:04} {name}" for i, name in enumerate(plan.channels))
        raise InputError(f"{files[0].parent}: {first_items(sorted(wrong))}; the channels expected are {names}")
    return [Case(name, tuple(path for _, path in sorted(found.items()))) for name, found in channels.items()]


def predict_files(
    predictor: Predictor,
    inputs: str | Path | Sequence[str | Path],
    out_folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    save_probabilities: bool = False,
    progress: bool = True,
) -> int:
    """Predicts every case and writes `<case>.nii.gz` (`<case>.png` of a picture) in its own grid, `predictions.json` and `labels.json`.

    A case that fails is recorded with its error, and the others go on. Files appear whole or not at all, so a label map that
    is there is finished.

    Args:
        predictor: see `Predictor`.
        inputs: see `find_cases`.
        out_folder: made if need be.
        resume: leave out cases whose label map is there.
        overwrite: replace label maps that are there. Without either they are an error. Inputs are never overwritten.
        save_probabilities: also write `<case>_probabilities.npy` (float16; K, X, Y, Z).
        progress: show a progress bar and print a line for each case that fails.

    Returns:
        The number of cases that failed.

    Raises:
        InputError: before the first case, if what is wrong shows without reading voxels.
    """
    out_folder, plan = Path(out_folder), predictor.plan
    cases = find_cases(inputs, plan)
    outputs = {case.name: out_folder / f"{case.name}{label_ending(case.images[0])}" for case in cases}
    _check_before(cases, outputs, plan, may_exist=resume or overwrite)
    write_text(
        out_folder / "labels.json", json.dumps({"labels": plan.labels, "regions_class_order": plan.regions_class_order}, indent=1) + "\n"
    )
    records: list[dict[str, Any]] = []
    with _bars(len(cases), progress) as bars:
        for case in cases:
            record: dict[str, Any] = {"case": case.name, "image": [str(path) for path in case.images], "output": str(outputs[case.name])}
            if resume and outputs[case.name].exists():
                records.append(record | {"status": "skipped"})
            else:
                records.append(record | _predict_case(predictor, case, outputs[case.name], save_probabilities, bars))
            write_text(out_folder / "predictions.json", json.dumps({"cases": records}, indent=1) + "\n")
            bars.case_done()
    return sum(record["status"] == "failed" for record in records)


def _predict_case(predictor: Predictor, case: Case, output: Path, save_probabilities: bool, bars: _Bars) -> dict[str, Any]:
    began = time.perf_counter()
    probabilities = output.with_name(f"{case.name}_probabilities.npy") if save_probabilities else None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            image = case.images[0] if len(case.images) == 1 else case.images
            prediction = predictor.predict(image, probabilities=probabilities, progress=bars.windows)
        prediction.save(output)
    except Exception as error:  # whatever is wrong with one case must not stop the others
        message = (str(error) or type(error).__name__).splitlines()[0]
        bars.print(f"{case.name}: failed: {message}")
        return {"status": "failed", "error": message}
    seconds = round(time.perf_counter() - began, 2)
    return {"status": "done", "seconds": seconds, "warnings": sorted({str(w.message) for w in caught if w.category is UserWarning})}


def _check_before(cases: Sequence[Case], outputs: dict[str, Path], plan: Plan, *, may_exist: bool) -> None:
    """What can be known before the first case: channels by the headers, and that nothing is overwritten unasked."""
    sources = {path.resolve() for case in cases for path in case.images}
    for output in outputs.values():
        if output.resolve() in sources:
            raise InputError(f"{output}: is an input; results need a folder of their own")
        if output.exists() and not may_exist:
            raise InputError(f"{output}: exists; resume to skip finished cases, or overwrite")
    wrong = []
    for case in cases:
        with contextlib.suppress(InputError):  # a file that cannot be read fails when its turn comes, alone
            shape, _ = read_grid(case.images[0])
            found = len(case.images) if len(case.images) > 1 else (*shape, 1)[3]
            if found != len(plan.channels):
                wrong.append(f"{case.images[0]} ({found})")
    if wrong:
        names = f"{len(plan.channels)} {'channel' if len(plan.channels) == 1 else 'channels'} ({', '.join(plan.channels)})"
        raise InputError(f"expected {names} an image, another number is in {first_items(wrong)}")


class _Bars:
    """Two progress bars, cases and the windows of the current one; silent without a `rich` display."""

    def __init__(self, display: Any, count: int) -> None:
        self.display = display
        if display is not None:
            self.cases = display.add_task("cases", total=count)
            self.current = display.add_task("windows", total=None)

    def windows(self, done: int, total: int) -> None:
        if self.display is not None:
            self.display.update(self.current, completed=done, total=total)

    def case_done(self) -> None:
        if self.display is not None:
            self.display.advance(self.cases)

    def print(self, line: str) -> None:
        if self.display is not None:
            self.display.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _bars(count: int, show: bool) -> Iterator[_Bars]:
    if not show:
        yield _Bars(None, count)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as display:
        yield _Bars(display, count)
