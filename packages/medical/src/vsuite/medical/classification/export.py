"""A classifier as ONNX file or MONAI bundle, each with a contract: how a picture becomes the input, and what the outputs mean."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from vsuite.core.images.classifier import ClassifierNote, load_classifier
from vsuite.core.images.preprocessing import mean_and_std
from vsuite.core.onnx import require_onnx
from vsuite.core.weights import find_weights, read_metadata
from vsuite.medical.export.bundle import BundleFacts, common_metadata, facts_of, template, write_bundle
from vsuite.medical.export.contract import PACKAGES, weights_digest
from vsuite.medical.export.onnx import Exported, checked_path, write_onnx


class Contract(BaseModel):
    """All that a deployment has to know beside the network.

    Attributes:
        steps: the whole way in words.
        layout, size, mean, std: of the input `image`, after scaling to 0 to 1.
        classes: of the output `pred`, logits B, K.
        activation: what makes probabilities of the logits.
        model, options: what `vsuite.core.create_model` builds.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: Literal["vsuite-medical classification contract"] = "vsuite-medical classification contract"
    format_version: Literal[1] = 1
    steps: list[str]
    layout: Literal["B, C, H, W"] = "B, C, H, W"
    channels: int
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    classes: list[str]
    activation: Literal["softmax", "sigmoid"]
    model: str
    options: dict[str, Any]
    software: dict[str, str]
    weights_sha256: str


def contract_of(model: nn.Module, note: ClassifierNote) -> Contract:
    """The contract of a classifier, before `optimize_for_inference`, and its note."""
    image = note.image
    assert image.size is not None
    height, width = image.size
    fit = (
        f"cut the middle of the ratio {height} : {width} that covers {image.crop:g} of the shorter side, and scale it"
        if image.fit == "crop"
        else "scale both sides"
    )
    divide = "the largest value of the number type" if image.intensity == "type" else "the picture's own range, from its least value"
    mean, std = mean_and_std(image)
    built_from: dict[str, Any] = getattr(model, "built_from", {})
    return Contract(
        steps=[
            f"{'turn colours into grey' if image.channels == 1 else 'repeat grey to three channels'} where need be",
            f"{fit} to {height} x {width} ({image.interpolation}, antialiased)",
            f"divide by {divide}; DICOM is seen through its own window, MONOCHROME1 inverted",
            "subtract mean, divide by std",
            "each finding has the sigmoid of its logit as probability"
            if note.multi_label
            else "the softmax of the logits is the probability",
        ],
        channels=image.channels,
        size=(height, width),
        mean=[round(float(value), 6) for value in mean],
        std=[round(float(value), 6) for value in std],
        classes=note.classes,
        activation="sigmoid" if note.multi_label else "softmax",
        model=built_from.get("model", type(model).__name__),
        options=dict(built_from.get("options", {})),
        software={package: importlib.metadata.version(package) for package in PACKAGES},
        weights_sha256=weights_digest(model),
    )


def export_onnx(weights: str | Path, out_path: str | Path) -> Exported:
    """Writes the network as ONNX (input `image`, output `pred`: logits, any batch), checked with onnxruntime, and its contract.

    Raises:
        InputError: if packages are missing, or if the file's logits differ from the network's; nothing is left behind then.
    """
    require_onnx("vsuite-medical")
    path = checked_path(out_path, (".onnx",))
    model, note = _load(weights)
    contract = contract_of(model, note)
    axes = {0: torch.export.Dim("batch", min=1)}
    return write_onnx(model, contract, path, _random(2, contract), axes, [_random(count, contract) for count in (1, 3)])


def _load(weights: str | Path) -> tuple[nn.Module, ClassifierNote]:
    model, note = load_classifier(weights)
    return model.cpu().float().eval(), note


def _random(batch: int, contract: Contract) -> Tensor:
    return torch.randn(batch, contract.channels, *contract.size, generator=torch.Generator().manual_seed(0))


