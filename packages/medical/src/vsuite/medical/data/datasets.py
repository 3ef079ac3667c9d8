"""Data sets on disk: the Decathlon layout, nnU-Net's raw layout, and a plain pair of folders."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vsuite.core.errors import InputError
from vsuite.medical.data import geometry
from vsuite.medical.data.files import ENDINGS, ending_of, is_image, read_grid, read_image, read_label, stem_of
from vsuite.medical.data.labels import check_ids, first_items, ids_in, labels_by_name
from vsuite.medical.data.nifti import Volume

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))


@dataclass(frozen=True)
class Case:
    """One case: its image is one file (3D, or 4D with the channels last) or one file a channel."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass
class DatasetDescription:
    """What a data set holds.

    Attributes:
        channels: names of the channels, in file order; they also choose the normalisation (see `planning`).
        labels: name -> id, or list of ids for a region; "background" is 0, "ignore" marks voxels without a label.
        regions_class_order: with regions, the id written for each of them.
        training, test: cases with and without a label, sorted by name.
        notes: what is unusual but usable; shown by `describe`.
        own_split: names of the cases to train and to validate on, where the data set comes divided.
    """

    name: str
    root: Path
    layout: Literal["decathlon", "nnunet", "folders", "synapse", "acdc"]
    channels: list[str]
    labels: dict[str, int | list[int]]
    training: list[Case]
    test: list[Case] = field(default_factory=list)
    regions_class_order: list[int] | None = None
    notes: list[str] = field(default_factory=list)
    own_split: tuple[list[str], list[str]] | None = None


