"""The contract beside every export: what must happen to an image before the network and to its output afterwards.

An ONNX or TorchScript file holds the network alone. The contract says, in JSON, all that the rest of the way from a
file to a label map needs, so that a deployment can be written without this package.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.medical.data.labels import writing_order
from vsuite.medical.plan import Normalisation, Plan

PACKAGES = ("vsuite-medical", "vsuite-core", "torch", "numpy")

_NORMALISATION = {
    "zscore": "subtract the mean of the volume's own voxels, divide by their standard deviation",
    "ct": "clip to lower..upper, subtract mean, divide by std",
    "rescale_to_0_1": "subtract the volume's own minimum, divide by its range",
    "slice_minmax": "for every slice of the file's last axis: subtract its minimum, divide by its range",
    "none": "leave as it is",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Channel(_Strict):
    """One channel of the input, in the network's order. Constant voxels become 0 when normalised."""

    name: str
    normalisation: Normalisation
    meaning: str


class Input(_Strict):
    """The network's input tensor.

    Attributes:
        layout: letters of the tensor's axes; D, H, W are the anatomical axes of `axes`. B, C, H, W for a network of slices,
            which lie along D.
        orientation: anatomical direction in which each of x, y, z grows, in the order x, y, z.
        axes: the anatomical axis behind D, H and W.
        spacing_mm: voxel size along x, y, z that the image is resampled to (linear); null keeps the file's own.
        window: voxels of one window along D, H, W; D is 1 for a network of slices.
    """

    name: Literal["image"] = "image"
    dtype: Literal["float32"] = "float32"
    layout: Literal["B, C, D, H, W", "B, C, H, W"] = "B, C, D, H, W"
    channels: list[Channel]
    orientation: Literal["RAS"] = "RAS"
    axes: tuple[str, str, str]
    spacing_mm: tuple[float, float, float] | None
    window: tuple[int, int, int]

    @property
    def sides(self) -> tuple[int, ...]:
        """The window along the tensor's own spatial axes: D, H, W, or H, W of slices."""
        return self.window if "D" in self.layout else self.window[1:]


class Windows(_Strict):
    """How windows cover a larger volume: logits are blended, not probabilities.

    Attributes:
        overlap: share of a window that neighbours have in common; the step is int(window * (1 - overlap)), at least 1.
        blending: weight of a voxel inside its window.
    """

    overlap: float
    blending: Literal["gaussian", "constant"]
    meaning: str


class Class(_Strict):
    """One channel of the output.

    Attributes:
        index: of the channel.
        name: of the label or region.
        covers: ids of the data set's label files that belong to it.
        written_as: id in the label map made from the output.
    """

    index: int
    name: str
    covers: list[int]
    written_as: int


class Output(_Strict):
    """The network's output tensor.

    Attributes:
        activation: what turns the logits into probabilities; the exported network ends before it.
        writing_order: with sigmoid, the order of channels in which regions are written, later ones over earlier ones.
        decision: how a label map is made from the logits.
    """

    name: Literal["pred"] = "pred"
    dtype: Literal["float32"] = "float32"
    layout: Literal["B, K, D, H, W", "B, K, H, W"] = "B, K, D, H, W"
    activation: Literal["softmax", "sigmoid"]
    classes: list[Class]
    writing_order: list[int] | None
    decision: str


class Contract(_Strict):
    """All that a deployment has to know beside the network.

    Attributes:
        steps: the whole way in words.
        model, options: what `vsuite.core.create_model` builds.
        dataset: what the model was trained on.
        software: versions that made the export.
        weights_sha256: digest of the weights; see `weights_digest`.
    """

    format: Literal["vsuite-medical contract"] = "vsuite-medical contract"
    format_version: Literal[1] = 1
    steps: list[str]
    input: Input
    windows: Windows
    output: Output
    model: str
    options: dict[str, Any]
    dataset: str
    software: dict[str, str]
    weights_sha256: str


