"""Cases as the training loop takes them: prepared once, kept on disk, cut into augmented patches.

Cases are read, normalised and resampled once and stored as plain arrays, which are memory-mapped: the system's page cache
keeps in memory what fits, every worker process shares it, and a patch reads only its own voxels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.medical import __version__
from vsuite.medical.data.datasets import Case
from vsuite.medical.data.files import read_image, read_label
from vsuite.medical.data.geometry import spacing_of
from vsuite.medical.data.labels import IGNORE_INDEX, encode
from vsuite.medical.data.nifti import Volume
from vsuite.medical.data.transforms import (
    AugmentationSettings,
    Interpolation,
    Size,
    VoxelAugmentation,
    drop_boxes,
    random_placement,
    take_patch,
    turn,
    zoomed_slice,
)
from vsuite.medical.plan import Plan
from vsuite.medical.preprocess import Prepared, preprocess, preprocess_label

MAX_LOCATIONS = 4000  # voxels remembered a class, from which the centres of foreground patches are drawn


@dataclass(frozen=True)
class StoredCase:
    """One prepared case, memory-mapped.

    Attributes:
        image: C, D, H, W float32.
        target: 1, D, H, W class indices or K, D, H, W region masks, int16 (see `labels.encode`).
        locations: for each foreground output, N, 3 voxels that belong to it (a sample; N may be 0).
        spacing: mm along D, H, W.
    """

    image: np.ndarray
    target: np.ndarray
    locations: list[np.ndarray]
    spacing: tuple[float, float, float]


class CaseStore:
    """A folder of prepared cases. What is found there from an earlier run with the same files and plan is used again."""

    def __init__(self, folder: str | Path, plan: Plan) -> None:
        self.folder, self.plan = Path(folder), plan
        self._open: dict[str, StoredCase] = {}

    def get(self, case: Case) -> StoredCase:
        """The prepared case; prepares and stores it where it is not there yet.

        Raises:
            InputError: for files that cannot be used, and a folder that cannot be written to.
        """
        if case.name not in self._open:
            stem = self.folder / f"{case.name}-{_key(case, self.plan)}"
            paths = [Path(f"{stem}.{part}.npy") for part in ("image", "target", "locations", "facts")]
            if not paths[-1].exists():  # written last: it stands for all of them
                for path, array in zip(paths, _prepare(case, self.plan), strict=True):
                    with atomic_path(path) as temporary, temporary.open("wb") as file:
                        array = np.ascontiguousarray(array)
                        # written here, because numpy's own saving hides why a write failed
                        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                        file.write(array.data)
            image, target = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths[:2])
            locations, facts = (np.load(path, allow_pickle=False) for path in paths[2:])
            parts = [locations[locations[:, 0] == k, 1:] for k in range(len(self.plan.foreground))]
            self._open[case.name] = StoredCase(image, target, parts, (float(facts[0]), float(facts[1]), float(facts[2])))
        return self._open[case.name]

    def prepare(self, cases: Sequence[Case], progress: bool = True) -> None:
        """Prepares all cases now, with a progress bar, rather than each on its first use."""
        from rich.progress import track

        for case in track(cases, "preparing cases", disable=not progress):
            self.get(case)


def _key(case: Case, plan: Plan) -> str:
    """Names what a prepared case depends on: its files (by path, size and time of change), the plan's part in it, our version."""
    files = [p for p in (*case.images, case.label) if p is not None]
    try:
        stamps = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    except OSError as error:
        raise InputError(f"{case.name}: {error.filename}: {error.strerror}") from error
    used = plan.model_dump(mode="json", include={"channels", "normalisation", "labels", "spacing", "axes", "crop"}) | {"is_2d": plan.is_2d}
    return hashlib.sha256(json.dumps([__version__, stamps, used], sort_keys=True).encode()).hexdigest()[:16]