@dataclass
class _Findings:
    """Problems (which end the reading) and notes, collected so that all are reported at once."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, what: str, items: Iterable[object]) -> None:
        """Adds "`what`: first items" if there are any items."""
        if shown := first_items(items):
            self.problems.append(f"{what}: {shown}")


def read_dataset(path: str | Path) -> DatasetDescription:
    """Finds out what a folder (or its dataset.json) holds.

    Args:
        path: a folder with a `dataset.json` in the Decathlon layout or nnU-Net's raw layout (told apart by what the file
            says), one with `images` and `labels` (or `imagesTr` and `labelsTr`) and no JSON, or Synapse or ACDC as `slice_sets`
            describes them; or the JSON file itself.

    Raises:
        InputError: naming everything that is wrong at once: files that are missing, channels that are missing, mixed
            endings, labels without an image, and so on.
    """
    from vsuite.medical.data.slice_sets import read_slice_set  # which builds on this module

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; a data set is a folder with dataset.json, or with images/ and labels/")
    manifest = path / "dataset.json" if path.is_dir() else path
    root = manifest.parent
    findings = _Findings()
    if not manifest.exists():
        description = read_slice_set(root) or _read_folders(root, findings)
    else:
        content = read_json(manifest)
        description = _reader(content, manifest)(root, content, findings)
    _check_structure(description, findings)
    if findings.problems:
        count = f"{len(findings.problems)} problems: " if len(findings.problems) > 1 else ""
        raise InputError(f"{path}: {count}{'; '.join(findings.problems)}")
    description.notes = findings.notes
    return description


def describe(description: DatasetDescription) -> str:
    """What was understood, for the terminal: layout, channels, labels, cases, and notes."""
    layouts = {
        "decathlon": "Decathlon (dataset.json)",
        "nnunet": "nnU-Net raw",
        "folders": "a pair of folders",
        "synapse": "Synapse, prepared",
        "acdc": "ACDC",
    }
    labels = [f"{ids} {name}" if isinstance(ids, int) else f"{ids} {name} (region)" for name, ids in description.labels.items()]
    test = f", {len(description.test)} for test" if description.test else ""
    lines = [
        f"{description.name}: {layouts[description.layout]} at {description.root}",
        f"  channels: {', '.join(f'{i} {name}' for i, name in enumerate(description.channels))}",
        f"  labels:   {', '.join(labels)}",
        f"  cases:    {len(description.training)} with labels{test}",
    ]
    return "\n".join(lines + [f"  note: {note}" for note in description.notes])


def check_case(case: Case, description: DatasetDescription) -> tuple[Volume, Volume | None]:
    """Reads one case and checks it.

    Returns:
        the image and the label as read, so that files are read once.

    Raises:
        InputError: for a file that cannot be used (see `nifti.read_image`), grids that differ (which, by how much) and
            ids outside the label map.
    """
    image = read_image(case.images, channels=len(description.channels))
    if case.label is None:
        return image, None
    label = read_label(case.label, like=image)
    if gap := geometry.difference(image.array.shape[1:], image.affine, label.array.shape[1:], label.affine):
        raise InputError(f"{case.label}: not on the grid of its image {case.images[0].name} (image against label): {gap}")
    check_ids(label.array, description.labels, case.label)
    return image, label


# --- the layouts ---


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `InputError` where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read, not a readable JSON file: {error}") from error


def _reader(content: Any, path: Path) -> Callable[[Path, dict[str, Any], _Findings], DatasetDescription]:
    """Tells the two JSON layouts apart: Decathlon lists its files, nnU-Net names its channels and a file ending."""
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        if "channel_names" in content:
            return _read_nnunet
        if isinstance(content.get("training"), list):
            return _read_decathlon
    raise InputError(
        f"{path}: neither Decathlon (needs modality, labels, training) nor nnU-Net v2 (needs channel_names, labels, file_ending)"
    )


def _read_decathlon(root: Path, content: dict[str, Any], findings: _Findings) -> DatasetDescription:
    def case(entry: Any) -> Case | None:
        given = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(given, dict) or not given.get("image"):
            findings.problems.append(f"dataset.json: an entry without an image: {entry!r}")
            return None
        images = [given["image"]] if isinstance(given["image"], str) else given["image"]
        if not isinstance(images, list) or not all(isinstance(file, str) for file in [*images, given.get("label") or ""]):
            findings.problems.append(f"dataset.json: an entry whose files are not named by text: {entry!r}")
            return None
        label = root / given["label"] if given.get("label") else None
        named_by = label or root / images[0]
        return Case(stem_of(named_by), tuple(root / image for image in images), label)

    training = [c for entry in content["training"] if (c := case(entry))]
    test = [c for entry in content.get("test") or [] if (c := case(entry))]
    findings.problem("dataset.json lists no label for", [c.name for c in training if c.label is None])
    modality = content.get("modality") or {}
    channels = (
        [str(modality[key]) for key in sorted(modality, key=_as_number)] if isinstance(modality, dict) else [str(m) for m in modality]
    )
    if not channels and training:
        channels = _unnamed_channels(training[0])
    _compare_count(content.get("numTraining"), training, findings)
    labels = _labels_by_name(content["labels"], findings)
    order = content.get("regions_class_order")
    return DatasetDescription(str(content.get("name") or root.name), root, "decathlon", channels, labels, training, test, order)


def _read_nnunet(root: Path, content: dict[str, Any], findings: _Findings) -> DatasetDescription:
    names = content["channel_names"]
    if not isinstance(names, dict) or not names:
        raise InputError(f'{root / "dataset.json"}: channel_names must map numbers to names, such as {{"0": "CT"}}; got {names!r}')
    channels = [str(names[key]) for key in sorted(names, key=_as_number)]
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        findings.problems.append(f"file_ending {ending!r} cannot be read; it is one of {', '.join(ENDINGS)}")
    training = _numbered_cases(root / "imagesTr", root / "labelsTr", ending, len(channels), findings)
    test = _numbered_cases(root / "imagesTs", None, ending, len(channels), findings) if (root / "imagesTs").is_dir() else []
    _compare_count(content.get("numTraining"), training, findings)
    labels = _labels_by_name(content["labels"], findings)
    order = content.get("regions_class_order")
    return DatasetDescription(str(content.get("name") or root.name), root, "nnunet", channels, labels, training, test, order)


def _read_folders(root: Path, findings: _Findings) -> DatasetDescription:
    pair = next(((root / i, root / j) for i, j in FOLDERS if (root / i).is_dir() and (root / j).is_dir()), None)
    if pair is None:
        raise InputError(f"{root}: not a data set: neither dataset.json, nor images/ with labels/, nor imagesTr/ with labelsTr/ in it")
    images, labels = _image_files(pair[0]), {stem_of(p): p for p in _image_files(pair[1])}
    numbered = bool(images) and all(re.fullmatch(r".+_\d{4}", stem_of(p)) for p in images) and not any(stem_of(p) in labels for p in images)
    if numbered:
        count = len({stem_of(p)[-4:] for p in images})
        ending = ending_of(images[0])
        training = _numbered_cases(*pair, ending, count, findings)
        channels = [f"channel {i}" for i in range(count)]
    else:
        training = [Case(stem_of(p), (p,), labels.get(stem_of(p))) for p in images]
        findings.problem("images without a label", [c.name for c in training if c.label is None])
        findings.problem("labels without an image", sorted(labels.keys() - {c.name for c in training}))
        channels = _unnamed_channels(training[0]) if training else ["image"]
    found = {i for p in labels.values() for i in ids_in(read_label(p).array)} - {0} if not findings.problems else set()
    names: dict[str, int | list[int]] = {"background": 0, **{f"label {i}": i for i in sorted(found)}}
    findings.notes.append("no dataset.json: label ids were read from the files, names are made up")
    return DatasetDescription(root.resolve().name, root, "folders", channels, names, training)


# --- pieces ---


def _image_files(folder: Path) -> list[Path]:
    """The images or label maps of a folder, sorted; without the `._*` twins that macOS puts into archives."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image(path))


def _as_number(key: Any) -> tuple[int, str]:
    return (int(key), "") if str(key).lstrip("-").isdigit() else (1 << 30, str(key))


