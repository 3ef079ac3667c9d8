"""The parts that a bundle's configuration names: MONAI's interfaces around our own reading, windows and restoring.

They do what `Predictor` does with a file, so that a bundle and `vsuite-medical predict` write the same label map.
Importing this module imports monai; only a bundle that runs needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Transform
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.medical.data.files import label_ending, read_image, write_label
from vsuite.medical.data.nifti import Volume, is_nifti
from vsuite.medical.inference.files import find_cases
from vsuite.medical.inference.predictor import Predictor
from vsuite.medical.inference.restore import restore_label
from vsuite.medical.inference.sliding_window import Blend, thinnest_slab
from vsuite.medical.plan import Plan
from vsuite.medical.preprocess import Prepared, preprocess


def read_plan(path: str | Path) -> Plan:
    """The plan that lies beside a bundle's configuration."""
    try:
        return Plan.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; is bundle_root right?") from error
    except ValueError as error:
        raise InputError(f"{path}: is no plan: {str(error).splitlines()[0]}") from error


def find_images(dataset_dir: str | Path, plan: Plan) -> list[dict[str, list[str]]]:
    """The images of a folder as MONAI's data list: `{"image": [file, or one file a channel]}` a case.

    Raises:
        InputError: for a folder that is missing or holds no images, which MONAI by itself would only warn of.
    """
    return [{"image": [str(path) for path in case.images]} for case in find_cases(dataset_dir, plan)]


class PrepareImage(Transform):
    """`image`: a file, or one a channel -> the network's input C, D, H, W, with what leads back to the file in its `meta`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        files = [data["image"]] if isinstance(data["image"], str | Path) else list(data["image"])
        cases = find_cases(files, self.plan)
        if len(cases) != 1:
            raise InputError(f"the files of one image are expected; got those of {', '.join(case.name for case in cases)}")
        prepared = preprocess(read_image(cases[0].images), self.plan)
        columns = [*prepared.axes, 3]
        meta = {
            "case": cases[0].name,
            "filename_or_obj": str(cases[0].images[0]),
            "prepared_affine": prepared.affine,
            "file_affine": prepared.file_affine,
            "file_shape": np.array(prepared.file_shape),
        }
        return {**data, "image": MetaTensor(prepared.tensor, affine=torch.from_numpy(prepared.affine[:, columns].copy()), meta=meta)}


class WindowInferer(Inferer):
    """Sliding windows as `Predictor` places and blends them. B, C, D, H, W -> logits B, K, D, H, W.

    Unlike `Predictor`, which passes on finished planes, it holds the logits of the whole volume: MONAI's interface asks for them.
    """

    def __init__(self, plan: Plan, overlap: float = 0.5, blend: Blend = "gaussian", mirror: bool = False) -> None:
        super().__init__()
        self.plan, self.overlap, self.blend, self.mirror = plan, overlap, blend, mirror

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        assert isinstance(network, nn.Module)
        device = next(network.parameters()).device
        # Made anew for each volume, which costs milliseconds: the network's weights may have changed in the meantime.
        predictor = Predictor((network, self.plan), device=device, overlap=self.overlap, blend=self.blend, mirror=self.mirror)
        return torch.stack([self._logits(predictor, volume) for volume in _plain(inputs)])

    def _logits(self, predictor: Predictor, volume: Tensor) -> Tensor:
        slabs, axis = predictor.slabs(volume)
        return torch.cat([slab.clone() for slab in slabs], axis + 1)


class LabelOnFileGrid(Transform):
    """`pred`: logits K, D, H, W -> label map 1, X, Y, Z on the grid of the file behind `image`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        logits, meta = _plain(data["pred"]), data["image"].meta
        x, y, z = (int(side) for side in meta["file_shape"])
        affines = [np.asarray(meta[name], np.float64) for name in ("prepared_affine", "file_affine")]
        prepared = Prepared(logits, affines[0], self.plan.axes, (x, y, z), affines[1])
        label = restore_label([logits], thinnest_slab(logits.shape[1:], self.plan.patch_size), prepared, self.plan)
        known = {name: meta[name] for name in ("case", "filename_or_obj")}
        return {**data, "pred": MetaTensor(torch.from_numpy(label[None]), affine=torch.from_numpy(affines[1]), meta=known)}


class SaveLabel(Transform):
    """Writes `pred`, a label map 1, X, Y, Z, to `<output_dir>/<case>.nii.gz` (`.png` of a picture) under the header of its image."""

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        label = data["pred"]
        source = Path(label.meta["filename_or_obj"])
        array = _plain(label).numpy()
        header = nib.load(source).header if is_nifti(source) else None
        like = Volume(array, label.affine.numpy(), header, source)
        write_label(self.output_dir / f"{label.meta['case']}{label_ending(source)}", array[0], like)
        return data


def _plain(tensor: Tensor) -> Tensor:
    """Without the metadata: writing in place through a `MetaTensor` is lost."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
