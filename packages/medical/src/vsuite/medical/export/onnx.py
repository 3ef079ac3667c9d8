"""The network alone as one file: ONNX, TorchScript, or the authors' own layout; each with its contract beside it.

ONNX and TorchScript files are compared with the network before they appear under their name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from vsuite.core import InputError, optimize_for_inference, save_weights
from vsuite.core.files import atomic_path
from vsuite.core.onnx import onnx_file, quiet_exporter, require_onnx
from vsuite.medical.export.contract import Contract, contract_of, write_contract
from vsuite.medical.export.source import model_and_plan
from vsuite.medical.inference.predictor import Source

TOLERANCE = 1e-4
"""Largest difference allowed between the file and the network, as a share of the largest logit."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the network.
        contract: the JSON file beside it.
        max_difference: largest difference to the network's own logits; 0 where nothing was computed.
        largest_logit: what to judge it by.
    """

    path: Path
    contract: Path
    max_difference: float = 0.0
    largest_logit: float = 0.0

    def __str__(self) -> str:
        checked = f"differs from the network by at most {self.max_difference:.1e} (largest logit {self.largest_logit:.3g}); "
        return f"{self.path}: {checked if self.largest_logit else ''}contract in {self.contract.name}"


def export_onnx(
    weights: Source,
    out_path: str | Path,
    *,
    batch: int | None = None,
    window: Sequence[int] | None = None,
    dynamic_size: bool = False,
    overlap: float = 0.5,
    blend: Literal["gaussian", "constant"] = "gaussian",
) -> Exported:
    """Writes the network as ONNX (input `image`, output `pred`: logits), checked with onnxruntime, and its contract.

    Args:
        weights: see `model_and_plan`.
        out_path: ends in .onnx; the contract gets this name with .json behind it.
        batch: windows a call; None leaves it free.
        window: voxels D, H, W (D is 1 for a network of slices); None takes the plan's patch size.
        dynamic_size: leave D, H and W free as well. Takes several times as long, and runtimes optimise such a graph
            less; the export needs it only where whole volumes of any size go in without a sliding window.
        overlap, blend: of the sliding window that the contract states.

    Raises:
        InputError: if packages are missing, for a window that the network does not take, or if the file's logits differ
            from the network's by more than `TOLERANCE`; nothing is left behind then.
    """
    require_onnx("vsuite-medical")
    path = checked_path(out_path, (".onnx",))
    if batch is not None and batch < 1:
        raise InputError(f"batch must be 1 or more; got {batch}")
    model, contract = _prepare(weights, window, overlap, blend)
    if dynamic_size and len(contract.input.sides) == 2:
        raise InputError(f"{path}: a free size is for networks of volumes; {contract.model} takes slices of {contract.input.sides}")
    # For a free size, sides that differ from each other and are more than 1 at every stage: others would be taken as fixed.
    example = _random(batch or 2, contract, (64, 96, 128) if dynamic_size else None)
    # Every free axis has a name of its own; those of the size are found by the exporter, which knows what they must divide into.
    size_axes = dict.fromkeys((2, 3, 4), torch.export.Dim.AUTO) if dynamic_size else {}
    axes: dict[int, Any] = size_axes | ({0: torch.export.Dim("batch", min=1)} if batch is None else {})
    inputs = [_random(count, contract) for count in ([1, 3] if batch is None else [batch])]
    if dynamic_size:
        inputs.append(_random(batch or 1, contract, (96, 64, 80)))
    return write_onnx(model, contract, path, example, axes, inputs)


def write_onnx(
    model: nn.Module, contract: BaseModel, path: Path, example: Tensor, axes: Mapping[int, Any], inputs: Sequence[Tensor]
) -> Exported:
    """Writes a network as ONNX (`image` -> `pred`), with its contract inside and beside it, once it agrees with the network.

    Args:
        contract: what a deployment has to know.
        example: an input to trace with. axes: those of it that are free, as `torch.export` takes them.
        inputs: what the file is compared with the network on.

    Raises:
        InputError: if torch cannot export the network, or the logits differ by more than `TOLERANCE`; nothing is written then.
    """
    metadata = {"contract": contract.model_dump_json()}
    with onnx_file(optimize_for_inference(model), {"image": example}, "pred", path, axes={"image": axes}, metadata=metadata) as run:
        difference, largest = _compare(model, run, inputs, path)
    return Exported(path, _write_contract(contract, path), difference, largest)


def export_torchscript(
    weights: Source,
    out_path: str | Path,
    *,
    window: Sequence[int] | None = None,
    overlap: float = 0.5,
    blend: Literal["gaussian", "constant"] = "gaussian",
) -> Exported:
    """Writes the network as traced TorchScript (any batch, the window as traced), checked against the network, and its contract.

    The contract also lies inside the file, as the extra file `contract.json`.

    Args:
        weights, window, overlap, blend: as for `export_onnx`.
        out_path: ends in .ts or .pt.

    Raises:
        InputError: as `export_onnx`.
    """
    path = checked_path(out_path, (".ts", ".pt"))
    model, contract = _prepare(weights, window, overlap, blend)
    with quiet_exporter(), torch.no_grad():
        traced = torch.jit.trace(optimize_for_inference(model), _random(2, contract), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={"contract.json": contract.model_dump_json().encode()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())  # plain bytes, so that a full disk shows as an OSError
        loaded = torch.jit.load(temporary)
        difference, largest = _compare(model, loaded, [_random(count, contract) for count in (1, 2)], path)
    return Exported(path, _write_contract(contract, path), difference, largest)


def export_published(weights: Source, out_path: str | Path) -> Exported:
    """Writes the state dict under the authors' names, so that their code loads it, and the contract.

    Args:
        weights: see `model_and_plan`.
        out_path: ends in .bin, .pth, .pt or .safetensors.
    """
    path = checked_path(out_path, (".bin", ".pth", ".pt", ".safetensors"))
    model, contract = _prepare(weights, None, 0.5, "gaussian")
    save_weights(model, path, published=True)
    return Exported(path, _write_contract(contract, path))


def _prepare(weights: Source, window: Sequence[int] | None, overlap: float, blend: Any) -> tuple[nn.Module, Contract]:
    model, plan = model_and_plan(weights)
    if window is not None:
        if len(window) != 3 or min(window) < 1:
            raise InputError(f"window takes three numbers of voxels, D, H and W; got {list(window)}")
        if plan.is_2d != (window[0] == 1):
            raise InputError(
                f"window must be {'one voxel' if plan.is_2d else 'more than one voxel'} thick, as the plan's; got {list(window)}"
            )
        plan = plan.model_copy(update={"patch_size": tuple(window)})
    contract = contract_of(model, plan, overlap=overlap, blend=blend)
    with torch.no_grad():
        outputs = model(_random(1, contract)).shape[1]
    if outputs != plan.num_outputs:
        raise InputError(f"the network has {outputs} outputs, its plan's labels need {plan.num_outputs}")
    return model, contract


def contract_path(path: Path) -> Path:
    """The contract beside an export: `network.onnx.json`, so that exports to other formats under the same name keep theirs."""
    return path.with_name(f"{path.name}.json")


def checked_path(out_path: str | Path, suffixes: Sequence[str]) -> Path:
    """The path, if it ends as it must; else `InputError`."""
    path = Path(out_path)
    if path.suffix not in suffixes:
        raise InputError(f"{path}: must end in {' or '.join(suffixes)}")
    return path


def _write_contract(contract: BaseModel, path: Path) -> Path:
    write_contract(contract, contract_path(path))
    return contract_path(path)


def _random(batch: int, contract: Contract, size: Sequence[int] | None = None) -> Tensor:
    """Windows, or inputs of another size. The same values at every call: what is written must not depend on the state of the generator."""
    return torch.randn(batch, len(contract.input.channels), *(size or contract.input.sides), generator=torch.Generator().manual_seed(0))


def _compare(model: nn.Module, run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], path: Path) -> tuple[float, float]:
    """Largest difference and largest logit over the inputs; raises if the difference is too large."""
    differences, sizes = [], []
    for example in inputs:
        with torch.no_grad():
            wanted, got = model(example), run(example)
        if got.shape != wanted.shape:
            raise InputError(f"{path}: the export gives {list(got.shape)} where the network gives {list(wanted.shape)}; not written")
        differences.append((got - wanted).abs().max())
        sizes.append(wanted.abs().max())
    difference, largest = float(torch.stack(differences).max()), float(torch.stack(sizes).max())
    if not difference <= TOLERANCE * largest:  # also catches NaN
        raise InputError(f"{path}: the export differs from the network by {difference:.1e} (largest logit {largest:.3g}); not written")
    return difference, largest
