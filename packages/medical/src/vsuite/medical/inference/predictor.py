"""A loaded model (or several) that turns images into label maps in the image's own grid."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsuite.core import load_published, optimize_for_inference
from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path
from vsuite.core.training.settings import check_settings
from vsuite.core.weights import find_weights, read_metadata
from vsuite.medical.data.files import read_image, write_label
from vsuite.medical.data.geometry import FloatArray, shear_angle, spacing_of
from vsuite.medical.data.labels import ids_of
from vsuite.medical.data.nifti import MAX_SHEAR, Volume
from vsuite.medical.inference.postprocess import keep_largest_component, remove_small_components
from vsuite.medical.inference.restore import Interpolation, restore_label
from vsuite.medical.inference.slices import run_network, stream_slices
from vsuite.medical.inference.sliding_window import Blend, Progress, crop_to, stream_slabs, thinnest_slab
from vsuite.medical.plan import Plan
from vsuite.medical.preprocess import Prepared, preprocess

Source = str | Path | tuple[nn.Module, Plan]
SIGMA_SCALE = 0.125  # of a window's Gaussian weights, as MONAI's
# What the models of an ensemble must have in common; their networks may differ.
SHARED = ("channels", "normalisation", "labels", "regions_class_order", "spacing", "axes", "patch_size", "zoom_slices")


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        label: X, Y, Z ids in the image's own grid, in the smallest unsigned type.
        affine: the image's own.
        header: of the image's file, if it came from one.
        probabilities: K, X, Y, Z float16 on disk (read-only memory map), if they were asked for.
    """

    label: NDArray[Any]
    affine: FloatArray
    header: Any = None
    probabilities: NDArray[Any] | None = None

    def save(self, path: str | Path) -> None:
        """Writes the label map on the image's own grid, as NIfTI or, of a picture, as PNG; see `write_label`."""
        write_label(path, self.label, Volume(self.label[None], self.affine, self.header))