def _prepare(case: Case, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, target, locations (rows of output, D, H, W) and facts (spacing) of one case."""
    if case.label is None:
        raise InputError(f"{case.name}: has no label to train on")
    image = read_image(case.images, channels=len(plan.channels))
    label = read_label(case.label, like=image)
    prepared = preprocess(image, plan)
    ids = preprocess_label(label, plan)
    if prepared.tensor.shape[1:] != ids.shape:
        raise InputError(f"{case.label}: {ids.shape} voxels, but its image has {tuple(prepared.tensor.shape[1:])}")
    window = _crop_window(plan, ids.shape)
    target = encode(ids[window], plan)
    spacing = spacing_of(prepared.affine)[list(plan.axes)]
    array = np.ascontiguousarray(prepared.tensor.numpy()[(slice(None), *window)])
    return array, target, _locations(target, plan), spacing


def _crop_window(plan: Plan, shape: Sequence[int]) -> tuple[slice, ...]:
    """The plan's fixed crop (x, y, z) as slices in the network's order of axes."""
    if plan.crop is None:
        return (slice(None),) * 3
    for axis, extent in zip(plan.axes, shape, strict=True):
        start, stop = plan.crop[axis]
        if not 0 <= start < stop <= extent:
            raise InputError(f"the plan crops axis {'xyz'[axis]} to {start}..{stop}, but the volume has {extent} voxels there")
    return tuple(slice(*plan.crop[axis]) for axis in plan.axes)


def _locations(target: np.ndarray, plan: Plan) -> np.ndarray:
    """Rows of (output, D, H, W): evenly spread samples of the voxels of each foreground output."""
    rows = []
    for k in range(len(plan.foreground)):
        mask = target[k] == 1 if plan.has_regions else target[0] == k + 1
        flat = np.flatnonzero(mask)
        if len(flat) > MAX_LOCATIONS:
            flat = flat[np.linspace(0, len(flat) - 1, MAX_LOCATIONS).astype(np.int64)]
        voxels = np.stack(np.unravel_index(flat, mask.shape), axis=1)
        rows.append(np.concatenate([np.full((len(voxels), 1), k), voxels], axis=1))
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)


def check_augmentation(augmentation: AugmentationSettings, plan: Plan) -> None:
    """Raises `InputError` for changes that cannot be made to the plan's patches, and that would silently be left out."""
    sides = plan.patch_size
    if augmentation.turn_probability > 0 and not (plan.is_2d and sides[1] == sides[2]):
        raise InputError(f"augmentation.turn_probability: square slices can be turned; the patch is {' x '.join(map(str, sides))}")
    unknown_to_zoom = [name for name in ("scale_probability", "elastic_probability") if getattr(augmentation, name) > 0]
    if plan.zoom_slices and unknown_to_zoom:
        raise InputError(f"augmentation.{unknown_to_zoom[0]}: not with plan.zoom_slices, which takes whole slices; set it to 0")


class TrainingData:
    """Random augmented patches of training cases.

    `sample(index, rng)` depends on nothing but its arguments: the same generator state gives the same patch, in whatever
    order and process samples are drawn.

    Args:
        cases: with labels.
        plan: patch size, axes, labels, mirror axes.
        augmentation: see `AugmentationSettings`.
        store: where prepared cases are kept, or the folder for it.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan, augmentation: AugmentationSettings, store: CaseStore | str | Path) -> None:
        if not cases:
            raise InputError("there are no training cases")
        check_augmentation(augmentation, plan)
        self.cases, self.plan, self.augmentation = list(cases), plan, augmentation
        self.store = store if isinstance(store, CaseStore) else CaseStore(store, plan)
        self._voxels: VoxelAugmentation | None = None

    def __len__(self) -> int:
        """Patches of one pass over the data."""
        return len(self.cases) * self.augmentation.crops_per_case

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One patch of case `index % len(cases)`.

        Returns:
            "image": C, D, H, W float32; "label": 1, D, H, W int64 class indices, or K, D, H, W float32 masks where the plan
            has regions; D, H, W is the plan's patch size.
        """
        settings, size = self.augmentation, self.plan.patch_size
        case = self.store.get(self.cases[index % len(self.cases)])
        start = self._start(case, rng)
        turned = settings.turn_probability > 0 and rng.random() < settings.turn_probability
        if turned:
            settings = settings.model_copy(update={"rotation_probability": 0.0})
        if self.plan.zoom_slices:
            image, label = zoomed_slice(case.image, case.target, start[0], size[1], settings, rng)
        else:
            placement = random_placement(start, size, case.spacing, settings, rng)
            edge = settings.outside_crop == "edge"
            classes = None if self.plan.has_regions else self.plan.num_outputs
            image, label = take_patch(
                case.image, case.target, placement, label_interpolation=self._interpolation(), num_classes=classes, edge=edge
            )
        if turned:
            image, label = turn(image, label, rng)
        mirrored = [axis + 1 for axis in self.plan.mirror_axes if rng.random() < settings.mirror_probability]
        if mirrored:
            image, label = image.flip(mirrored), label.flip(mirrored)
        drop_boxes(image, label, settings, rng)
        if self._voxels is None:
            self._voxels = VoxelAugmentation(settings, flat=self.plan.is_2d)
        image = self._voxels(image, rng)
        return {"image": image.contiguous(), "label": label.contiguous() if self.plan.has_regions else label.long()}

    def _interpolation(self) -> Interpolation:
        # An ignored voxel's number must not be mixed with its neighbours'.
        return "nearest" if "ignore" in self.plan.labels else self.augmentation.label_interpolation

    def _start(self, case: StoredCase, rng: np.random.Generator) -> Size:
        """First voxel of a patch: around a voxel of a class drawn evenly among those present, or anywhere.

        A patch stays inside the volume where it fits; a volume that is smaller stays inside the patch.
        """
        present = [voxels for voxels in case.locations if len(voxels)]
        around = rng.random() < self.augmentation.foreground_share and present
        chosen = present[rng.integers(len(present))] if around else None
        voxel = None if chosen is None else chosen[rng.integers(len(chosen))]
        start = []
        for axis, (extent, size) in enumerate(zip(case.image.shape[1:], self.plan.patch_size, strict=True)):
            low, high = min(0, extent - size), max(0, extent - size)
            wanted = rng.integers(low, high + 1) if voxel is None else int(voxel[axis]) - size // 2
            start.append(int(min(max(wanted, low), high)))
        return start[0], start[1], start[2]


@dataclass(frozen=True)
class ValidationCase:
    """One case to predict whole and to score in its file's own grid.

    Attributes:
        name: of the case.
        image: as read; with a crop, as the network sees it.
        prepared: what the network sees, and the way back to the label's grid.
        label: ids as in the file, 1, X, Y, Z.
    """

    name: str
    image: Volume
    prepared: Prepared
    label: Volume


class ValidationData:
    """Whole cases, prepared for prediction, with their labels in the file's own grid.

    Where the plan has a crop, a case is that box alone, in the network's grid: so the published figures are made.

    Args:
        memory: bytes up to which cases are kept after their first use; the others are read and prepared each time.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan, memory: int = 2**30) -> None:
        for case in cases:
            if case.label is None:
                raise InputError(f"{case.name}: has no label to validate on")
        self.cases, self.plan = list(cases), plan
        self._free, self._kept = memory, {}  # type: int, dict[int, ValidationCase]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> ValidationCase:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self._kept:
            return self._kept[index]
        case = self.cases[index]
        assert case.label is not None
        image = read_image(case.images, channels=len(self.plan.channels))
        item = ValidationCase(case.name, image, preprocess(image, self.plan), read_label(case.label, like=image))
        if self.plan.crop is not None:
            item = _cropped(item, self.plan)
        size = image.array.nbytes + item.prepared.tensor.nbytes + item.label.array.nbytes
        if size <= self._free:
            self._free -= size
            self._kept[index] = item
        return item


def _cropped(case: ValidationCase, plan: Plan) -> ValidationCase:
    """The plan's crop of a case; the box in the network's grid takes the place of the file's own grid."""
    assert plan.crop is not None
    window, back = _crop_window(plan, case.prepared.tensor.shape[1:]), np.argsort(plan.axes)
    tensor = case.prepared.tensor[(slice(None), *window)].contiguous()
    image = tensor.numpy().transpose(0, *(back + 1))
    label = preprocess_label(case.label, plan)[window].transpose(back)
    affine = case.prepared.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [start for start, _ in plan.crop]
    x, y, z = label.shape
    return ValidationCase(
        case.name, Volume(image, affine), Prepared(tensor, affine, plan.axes, (x, y, z), affine), Volume(label[None], affine)
    )


def ignore_index(plan: Plan) -> int | None:
    """What to give the losses as `ignore`: None where the plan's labels ignore nothing."""
    return IGNORE_INDEX if "ignore" in plan.labels else None