def contract_of(model: nn.Module, plan: Plan, *, overlap: float = 0.5, blend: Literal["gaussian", "constant"] = "gaussian") -> Contract:
    """The contract of a model and its plan.

    Args:
        model: the network as it was trained (before `optimize_for_inference`, which changes the weights' names).
        plan: its image and label conventions.
        overlap, blend: of the sliding window that goes with the export.

    Raises:
        InputError: for an overlap outside 0 (included) to 1 (excluded), or another blending.
    """
    if not 0 <= overlap < 1:
        raise InputError(f"overlap must lie in [0, 1); got {overlap}")
    if blend not in ("gaussian", "constant"):
        raise InputError(f"blend is 'gaussian' or 'constant'; got {blend!r}")
    axes = tuple("xyz"[axis] for axis in plan.axes)
    channels = [
        Channel(name=name, normalisation=rule, meaning=_NORMALISATION[rule.kind])
        for name, rule in zip(plan.channels, plan.normalisation, strict=True)
    ]
    blending = (
        "weights fall off from the window's centre as a Gaussian with a standard deviation of 0.125 windows"
        if blend == "gaussian"
        else "all voxels of a window weigh the same"
    )
    built_from = getattr(model, "built_from", {})
    return Contract(
        steps=_steps(plan, overlap),
        input=Input(
            layout="B, C, H, W" if plan.is_2d else "B, C, D, H, W",
            channels=channels,
            axes=axes,  # type: ignore[arg-type]
            spacing_mm=plan.spacing,
            window=plan.patch_size,
        ),
        windows=Windows(overlap=overlap, blending=blend, meaning=blending),
        output=_output(plan),
        model=built_from.get("model", plan.model),
        options=dict(built_from.get("options", plan.options)),
        dataset=plan.dataset,
        software={package: importlib.metadata.version(package) for package in PACKAGES},
        weights_sha256=weights_digest(model),
    )


def write_contract(contract: BaseModel, path: Path) -> None:
    """Writes the contract as readable JSON, atomically."""
    write_text(path, contract.model_dump_json(indent=2) + "\n")


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the state dict in the order of its names: each name, type and shape as text, then the raw little-endian values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _steps(plan: Plan, overlap: float) -> list[str]:
    spacing = "keep the voxel size" if plan.spacing is None else f"resample linearly to {' x '.join(f'{s:g}' for s in plan.spacing)} mm"
    if plan.is_2d and plan.spacing is not None:
        spacing += f" (x, y, z), but keep the voxel size along {'xyz'[plan.axes[0]]}, across the slices"
    windows = [
        f"predict windows of {' x '.join(map(str, plan.patch_size))} voxels with an overlap of {overlap:g}; pad smaller volumes with 0",
        "blend the windows' logits",
    ]
    if plan.zoom_slices:
        size = plan.patch_size[1]
        windows = [
            f"zoom each slice H, W to {size} x {size} pixels by cubic splines with the corners kept (scipy.ndimage.zoom, order 3)",
            "predict the slices, and take the logits back to the slices' own size by the nearest pixel (order 0)",
        ]
    decide = "a region is where its probability is above 0.5 (its logit above 0)" if plan.has_regions else "take the class of largest logit"
    return [
        f"stack the channels in the order {', '.join(plan.channels)}",
        "normalise each channel, in the file's own grid",
        "permute and flip the axes to RAS by the closest anatomical directions",
        spacing,
        f"order the axes {', '.join('xyz'[axis] for axis in plan.axes)} as D, H, W",
        *windows,
        "resample the logits linearly to the file's own grid, undo the axes' order and flips",
        decide,
        "write the ids under the affine of the file",
    ]


def _output(plan: Plan) -> Output:
    foreground = list(plan.foreground.items())
    layout: Literal["B, K, D, H, W", "B, K, H, W"] = "B, K, H, W" if plan.is_2d else "B, K, D, H, W"
    if plan.has_regions:
        written = plan.regions_class_order or []
        classes = [
            Class(index=i, name=name, covers=[ids] if isinstance(ids, int) else list(ids), written_as=written[i])
            for i, (name, ids) in enumerate(foreground)
        ]
        decision = "each region where its sigmoid is above 0.5, written in `writing_order` over 0"
        return Output(layout=layout, activation="sigmoid", classes=classes, writing_order=writing_order(plan), decision=decision)
    ids_by_name = {"background": 0, **{name: ids for name, ids in foreground if isinstance(ids, int)}}
    classes = [Class(index=i, name=name, covers=[ids], written_as=ids) for i, (name, ids) in enumerate(ids_by_name.items())]
    decision = "the id of the channel with the largest logit"
    return Output(layout=layout, activation="softmax", classes=classes, writing_order=None, decision=decision)
