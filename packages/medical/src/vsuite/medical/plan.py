"""The plan: everything beside the weights that turns a file on disk into a label map, in one readable file.

A plan is made once from a data set (see `vsuite.medical.data.planning`) or by a recipe, travels inside the weights
and next to every export, and is all that prediction needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Normalisation(BaseModel):
    """How one channel's voxel values are brought to a common scale.

    kind: "zscore" (mean and standard deviation of the volume's own voxels), "ct" (clip to `lower`..`upper`, then
    subtract `mean`, divide by `std`, all four from the training set's foreground), "rescale_to_0_1" (the volume's own
    minimum and maximum), "slice_minmax" (the same for every slice of the file's last axis separately, as the published
    SegFormer3D weights expect), or "none".
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["zscore", "ct", "rescale_to_0_1", "slice_minmax", "none"] = "zscore"
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None

    @model_validator(mode="after")
    def _ct_needs_numbers(self) -> Normalisation:
        if self.kind == "ct" and None in (self.lower, self.upper, self.mean, self.std):
            raise ValueError("normalisation 'ct' needs lower, upper, mean and std")
        return self


class Plan(BaseModel):
    """Image and label conventions of a model.

    Attributes:
        channels: names of the image's channels, in the network's order.
        normalisation: one a channel.
        labels: name -> id in label files; "background" is 0. A name with a list of ids is a region (nnU-Net's
            convention): regions overlap, and the network then has one sigmoid output a region instead of a softmax.
        regions_class_order: only with regions: the id written for each, in the order of the labels. Later ones are written
            over earlier ones, but a region never over one that it holds (see `labels.writing_order`).
        spacing: voxel size in mm that the network sees, in RAS axis order (x, y, z); None keeps the file's own. Across the
            slices of a 2D plan it is always the file's own.
        patch_size: voxels of the training patch and of the prediction window, in the order of `axes`. A first side of 1 makes
            the plan 2D: the network takes slices B, C, H, W, and volumes go through it slice by slice.
        axes: order in which the spatial axes (after reorientation to RAS: x, y, z) enter the network.
        crop: fixed (start, stop) in voxels an axis (x, y, z) after reorientation and resampling, that is trained on
            and that validation scores; prediction takes the whole volume. None keeps all.
        mirror_axes: spatial axes of the network's input that may be mirrored, in training and at test time; of a 2D plan 1 and
            2 only, an axis 0 is left out.
        zoom_slices: only in 2D: whole slices are zoomed to the (square) patch and their labels zoomed back, as TransUNet's
            authors do, instead of being covered by windows.
        model, options: what `create_model` builds.
        dataset: name of the data set the plan was made from.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    channels: list[str] = Field(min_length=1)
    normalisation: list[Normalisation]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    spacing: tuple[float, float, float] | None = None
    patch_size: tuple[int, int, int]
    axes: tuple[int, int, int] = (0, 1, 2)
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    zoom_slices: bool = False
    model: str = "segformer3d"
    options: dict[str, Any] = Field(default_factory=dict)
    dataset: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if len(self.normalisation) != len(self.channels):
            raise ValueError(f"{len(self.channels)} channels but {len(self.normalisation)} normalisations")
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes must be an order of 0, 1, 2; got {self.axes}")
        if not set(self.mirror_axes) <= {0, 1, 2} or len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes are some of 0, 1, 2, each once; got {self.mirror_axes}")
        if self.is_2d:
            self.mirror_axes = tuple(axis for axis in self.mirror_axes if axis != 0)
        if self.zoom_slices and not (self.is_2d and self.patch_size[1] == self.patch_size[2]):
            raise ValueError(f"zoom_slices needs a patch of 1 x S x S voxels; got {' x '.join(map(str, self.patch_size))}")
        if isinstance(self.labels.get("ignore"), list):
            raise ValueError(f"the label 'ignore' is one id; got {self.labels['ignore']}")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing must be positive; got {self.spacing}")
        if self.labels.get("background") != 0:
            raise ValueError("labels must name 'background' as 0")
        if self.has_regions and len(self.regions_class_order or []) != len(self.foreground):
            raise ValueError("labels with regions need regions_class_order, one id a region")
        return self

    @property
    def is_2d(self) -> bool:
        """Whether the network takes slices: a patch one voxel thick."""
        return self.patch_size[0] == 1

    def target_spacing(self, own: Sequence[float]) -> tuple[float, float, float] | None:
        """Voxel sides x, y, z that a volume of these sides is resampled to; None leaves it. Slices are never mixed."""
        if self.spacing is None:
            return None
        x, y, z = (own[axis] if self.is_2d and axis == self.axes[0] else side for axis, side in enumerate(self.spacing))
        return x, y, z

    @property
    def foreground(self) -> dict[str, int | list[int]]:
        """The labels without the background and without the ids to ignore, in output order."""
        return {name: ids for name, ids in self.labels.items() if name not in ("background", "ignore")}

    @property
    def has_regions(self) -> bool:
        """Whether any label is a region of several ids: one sigmoid output each instead of a softmax."""
        return any(isinstance(ids, list) for ids in self.labels.values())

    @property
    def num_outputs(self) -> int:
        """Channels of the network's output: one a region, else one a label with the background first."""
        return len(self.foreground) if self.has_regions else 1 + len(self.foreground)