def _numbered_cases(images: Path, labels: Path | None, ending: str, count: int, findings: _Findings) -> list[Case]:
    """Cases of one file a channel, `{case}_{XXXX}{ending}`, and their labels `{case}{ending}`."""
    files = _image_files(images)
    findings.problem(f"{images.name}: files that do not end in {ending}", [p.name for p in files if not _ends(p, ending)])
    matches = {p: re.fullmatch(r"(.+)_(\d{4})", stem_of(p)) for p in files}
    findings.problem(f"{images.name}: names without a channel number such as _0000", [p.name for p, m in matches.items() if not m])
    by_case: dict[str, dict[int, Path]] = {}
    for path, match in matches.items():
        if match:
            by_case.setdefault(match[1], {})[int(match[2])] = path
    gaps = [f"{name}_{i:04d}" for name, found in by_case.items() for i in range(count) if i not in found]
    findings.problem(f"{images.name}: missing channels", gaps)
    extra = [found[i].name for found in by_case.values() for i in sorted(found) if i >= count]
    findings.problem(f"{images.name}: more channels than the {count} that are named", extra)
    given = {stem_of(p): p for p in _image_files(labels)} if labels else {}
    if labels:
        findings.problem(f"{labels.name}: files that do not end in {ending}", [p.name for p in given.values() if not _ends(p, ending)])
        findings.problem("images without a label", sorted(by_case.keys() - given.keys()))
        findings.problem("labels without an image", sorted(given.keys() - by_case.keys()))
    return [Case(name, tuple(found[i] for i in sorted(found)), given.get(name)) for name, found in sorted(by_case.items())]


def _ends(path: Path, ending: str) -> bool:
    return path.name == stem_of(path) + ending


def _unnamed_channels(case: Case) -> list[str]:
    """Names for channels that nothing names, counted in the first case's header."""
    if len(case.images) > 1 or not case.images[0].exists():
        return [f"channel {i}" for i in range(len(case.images))]
    shape, _ = read_grid(case.images[0])
    return [f"channel {i}" for i in range(shape[3] if len(shape) > 3 else 1)]


def _labels_by_name(given: dict[Any, Any], findings: _Findings) -> dict[str, int | list[int]]:
    labels, problems = labels_by_name(given)
    findings.problems += problems
    plain = sorted(ids for name, ids in labels.items() if isinstance(ids, int) and name != "ignore")
    if len(plain) == len(labels) - ("ignore" in labels) and plain != list(range(len(plain))):
        findings.notes.append(f"label ids are not consecutive ({plain}); they are mapped, and predictions carry the ids of the files")
    return labels


def _check_regions(description: DatasetDescription, findings: _Findings) -> None:
    regions = [ids for name, ids in description.labels.items() if name not in ("background", "ignore")]
    order = description.regions_class_order
    if not any(isinstance(ids, list) for ids in regions):
        description.regions_class_order = None
        return
    if not isinstance(order, list) or not all(isinstance(i, int) for i in order):
        findings.problems.append("labels with regions need regions_class_order: the id to write for each region")
    elif len(order) != len(regions):
        findings.problems.append(f"regions_class_order has {len(order)} ids for {len(regions)} regions")


def _compare_count(announced: Any, training: Sequence[Case], findings: _Findings) -> None:
    if isinstance(announced, int) and announced != len(training):
        findings.notes.append(f"dataset.json says numTraining {announced}, but there are {len(training)} cases")


def _check_structure(description: DatasetDescription, findings: _Findings) -> None:
    """What must hold in every layout."""
    if not description.training and not findings.problems:
        findings.problems.append("no training cases in it")
    _check_regions(description, findings)
    cases = [*description.training, *description.test]
    files = [path for case in cases for path in (*case.images, *([case.label] if case.label else []))]
    findings.problem("missing files", [_below(p, description.root) for p in files if not p.is_file()])
    for kind, group in (("training", description.training), ("test", description.test)):
        twice = sorted(name for name, n in Counter(c.name for c in group).items() if n > 1)
        findings.problem(f"{kind} cases that are listed twice", twice)
    if len(description.labels) < 2 and not findings.problems:
        findings.problems.append("no label beside the background")
    if description.own_split is None and len({ending_of(p) for c in description.training for p in c.images}) > 1:
        findings.problem("mixed file endings among the images", [c.images[0].name for c in _odd_endings(description.training)])
    odd = [p.name for p in files if ending_of(p) not in ENDINGS]
    findings.problem(f"no images or label maps ({', '.join(ENDINGS)})", odd)
    description.training.sort(key=lambda c: c.name)
    description.test.sort(key=lambda c: c.name)


def _odd_endings(cases: Sequence[Case]) -> list[Case]:
    """The cases whose file ending is the rarer one."""
    endings = {c.name: ending_of(c.images[0]) for c in cases}
    usual = Counter(endings.values()).most_common(1)[0][0]
    return [c for c in cases if endings[c.name] != usual]


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
