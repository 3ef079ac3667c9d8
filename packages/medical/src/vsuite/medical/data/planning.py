"""From a data set to a plan: what its volumes are like (the fingerprint), and what follows for the network's input.

The rules are those that nnU-Net's users know: the median spacing, a patch as large as the budget allows, normalisation by
the channel's name. Both results are small files to read and to edit.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.core.registry import model_info
from vsuite.core.training.settings import check_settings, load_settings
from vsuite.medical.data.datasets import Case, DatasetDescription, check_case
from vsuite.medical.data.geometry import orientation_of, ras_affine, ras_view, resampled_grid, spacing_of
from vsuite.medical.data.labels import first_items, ids_of
from vsuite.medical.data.nifti import Volume
from vsuite.medical.plan import Normalisation, Plan

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

SAMPLES_A_CASE = 10_000  # foreground voxels a case that enter the intensity statistics
SIDES = (  # words that tell sides apart along x, y, z
    {"left", "right", "l", "r", "lt", "rt"},
    {"anterior", "posterior", "front", "back", "ventral", "dorsal"},
    {"superior", "inferior", "upper", "lower", "cranial", "caudal"},
)
ANISOTROPY = 3.0  # an axis this many times coarser than the others is treated on its own


class CaseFacts(BaseModel):
    """One case: `shape` and `spacing` (mm) along x, y, z (RAS); `orientation` as the file has it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: Shape
    spacing: Triple
    orientation: str


class Intensities(BaseModel):
    """One channel's values inside the foreground, over all cases."""

    model_config = ConfigDict(extra="forbid")

    mean: float
    std: float
    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float


class Fingerprint(BaseModel):
    """What a data set is like.

    Attributes:
        channels: name -> values inside the foreground.
        label_fractions: label or region -> its share of all voxels.
        cases: facts of each case.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str
    channels: dict[str, Intensities]
    label_fractions: dict[str, float]
    cases: list[CaseFacts]

    @property
    def median_spacing(self) -> Triple:
        """mm along x, y, z."""
        return _triple(np.median([case.spacing for case in self.cases], axis=0))


class PlanSettings(BaseModel):
    """What a recipe decides about the plan; None leaves it to the data set.

    Attributes:
        model, options: what is trained; input channels and outputs are filled in from the data set.
        channels: names that the data set must have, in this order.
        labels, regions_class_order: in place of the data set's own; their ids must exist in it.
        normalisation: one rule for all channels, or one a channel.
        spacing: mm along x, y, z; "median" of the data set; "file" leaves every volume at its own.
        patch_size: voxels along the network's D, H, W; else chosen from the median shape within `patch_voxels`.
        patch_voxels: most voxels a patch may have; memory and time of a step grow with it.
            Of a 2D model, slices of 1 x S x S: the model's own `image_size` if it is given, else one that holds most slices.
        axes, crop: as in `Plan`. Without axes they are x, y, z; of a 2D model, slices lie across the axis with the largest
            voxel sides (z where all are alike).
        zoom_slices: as in `Plan`.
        mirror_axes: as in `Plan`; None takes all axes but those along which a label's name tells sides apart (left, anterior,
            upper, ...), since a mirrored left kidney is a right one.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "segformer3d"
    options: dict[str, Any] = Field(default_factory=dict)
    channels: list[str] | None = None
    labels: dict[str, int | list[int]] | None = None
    regions_class_order: list[int] | None = None
    normalisation: Normalisation | list[Normalisation] | None = None
    spacing: Triple | Literal["median", "file"] = "median"
    patch_size: Shape | None = None
    patch_voxels: int = Field(default=96**3, ge=16**3)
    axes: Shape | None = None
    zoom_slices: bool = False
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    mirror_axes: tuple[int, ...] | None = None


# --- fingerprint ---


