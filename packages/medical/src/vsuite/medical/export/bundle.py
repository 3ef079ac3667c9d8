"""A MONAI bundle: a folder with the weights, a configuration that names this package's own parts, and its papers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template
from typing import Any, Literal

from torch import nn

from vsuite.core import InputError, save_weights
from vsuite.core.weights import find_weights, read_metadata
from vsuite.medical.export.contract import Contract, contract_of
from vsuite.medical.export.source import model_and_plan
from vsuite.medical.inference.predictor import Source
from vsuite.medical.plan import Plan

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""The official schema, for those online; a schema of our own lies in the bundle for those who are not."""

INTENDED_USE = "Research. Not a medical device; not for clinical decisions."


@dataclass(frozen=True)
class BundleFacts:
    """What only the person who exports knows about a model; each may be left as it is.

    Attributes:
        name: for people; None takes the folder's name.
        version: semantic, such as "0.1.0".
        description, task: one sentence each; empty ones are made from the plan.
        authors, copyright: of the model.
        modality: "CT", "MR", ... of the images.
        data_source: the training data and where they come from.
        data_licence: their licence and what it asks of the weights.
        intended_use: and what it is not for.
        references: publications.
    """

    name: str | None = None
    version: str = "0.1.0"
    description: str = ""
    task: str = ""
    authors: str = "not stated"
    copyright: str = "not stated"
    modality: str = "n/a"
    data_source: str = ""
    data_licence: str = "Not stated by the exporter. Ask for the terms of the training data before passing the weights on."
    intended_use: str = INTENDED_USE
    references: Sequence[str] = ()


def export_bundle(
    weights: Source,
    out_dir: str | Path,
    *,
    facts: BundleFacts | None = None,
    overlap: float = 0.5,
    blend: Literal["gaussian", "constant"] = "gaussian",
    overwrite: bool = False,
) -> Path:
    """Writes a bundle that MONAI runs, verifies and converts, whole or not at all.

    Its inference gives the label files that our `predict` gives with the same overlap and blending.

    Args:
        weights: see `model_and_plan`.
        out_dir: the bundle's root, named after the model.
        facts: for its metadata and papers; None takes those that lie in the weights file (see `facts_of`).
        overlap, blend: of the sliding window.
        overwrite: replace a bundle that is there.

    Returns:
        The bundle's root.

    Raises:
        InputError: for a folder that is not empty, a version that is not semantic, or names that a bundle's
            configuration would take for code.
    """
    out = Path(out_dir).absolute()
    if facts is None:
        facts = BundleFacts() if isinstance(weights, tuple) else facts_of(read_metadata(find_weights(weights)))
    model, plan = model_and_plan(weights)
    contract = contract_of(model, plan, overlap=overlap, blend=blend)
    metadata = _metadata(plan, contract, facts, facts.name or out.name)
    files = {
        "configs/plan.json": plan.model_dump_json(indent=2) + "\n",
        "docs/README.md": _readme(metadata, plan, contract, facts),
        "docs/contract.json": contract.model_dump_json(indent=2) + "\n",
    }
    write_bundle(out, model, metadata, _inference(model, plan, overlap, blend), files, facts, overwrite=overwrite)
    return out