class Predictor:
    """One model or an ensemble, kept in memory for any number of images.

    Args:
        source: a weights file that holds its plan (as `vsuite-medical train` saves it), the name of weights that an
            installed package ships, a pair (model, plan), or a list of these: their logits are averaged.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        overlap: of windows, 0 to below 1.
        blend: "gaussian" or "constant" weights of overlapping windows.
        mirror: average over all mirrorings along the plan's `mirror_axes` (slower by 2 to the power of their number).
        batch_size: windows or slices a call of the network; None takes 1 window or 8 slices on CPU, 4 or 32 elsewhere.
        interpolation: "linear" takes the decision on logits interpolated to the image's grid; "nearest" resamples labels.
        largest_component: keep only the largest connected component of each of these, ids or names of labels; of a region,
            the largest of all its ids together.
        smallest_component: drop connected components below this volume in mm^3.
        zoom_slices: in place of the plan's; only for a 2D plan.
        compile: compile the network (minutes on the first image).

    Raises:
        InputError: for files that are no weights or hold no plan, for plans that do not agree, and for options out of range.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        *,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        overlap: float = 0.5,
        blend: Blend = "gaussian",
        mirror: bool = False,
        batch_size: int | None = None,
        interpolation: Interpolation = "linear",
        largest_component: Sequence[int | str] = (),
        smallest_component: float = 0.0,
        zoom_slices: bool | None = None,
        compile: bool = False,
    ) -> None:
        check_precision(precision)
        for name, value, allowed in (
            ("blend", blend, get_args(Blend)),
            ("interpolation", interpolation, get_args(Interpolation)),
        ):
            if value not in allowed:
                raise unknown(name, str(value), allowed)
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must be from 0 to below 1; got {overlap}")
        self.device = pick_device(device)
        sources = _sources(source)
        loaded = [load_model_and_plan(one) for one in sources]
        if not loaded:
            raise InputError("at least one weights file is needed; got none")
        self.plan = _common_plan(sources, [plan for _, plan in loaded])
        if zoom_slices is not None:
            self.plan = check_settings(Plan, self.plan.model_dump() | {"zoom_slices": zoom_slices}, "prediction")
        usual = (8 if self.plan.is_2d else 1) if self.device.type == "cpu" else (32 if self.plan.is_2d else 4)
        self.batch_size = usual if batch_size is None else batch_size
        if self.batch_size < 1:
            raise InputError(f"batch_size must be 1 or more; got {batch_size}")
        self.models = [optimize_for_inference(model, compile=compile, precision=precision).to(self.device) for model, _ in loaded]
        self.precision, self.overlap, self.blend, self.interpolation = precision, overlap, blend, interpolation
        axes = [axis + 2 for axis in self.plan.mirror_axes] if mirror else []
        self.mirrors = [flips for count in range(len(axes) + 1) for flips in itertools.combinations(axes, count)]
        self.largest_component = [_ids_of(one, self.plan) for one in largest_component]
        self.smallest_component = smallest_component

    def predict(
        self,
        image: str | Path | Sequence[str | Path] | NDArray[Any],
        affine: FloatArray | None = None,
        *,
        probabilities: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segments one image.

        Args:
            image: a NIfTI file (3D, or 4D with the channels last), one file a channel, or an array C, X, Y, Z (X, Y, Z for
                one channel) in nibabel's axis order.
            affine: for an array, its 4x4 matrix to RAS+ mm.
            probabilities: also write class probabilities to this `.npy` file, as float16 K, X, Y, Z in the image's grid.
            progress: called with the windows done and the number of windows.

        Raises:
            InputError: for files or arrays that cannot be used (which, and why).
        """
        prepared, header = self._prepare(image, affine)
        label = self.predict_prepared(prepared, probabilities=probabilities, progress=progress)
        written = None if probabilities is None else np.load(probabilities, mmap_mode="r", allow_pickle=False)
        return Prediction(label, prepared.file_affine, header, written)

    def predict_prepared(
        self, prepared: Prepared, *, probabilities: str | Path | None = None, progress: Progress | None = None
    ) -> NDArray[Any]:
        """The label map X, Y, Z in the image's own grid of what `preprocess` made of it; see `predict`."""
        slabs, axis = self.slabs(prepared.tensor, progress=progress)
        with _probabilities(probabilities, (self.plan.num_outputs, *prepared.file_shape)) as scores:
            label = restore_label(slabs, axis, prepared, self.plan, interpolation=self.interpolation, probabilities=scores)
        del scores
        if self.largest_component:
            label = keep_largest_component(label, self.largest_component)
        if self.smallest_component > 0:
            label = remove_small_components(label, self.smallest_component, spacing_of(prepared.file_affine).tolist())
        return label

    def slabs(self, volume: Tensor, *, progress: Progress | None = None) -> tuple[Iterator[Tensor], int]:
        """The logits of a whole volume C, D, H, W, a part at a time.

        Returns:
            Slabs K, D, H, W that follow each other along an axis, each good only until the next is taken; and that axis (0, 1 or
            2 of D, H, W), the one along which the least must be held at a time.
        """
        if self.plan.zoom_slices:
            size, batch_size = self.plan.patch_size[1], self.batch_size
            return stream_slices(self._slice_logits, volume, size, device=self.device, batch_size=batch_size, progress=progress), 0
        window, batch_size = self.plan.patch_size, self.batch_size
        overlap, sigma_scale = (self.overlap,) * 3, (SIGMA_SCALE,) * 3
        if self.plan.is_2d:  # several slices at a time, as evenly as they go: that fills the batch
            depth = volume.shape[1]
            together = math.ceil(depth / math.ceil(depth / batch_size))
            window, batch_size = (together, *window[1:]), max(1, batch_size // together)
            overlap, sigma_scale = (0.0, *overlap[1:]), (math.inf, *sigma_scale[1:])
        axis = thinnest_slab(volume.shape[1:], window)
        slabs = stream_slabs(
            volume,
            window,
            self.logits,
            overlap,
            self.blend,
            axis=axis,
            sigma_scale=sigma_scale,
            batch_size=batch_size,
            device=self.device,
            progress=progress,
        )
        return slabs, axis

    def _slice_logits(self, slices: Tensor) -> Tensor:
        """B, C, H, W -> B, K, H, W."""
        return self.logits(slices[:, :, None])[:, :, 0]

    def logits(self, windows: Tensor) -> Tensor:
        """Mean logits of all models and mirrorings: B, C, D, H, W -> B, K, D, H, W, float32."""
        total: Tensor | None = None
        with torch.inference_mode(), autocast(self.device, self.precision):
            for model, flips in itertools.product(self.models, self.mirrors):
                output = run_network(model, windows.flip(flips) if flips else windows, self.plan)
                if output.shape[1] != self.plan.num_outputs:
                    raise InputError(f"the model has {output.shape[1]} outputs, its plan's labels need {self.plan.num_outputs}")
                output = crop_to(output, windows.shape[2:]).float()  # before flipping back: the surplus lies at the end
                output = output.flip(flips) if flips else output
                total = output if total is None else total + output
            assert total is not None
            count = len(self.models) * len(self.mirrors)
            return total if count == 1 else total.div_(count)

    def _prepare(self, image: Any, affine: FloatArray | None) -> tuple[Prepared, Any]:
        """The network's input. The volume as read is let go of on return: it is as large as the input itself."""
        if isinstance(image, np.ndarray):
            volume = _volume_of_array(image, affine)
        else:
            if affine is not None:
                raise InputError("an affine goes with an array only; a file brings its own")
            volume = read_image(image)
        return preprocess(volume, self.plan), volume.header


def _volume_of_array(array: NDArray[Any], affine: FloatArray | None) -> Volume:
    if array.dtype.kind not in "iufb" or array.ndim not in (3, 4) or array.size == 0:
        shape = " x ".join(map(str, array.shape))
        raise InputError(f"an image array is X, Y, Z or C, X, Y, Z of numbers; got {shape} of {array.dtype}")
    if affine is None:
        raise InputError("an array needs its affine (4x4, voxels to RAS+ mm): without it, the image's orientation and spacing are unknown")
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or spacing_of(affine).min() < 1e-6:
        raise InputError("an affine is a finite 4x4 matrix with positive voxel sides")
    if shear_angle(affine) > MAX_SHEAR:
        raise InputError(f"the affine's axes are sheared by {shear_angle(affine):.1f} degrees; up to {MAX_SHEAR} is allowed")
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise InputError(f"the image array holds {broken} voxels that are NaN or infinite")
    return Volume(array if array.ndim == 4 else array[None], affine)


def _ids_of(structure: int | str, plan: Plan) -> int | list[int]:
    """The ids of a label, given by its name or as an id that label maps may hold."""
    if structure in plan.foreground:
        return plan.foreground[str(structure)]
    if str(structure).isdigit() and int(structure) in {*ids_of(plan.labels), *(plan.regions_class_order or [])} - {0}:
        return int(structure)
    raise unknown("label", str(structure), plan.foreground)


def _sources(source: Source | Sequence[Source]) -> list[Source]:
    if isinstance(source, str | Path) or (isinstance(source, tuple) and isinstance(source[0], nn.Module)):
        return [source]
    return list(source)  # type: ignore[arg-type]


def load_model_and_plan(source: Source, plan: Plan | None = None) -> tuple[nn.Module, Plan]:
    """The network and its plan, from a weights file, the name of shipped weights, or a pair of both, which is given back.

    Args:
        plan: for weights that hold none, such as the authors' own; in place of the file's where it holds one.

    Raises:
        InputError: for files that are no weights or hold no plan.
    """
    if isinstance(source, tuple):
        return source
    path = find_weights(source)
    note = read_metadata(path).get("plan")
    if plan is not None:
        return load_published(path, **plan.options), plan
    if note is None:
        raise InputError(
            f"{path}: holds no plan (channels, spacing, labels) as weights that vsuite-medical saved do; "
            "name one beside it: a plan.yaml, or the recipe that the weights were trained by"
        )
    try:
        plan = Plan.model_validate(note)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: its plan is damaged: {error.errors()[0]['msg']}") from error
    return load_published(path), plan


def _common_plan(sources: Sequence[Source], plans: Sequence[Plan]) -> Plan:
    """The first plan, once all agree on what goes in and comes out."""
    for source, plan in zip(sources[1:], plans[1:], strict=True):
        differ = [name for name in SHARED if getattr(plan, name) != getattr(plans[0], name)]
        if differ:
            name = "a model" if isinstance(source, tuple) else source
            raise InputError(f"{name}: does not go with the first model of the ensemble: {', '.join(differ)} differ")
    mirrored = set(plans[0].mirror_axes).intersection(*(plan.mirror_axes for plan in plans))
    return plans[0].model_copy(update={"mirror_axes": tuple(sorted(mirrored))})


@contextlib.contextmanager
def _probabilities(path: str | Path | None, shape: tuple[int, ...]) -> Iterator[NDArray[Any] | None]:
    """A float16 array on disk that is moved into place when the block ends without an error."""
    if path is None:
        yield None
        return
    if Path(path).suffix != ".npy":
        raise InputError(f"{path}: probabilities are saved as .npy")
    with atomic_path(path) as temporary:
        scores = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash while writing
            with temporary.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        yield scores
        scores.flush()