def fingerprint(description: DatasetDescription, cases: Sequence[Case] | None = None, *, progress: bool = True) -> Fingerprint:
    """Reads and checks every case (see `check_case`) and gathers what planning needs; each file is read once.

    Args:
        cases: the labelled cases to look at; None takes all training cases of the data set.
        progress: show a progress bar.

    Raises:
        InputError: after all cases were read, naming what is wrong with the first of those that cannot be used.
    """
    from rich.progress import track

    cases = description.training if cases is None else list(cases)
    if not cases:
        raise InputError(f"{description.root}: no labelled cases to look at")
    facts, samples, fractions, problems, odd = [], [], [], [], []
    for case in track(cases, "checking cases", disable=not progress):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image, label = check_case(case, description)
                if label is None:
                    raise InputError(f"{case.name}: has no label")
            except InputError as error:
                problems.append(str(error))
                continue
        odd += [str(w.message) for w in caught]
        facts.append(_facts(case, image))
        samples.append(_foreground_values(image.array, label.array[0], description.labels.get("ignore")))
        fractions.append(_fractions(label.array[0], description.labels))
    if problems:
        count = f"{len(problems)} of {len(cases)} cases cannot be used: " if len(cases) > 1 else ""
        raise InputError(count + "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else ""))
    if odd:
        warnings.warn(first_items(odd), stacklevel=2)
    values = np.concatenate(samples, axis=1)
    if not values.size:
        raise InputError(f"{description.root}: no label holds anything but background")
    return Fingerprint(
        dataset=description.name,
        channels={name: _intensities(v) for name, v in zip(description.channels, values, strict=True)},
        label_fractions={name: float(f) for name, f in zip(description.labels, np.mean(fractions, axis=0), strict=True)},
        cases=facts,
    )


def save_fingerprint(result: Fingerprint, path: str | Path) -> None:
    """Writes a fingerprint as JSON."""
    write_text(path, result.model_dump_json(indent=1) + "\n")


def load_fingerprint(path: str | Path) -> Fingerprint:
    """Reads what `save_fingerprint` wrote."""
    return load_settings(path, Fingerprint)


def _facts(case: Case, image: Volume) -> CaseFacts:
    """Shape and spacing as they are once the volume is turned to RAS."""
    affine = ras_affine(image.array.shape[1:], image.affine)
    x, y, z = ras_view(image.array, image.affine).shape[1:]
    return CaseFacts(name=case.name, shape=(x, y, z), spacing=_triple(spacing_of(affine)), orientation=orientation_of(image.affine))


def _foreground_values(image: np.ndarray, label: np.ndarray, ignore: object) -> np.ndarray:
    """C, N: values at an even sample of the foreground voxels; those of the id `ignore` are none."""
    flat = np.flatnonzero(label if ignore is None else (label != 0) & (label != ignore))
    if len(flat) > SAMPLES_A_CASE:
        flat = flat[np.linspace(0, len(flat) - 1, SAMPLES_A_CASE).astype(np.int64)]
    voxels = np.unravel_index(flat, label.shape)
    return image[:, voxels[0], voxels[1], voxels[2]]


def _fractions(label: np.ndarray, labels: dict[str, int | list[int]]) -> list[float]:
    return [float(np.isin(label, ids).mean()) for ids in labels.values()]


def _intensities(values: np.ndarray) -> Intensities:
    values = values.astype(np.float64)
    low, p005, median, p995, high = np.percentile(values, [0, 0.5, 50, 99.5, 100])
    return Intensities(
        mean=float(values.mean()),
        std=float(values.std()),
        minimum=float(low),
        percentile_00_5=float(p005),
        median=float(median),
        percentile_99_5=float(p995),
        maximum=float(high),
    )


# --- plan ---


def make_plan(description: DatasetDescription, result: Fingerprint, settings: PlanSettings | None = None) -> Plan:
    """The plan that follows from a data set and what a recipe decides.

    Raises:
        InputError: where the recipe asks for channels or label ids that the data set does not have.
    """
    settings = settings or PlanSettings()
    _check_channels(description, settings)
    labels = settings.labels or description.labels
    if missing := sorted(ids_of(labels) - ids_of(description.labels)):
        raise InputError(
            f"the recipe's labels use the ids {missing}, which {description.name} does not have: its label map is {description.labels}"
        )
    channels = settings.channels or description.channels
    settings = settings.model_copy(update={"axes": settings.axes or _axes(result, settings)})
    spacing = _spacing(result, settings)
    patch_size = settings.patch_size or (_slice_size if takes_slices(settings) else _patch_size)(result, spacing, settings)
    plan = {
        "dataset": description.name,
        "channels": channels,
        "normalisation": _normalisations(list(result.channels.values()), channels, settings),
        "labels": labels,
        "regions_class_order": settings.regions_class_order if settings.labels else description.regions_class_order,
        "spacing": spacing,
        "patch_size": patch_size,
        "axes": settings.axes,
        "crop": settings.crop,
        "mirror_axes": _mirror_axes(labels, settings),
        "zoom_slices": settings.zoom_slices,
        "model": settings.model,
    }
    num_outputs = check_settings(Plan, plan, "plan").num_outputs
    sizes: dict[str, Any] = {"in_channels": len(channels), "num_classes": num_outputs}
    if "image_size" in model_info(settings.model).options:
        if patch_size[1] != patch_size[2]:
            raise InputError(f"{settings.model} takes square slices; got a patch of {' x '.join(map(str, patch_size))}")
        sizes["image_size"] = patch_size[1]
    return check_settings(Plan, plan | {"options": sizes | settings.options}, "plan")


def fixed_plan(settings: PlanSettings, dataset: str = "") -> Plan:
    """The plan of a recipe that leaves nothing to the data set, as a published one does.

    Raises:
        InputError: naming what the recipe leaves open.
    """
    given = settings.model_dump(mode="json", exclude={"patch_voxels"})
    left = [key for key in ("channels", "labels", "normalisation", "patch_size") if given[key] is None]
    left += ["spacing"] if settings.spacing == "median" else []
    if left:
        raise InputError(
            f"the recipe {dataset!r} leaves {', '.join(left)} to the data set: it is no plan by itself; give a run's plan.yaml"
        )
    given["spacing"] = None if settings.spacing == "file" else given["spacing"]
    if isinstance(settings.normalisation, Normalisation):
        given["normalisation"] = [given["normalisation"]] * len(given["channels"])
    assert settings.labels is not None
    given["mirror_axes"] = _mirror_axes(settings.labels, settings)
    given["axes"] = settings.axes or (0, 1, 2)
    return check_settings(Plan, given | {"dataset": dataset}, "plan")


def median_shape(result: Fingerprint, spacing: Triple | None) -> Triple:
    """The median over the cases of the shape (x, y, z) after resampling to `spacing`."""
    shapes = []
    for case in result.cases:
        affine = np.diag([*case.spacing, 1.0])
        shapes.append(case.shape if spacing is None else resampled_grid(case.shape, affine, spacing)[0])
    return _triple(np.median(shapes, axis=0))


def _check_channels(description: DatasetDescription, settings: PlanSettings) -> None:
    if settings.channels is None:
        return
    wanted, given = ([name.casefold() for name in names] for names in (settings.channels, description.channels))
    if wanted != given:
        raise InputError(f"the recipe is for the channels {settings.channels} in this order; {description.name} has {description.channels}")


def _normalisations(facts: Sequence[Intensities], channels: Sequence[str], settings: PlanSettings) -> list[dict[str, Any]]:
    given = settings.normalisation
    if isinstance(given, list):
        if len(given) != len(channels):
            raise InputError(f"the recipe has {len(given)} normalisations for {len(channels)} channels")
        rules = given
    else:
        rules = [given or _by_name(name, fact) for name, fact in zip(channels, facts, strict=True)]
    return [rule.model_dump() for rule in rules]


def _by_name(channel: str, facts: Intensities) -> Normalisation:
    """nnU-Net's rule: the name says how a channel is scaled; magnetic resonance and anything unknown by z-score."""
    name = channel.casefold()
    if name == "ct":
        return Normalisation(kind="ct", lower=facts.percentile_00_5, upper=facts.percentile_99_5, mean=facts.mean, std=max(facts.std, 1e-8))
    if name == "rescale_to_0_1":
        return Normalisation(kind="rescale_to_0_1")
    return Normalisation(kind="none" if name == "nonorm" else "zscore")


def _mirror_axes(labels: Mapping[str, object], settings: PlanSettings) -> tuple[int, ...]:
    if settings.mirror_axes is not None:
        return settings.mirror_axes
    spaced = (re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name in labels)  # LeftKidney is left as well
    words = {word for name in spaced for word in re.split(r"[^a-z]+", name.casefold())}
    return tuple(i for i, axis in enumerate(settings.axes or (0, 1, 2)) if not words & SIDES[axis])


def _spacing(result: Fingerprint, settings: PlanSettings) -> Triple | None:
    """The median; an axis much coarser than the others takes its finer cases' (10th percentile), so that few are blurred."""
    if settings.spacing == "file":
        return None
    if settings.spacing != "median":
        return settings.spacing
    spacing, shape = np.array(result.median_spacing), median_shape(result, result.median_spacing)
    coarse = int(spacing.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    if spacing[coarse] > ANISOTROPY * spacing[others].max() and shape[coarse] * ANISOTROPY < min(shape[axis] for axis in others):
        finer = float(np.percentile([case.spacing[coarse] for case in result.cases], 10))
        spacing[coarse] = max(finer, float(spacing[others].max()))
    return _triple(np.round(spacing, 6))


def _patch_size(result: Fingerprint, spacing: Triple | None, settings: PlanSettings) -> Shape:
    """The median volume, rounded up to what the network halves evenly; longest side (in mm) cut until the budget holds."""
    stride = _total_stride(settings)
    axes = list(settings.axes or (0, 1, 2))
    shape = np.array(median_shape(result, spacing))[axes]
    sides = np.array(spacing or result.median_spacing)[axes]
    # A volume of few strides would be mostly padding if rounded up to whole ones; the network takes quarters as well.
    steps = [stride if extent >= 2 * stride else max(stride // 4, 1) for extent in shape]
    patch = [max(math.ceil(extent / step) * step, stride // 2) for extent, step in zip(shape, steps, strict=True)]
    while math.prod(patch) > settings.patch_voxels:
        longest = max((a for a in range(3) if patch[a] > max(steps[a], stride // 2)), key=lambda a: patch[a] * sides[a], default=None)
        if longest is None:
            break
        patch[longest] -= steps[longest]
    return patch[0], patch[1], patch[2]


def takes_slices(settings: PlanSettings) -> bool:
    """Whether the plan will be 2D: by the patch, else by the input that the model was published with."""
    if settings.patch_size is not None:
        return settings.patch_size[0] == 1
    return len(model_info(settings.model).input_size) == 3


def _axes(result: Fingerprint, settings: PlanSettings) -> Shape:
    if not takes_slices(settings):
        return 0, 1, 2
    single = [axis for axis in (2, 1, 0) if all(case.shape[axis] == 1 for case in result.cases)]
    sides = result.median_spacing
    across = single[0] if single else max((2, 1, 0), key=lambda axis: round(sides[axis], 2))
    first, second = (axis for axis in range(3) if axis != across)
    return across, first, second


def _slice_size(result: Fingerprint, spacing: Triple | None, settings: PlanSettings) -> Shape:
    """The longer side of the median slice, rounded up to what the network takes, within the budget of voxels."""
    assert settings.axes is not None
    given = settings.options.get("image_size")
    if given is not None:
        return 1, given, given
    shape = median_shape(result, spacing)
    longest = max(shape[axis] for axis in settings.axes[1:])
    step = int(settings.options.get("patch_size") or model_info(settings.model).options.get("patch_size", 16))
    side = min(math.ceil(longest / step), math.isqrt(settings.patch_voxels) // step) * step
    return 1, max(side, 2 * step), max(side, 2 * step)


def _total_stride(settings: PlanSettings) -> int:
    """Voxels a side for one token of the model's coarsest stage."""
    strides = settings.options.get("patch_stride") or model_info(settings.model).options.get("patch_stride", (32,))
    return math.prod(strides)


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z


# --- files ---

_COMMENTS = {
    "dataset": "The data set that this plan was made from.",
    "channels": "The image: its channels in the network's order, and how each is brought to a common scale.",
    "labels": "Names and ids of label files; a list of ids is a region, and regions may overlap.",
    "spacing": "The network's grid. Voxel sides in mm along x, y, z (right, anterior, superior); null keeps each file's own.",
    "patch_size": "Voxels of a training patch and of a prediction window, in the order of `axes`.",
    "axes": "Order in which x, y, z (0, 1, 2) enter the network.",
    "crop": "Fixed start and stop an axis (x, y, z), in training and validation; prediction takes the whole volume.",
    "zoom_slices": "2D: whether whole slices are zoomed to the patch and back, instead of being covered by windows.",
    "mirror_axes": "Axes of the network's input that may be mirrored; never one that tells left from right where labels do.",
    "model": "The network.",
}


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan as YAML with comments, to read and to edit."""
    content = {key: value for key, value in plan.model_dump(mode="json").items() if value is not None or key == "spacing"}
    content["normalisation"] = [{k: v for k, v in rule.items() if v is not None} for rule in content["normalisation"]]
    lines = []
    for key in ("dataset", *(key for key in content if key != "dataset")):
        if key in _COMMENTS:
            lines += ["", f"# {_COMMENTS[key]}"]
        inner = None if isinstance(content[key], list | dict) else False  # lists of numbers stay on one line
        lines.append(yaml.safe_dump({key: content[key]}, sort_keys=False, allow_unicode=True, default_flow_style=inner, width=120).rstrip())
    write_text(path, "\n".join(lines).lstrip() + "\n")


def load_plan(path: str | Path) -> Plan:
    """Reads a plan; raises `InputError` in one line for a misspelt key (naming the nearest), a wrong value, a broken file."""
    return load_settings(path, Plan)