def write_bundle(
    out: Path,
    model: nn.Module,
    metadata: dict[str, Any],
    inference: dict[str, Any],
    files: Mapping[str, str],
    facts: BundleFacts,
    *,
    overwrite: bool,
) -> None:
    """Writes a bundle's folder, whole or not at all, with what all bundles have in common.

    Args:
        metadata, inference: contents of the JSON files of these names; see `common_metadata` and `template`.
        files: path inside the bundle -> text, of all else.

    Raises:
        InputError: for a folder that is not empty, a version that is not semantic, and texts that MONAI would take for code.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?", facts.version):
        raise InputError(f"version must be semantic, such as 1.0.0; got {facts.version!r}")
    _refuse_code([metadata, inference["network_def"]])
    common = {
        "LICENSE": template("LICENSE"),
        "configs/meta_schema.json": template("meta_schema.json"),
        "configs/logging.conf": template("logging.conf"),
        "configs/metadata.json": _json(metadata),
        "configs/inference.json": _json(inference),
        "docs/data_license.txt": facts.data_licence.strip() + "\n",
    }
    with _folder(out, overwrite=overwrite) as root:
        for folder in ("configs", "models", "docs"):
            (root / folder).mkdir()
        for name, text in (common | dict(files)).items():
            (root / name).write_text(text, encoding="utf-8")
        save_weights(model, root / "models" / "model.pt")


def facts_of(metadata: Mapping[str, Any]) -> BundleFacts:
    """The facts in a weights file's metadata (see `read_metadata`), under "facts"; what it does not say stays as it is.

    Raises:
        InputError: for a fact that is not text, or references that are not a list of texts.
    """
    given = metadata.get("facts") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"the weights' facts are a {type(given).__name__}; names and texts are expected")
    known = {field.name: given[field.name] for field in fields(BundleFacts) if field.name in given}
    for name, value in known.items():
        texts = value if name == "references" and isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts) or (name == "references") != isinstance(value, list):
            raise InputError(f"the weights' fact {name!r} must be {'a list of texts' if name == 'references' else 'text'}; got {value!r}")
    return BundleFacts(**known)


@contextlib.contextmanager
def _folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends without an error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise InputError(f"{out}: exists and is not empty; choose another folder, or overwrite it")
        if not (out / "configs" / "metadata.json").is_file():
            raise InputError(f"{out}: is no bundle, so it is not overwritten")
    building, old = out.with_name(f".{out.name}.{os.getpid()}.new"), out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        building.mkdir(parents=True)
        yield building
        if out.exists():
            out.replace(old)
        building.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if old.exists() and not out.exists():  # the second move failed: the old bundle goes back
            old.replace(out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(building, ignore_errors=True)


def template(name: str) -> str:
    """The text of one of the files that bundles are made from: LICENSE, README.md, inference.json, ..."""
    return (importlib.resources.files("vsuite.medical.export") / "templates" / name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _inference(model: nn.Module, plan: Plan, overlap: float, blend: str) -> dict[str, Any]:
    config = json.loads(template("inference.json"))
    built_from = getattr(model, "built_from", {})
    options = built_from.get("options", plan.options)
    config["network_def"] = {"_target_": "vsuite.core.create_model", "name": built_from.get("model", plan.model), **options}
    config["inferer"] |= {"overlap": overlap, "blend": blend}
    return config


def _metadata(plan: Plan, contract: Contract, facts: BundleFacts, name: str) -> dict[str, Any]:
    structures = ", ".join(plan.foreground)
    dataset = plan.dataset or facts.data_source or "data that the exporter does not name"
    classes = [f"{c.index}: {c.name}" for c in contract.output.classes]
    ct = all(rule.kind == "ct" for rule in plan.normalisation)
    image = {
        "type": "image",
        "format": "hounsfield" if ct else "magnitude",
        "modality": "CT" if ct and facts.modality == "n/a" else facts.modality,
        "num_channels": len(plan.channels),
        "spatial_shape": list(contract.input.sides),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(i): channel for i, channel in enumerate(plan.channels)},
    }
    pred = image | {
        "format": "segmentation",
        "num_channels": plan.num_outputs,
        "channel_def": {str(c.index): c.name for c in contract.output.classes},
    }
    return common_metadata(facts, ("nibabel", "scipy")) | {
        "name": name,
        "task": facts.task or f"{'2D' if plan.is_2d else '3D'} segmentation: {structures}",
        "description": facts.description or f"Segmentation of {structures} with {contract.model}, trained on {dataset}.",
        "data_source": facts.data_source or dataset,
        "data_type": "nifti",
        "image_classes": f"{len(plan.channels)} channel(s): {', '.join(plan.channels)}",
        "label_classes": ", ".join(f"{ids}: {label}" for label, ids in plan.labels.items()),
        "pred_classes": f"logits for {contract.output.activation}: {', '.join(classes)}",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def common_metadata(facts: BundleFacts, packages: Sequence[str]) -> dict[str, Any]:
    """The part of a bundle's metadata that does not depend on the kind of model; `packages` are needed beside those that all need."""
    packages = ("vsuite-medical", "vsuite-core", "safetensors", "pytorch-ignite", *packages)
    return {
        "schema": SCHEMA,
        "version": facts.version,
        "changelog": {facts.version: "exported by vsuite-medical " + _version("vsuite-medical")},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").split("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {package: _version(package) for package in packages},
        "authors": facts.authors,
        "copyright": facts.copyright,
        "intended_use": facts.intended_use,
        "references": list(facts.references),
    }


def _version(package: str) -> str:
    """Of the installed package; of one that only running the bundle needs, the oldest that is known to do."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return {"pytorch-ignite": "0.5.0"}[package]


def _refuse_code(value: Any) -> None:
    """MONAI evaluates strings that begin with $ and resolves @ and %: names out of a data set must not get there."""
    if isinstance(value, dict):
        for item in value.values():
            _refuse_code(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_code(item)
    elif isinstance(value, str) and value.strip().startswith(("$", "@", "%")):
        raise InputError(f"{value!r}: a bundle's metadata must not begin with $, @ or %, which MONAI takes for code")


def _readme(metadata: dict[str, Any], plan: Plan, contract: Contract, facts: BundleFacts) -> str:
    window = contract.input.window
    labels = ", ".join(f"{c.written_as} {c.name}" for c in contract.output.classes if c.written_as)
    spacing = "the image's own" if plan.spacing is None else " x ".join(f"{side:g}" for side in plan.spacing) + " mm (x, y, z)"
    values = {
        "name": metadata["name"],
        "description": metadata["description"],
        "version": metadata["version"],
        "intended_use": metadata["intended_use"],
        "model": contract.model,
        "dataset": metadata["data_source"],
        "channels": "; ".join(f"channel {i} {name}" for i, name in enumerate(plan.channels)),
        "labels": labels,
        "spacing": spacing,
        "window": " x ".join(map(str, window)),
        "overlap": f"{contract.windows.overlap:g}",
        "blend": contract.windows.blending,
        "input_shape": str([1, len(plan.channels), *contract.input.sides]).replace(" ", ""),
    }
    return Template(template("README.md")).substitute(values)