def export_bundle(weights: str | Path, out_dir: str | Path, *, facts: BundleFacts | None = None, overwrite: bool = False) -> Path:
    """Writes a bundle whose inference gives a JSON file of probabilities a picture, the same as our `predict`.

    Args:
        weights: see `vsuite.core.images.Predictor`.
        out_dir: the bundle's root, named after the model.
        facts: for its metadata and papers; None takes those that lie in the weights file (see `facts_of`).
        overwrite: replace a bundle that is there.

    Raises:
        InputError: see `write_bundle`.
    """
    out = Path(out_dir).absolute()
    facts = facts or facts_of(read_metadata(find_weights(weights)))
    model, note = _load(weights)
    contract = contract_of(model, note)
    metadata = _metadata(contract, facts, facts.name or out.name)
    files = {
        "configs/classifier.json": note.model_dump_json(indent=2) + "\n",
        "docs/README.md": _readme(metadata, contract, facts),
        "docs/contract.json": contract.model_dump_json(indent=2) + "\n",
    }
    write_bundle(out, model, metadata, _inference(contract), files, facts, overwrite=overwrite)
    return out


def _inference(contract: Contract) -> dict[str, Any]:
    """The configuration of our segmentation bundles with the parts that read pictures and write probabilities."""
    config = json.loads(template("inference.json"))
    parts = "vsuite.medical.classification.bundle_components"
    del config["plan"]
    config["classifier"] = {"_target_": f"{parts}.read_note", "path": "$@bundle_root + '/configs/classifier.json'"}
    config["network_def"] = {"_target_": "vsuite.core.create_model", "name": contract.model, **contract.options}
    config["preprocessing"]["transforms"] = [{"_target_": f"{parts}.PreparePicture", "note": "@classifier"}]
    config["dataset"]["data"] = {"_target_": f"{parts}.find_pictures", "dataset_dir": "@dataset_dir"}
    config["inferer"] = {"_target_": "SimpleInferer"}
    config["postprocessing"]["transforms"] = [
        {"_target_": f"{parts}.SaveProbabilities", "note": "@classifier", "output_dir": "@output_dir"}
    ]
    return config


def _metadata(contract: Contract, facts: BundleFacts, name: str) -> dict[str, Any]:
    findings = ", ".join(contract.classes)
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": facts.modality,
        "num_channels": contract.channels,
        "spatial_shape": list(contract.size),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(i): "grey" if contract.channels == 1 else "RGB"[i] for i in range(contract.channels)},
    }
    pred = {
        "type": "probabilities",
        "format": "classes",
        "num_channels": len(contract.classes),
        "spatial_shape": [1, len(contract.classes)],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(i): label for i, label in enumerate(contract.classes)},
    }
    return common_metadata(facts, ("nibabel", "pydicom")) | {
        "name": name,
        "task": facts.task or f"Classification of pictures: {findings}",
        "description": facts.description or f"{contract.model} that finds {findings} in pictures.",
        "data_source": facts.data_source or "data that the exporter does not name",
        "data_type": "png, jpeg, tiff, dicom or nifti",
        "image_classes": f"pictures of {contract.channels} channel(s)",
        "label_classes": findings,
        "pred_classes": f"logits for {contract.activation}: {findings}",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _readme(metadata: dict[str, Any], contract: Contract, facts: BundleFacts) -> str:
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(contract.steps, 1))
    return (
        f"# {metadata['name']}\n\n{metadata['description']} Version {metadata['version']}.\n\n"
        f"Intended use: {facts.intended_use}\n\n"
        f"Findings: {', '.join(contract.classes)}.\n\n## From a picture to probabilities\n\n{steps}\n\n"
        "## Run\n\nThe configuration names parts of the installed package `vsuite-medical`, so install that first:\n\n"
        '```\npip install "vsuite-medical[bundle]"\n```\n\n'
        "Pictures lie in `images/`; a JSON file a picture appears in `eval/`, equal to what `vsuite-medical predict` gives.\n\n"
        "```\npython -m monai.bundle run --config_file configs/inference.json --bundle_root .\n```\n\n"
        "A bundle's configuration is code. Run only those whose origin you trust.\n"
    )
