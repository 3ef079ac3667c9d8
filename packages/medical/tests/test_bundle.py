"""The MONAI bundle: what lies in it, that MONAI takes it, and that it gives our own label files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vsuite.core import InputError, create_model, save_weights
from vsuite.core.weights import read_metadata, read_state_dict
from vsuite.medical.export import BundleFacts, export_bundle
from vsuite.medical.export.bundle import facts_of
from vsuite.medical.inference import Predictor, predict_files
from vsuite.medical.plan import Plan

NETWORK: dict[str, Any] = {  # two stages, so that the commands take seconds
    "embed_dims": [8, 16],
    "num_heads": [1, 2],
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "mlp_ratios": [2, 2],
    "patch_kernel_size": [7, 3],
    "patch_stride": [4, 2],
    "patch_padding": [3, 1],
    "decoder_head_embedding_dim": 16,
}
LABELS: dict[str, Any] = {"labels": {"background": 0, "anterior": 1, "posterior": 4}}
REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
CONFIG, META = ["--config_file", "configs/inference.json"], ["--meta_file", "configs/metadata.json"]


def make_weights(path: Path, channels: int = 1, **changes: Any) -> Path:
    """Weights of an untrained network, with biases that make every class appear."""
    names = ["T1", "T2", "FLAIR"][:channels]
    facts: dict[str, Any] = {"channels": names, "normalisation": [{"kind": "zscore"}] * channels, "patch_size": (24, 16, 32)}
    plan = Plan(**facts | LABELS | changes)
    torch.manual_seed(3)
    model = create_model("segformer3d", in_channels=channels, num_classes=plan.num_outputs, **NETWORK)
    model.get_submodule("segformer_decoder.linear_pred").reset_parameters()  # type: ignore[operator]
    save_weights(model, path, metadata={"plan": plan.model_dump(mode="json")})
    return path


def write_oblique_images(folder: Path, channels: int = 1, files: int = 1) -> Path:
    """Anisotropic, rotated images whose axes run left, superior, anterior; one 4D file or one file a channel."""
    turn = Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix()
    to_lsa = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]], float)
    affine = np.eye(4)
    affine[:3, :3] = turn @ to_lsa @ np.diag([1.1, 0.9, 2.5])
    affine[:3, 3] = 10, -20, 5
    assert nib.aff2axcodes(affine) == ("L", "S", "A")
    folder.mkdir()
    rng = np.random.default_rng(0)
    image = rng.normal(size=(channels, 30, 33, 14)).cumsum(1).cumsum(2).astype(np.float32)
    if files == 1:
        nib.save(nib.Nifti1Image(image[0] if channels == 1 else np.moveaxis(image, 0, -1), affine), folder / "case.nii.gz")
    else:
        for index, channel in enumerate(image):
            nib.save(nib.Nifti1Image(channel, affine), folder / f"case_{index:04}.nii.gz")
    return folder


def monai_bundle(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m monai.bundle ...` in the bundle's folder, as a user runs it, without a network or a GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=False)


def test_run_by_monai_gives_our_label_file(tmp_path: Path) -> None:
    pytest.importorskip("fire")
    pytest.importorskip("ignite")
    weights = make_weights(tmp_path / "weights.safetensors", channels=2, spacing=(1.5, 1.0, 2.0), axes=(2, 0, 1))
    images = write_oblique_images(tmp_path / "images", channels=2, files=2)
    root = export_bundle(weights, tmp_path / "bundle")
    done = monai_bundle(root, "run", *CONFIG, *META, "--dataset_dir", str(images), "--output_dir", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert predict_files(Predictor(weights, device="cpu"), images, tmp_path / "ours", progress=False) == 0
    ours, theirs = nib.load(tmp_path / "ours" / "case.nii.gz"), nib.load(tmp_path / "theirs" / "case.nii.gz")
    label = np.asarray(ours.dataobj)
    assert set(np.unique(label)) == {0, 1, 4}
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), label)
    np.testing.assert_array_equal(theirs.affine, nib.load(images / "case_0000.nii.gz").affine)
    assert theirs.header.binaryblock == ours.header.binaryblock


@pytest.mark.parametrize(
    ("channels", "files", "changes"),
    [
        (1, 1, {}),
        (3, 1, {"spacing": (1.0, 2.0, 1.0)}),
        (1, 1, REGIONS),
        (2, 2, REGIONS | {"spacing": (2.0, 2.0, 1.2), "axes": (1, 2, 0)}),
    ],
)
def test_components_give_our_label_file(tmp_path: Path, channels: int, files: int, changes: dict[str, Any]) -> None:
    """What the configuration strings together, without the cost of MONAI's command."""
    from monai.data import DataLoader, Dataset, decollate_batch

    from vsuite.medical.bundle_components import LabelOnFileGrid, PrepareImage, SaveLabel, WindowInferer, find_images, read_plan

    weights = make_weights(tmp_path / "weights.safetensors", channels, **changes)
    images = write_oblique_images(tmp_path / "images", channels, files)
    root = export_bundle(weights, tmp_path / "bundle", overlap=0.25, blend="constant")
    plan = read_plan(root / "configs" / "plan.json")
    settings = json.loads((root / "configs" / "inference.json").read_text())
    network = create_model(**{key: value for key, value in settings["network_def"].items() if key != "_target_"})
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    inferer = WindowInferer(plan, overlap=settings["inferer"]["overlap"], blend=settings["inferer"]["blend"])
    (batch,) = DataLoader(Dataset(find_images(images, plan), PrepareImage(plan)), batch_size=1)
    logits = inferer(batch["image"], network.eval())
    (item,) = decollate_batch(batch)
    SaveLabel(tmp_path)(LabelOnFileGrid(plan)({**item, "pred": logits[0]}))
    paths = sorted(images.iterdir())
    prediction = Predictor(weights, overlap=0.25, blend="constant").predict(paths if files > 1 else paths[0])
    written = nib.load(tmp_path / "case.nii.gz")
    assert len(np.unique(prediction.label)) > 2
    np.testing.assert_array_equal(np.asarray(written.dataobj), prediction.label)
    np.testing.assert_array_equal(written.affine, prediction.affine)


def test_bundle_holds_what_the_specification_asks(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    weights = make_weights(tmp_path / "weights.safetensors", channels=2, **REGIONS)
    facts = BundleFacts(version="1.2.3", authors="A. Author", copyright="2026 A. Author", modality="MR", data_licence="CC BY-SA 4.0")
    root = export_bundle(weights, tmp_path / "tumour", facts=facts)
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {
        "LICENSE",
        "configs/inference.json",
        "configs/logging.conf",
        "configs/meta_schema.json",
        "configs/metadata.json",
        "configs/plan.json",
        "docs/README.md",
        "docs/contract.json",
        "docs/data_license.txt",
        "models/model.pt",
    }
    metadata, schema = (json.loads((root / "configs" / f"{name}.json").read_text()) for name in ("metadata", "meta_schema"))
    jsonschema.validate(metadata, schema)
    assert (metadata["name"], metadata["version"], metadata["authors"]) == ("tumour", "1.2.3", "A. Author")
    assert "vsuite-medical" in metadata["required_packages_version"]
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"], image["modality"]) == (2, [24, 16, 32], "MR")
    assert pred["channel_def"] == {"0": "whole", "1": "core", "2": "enhancing"}
    assert (root / "docs" / "data_license.txt").read_text() == "CC BY-SA 4.0\n"
    assert "$" not in (root / "docs" / "README.md").read_text().replace('"[', "")
    assert (root / "LICENSE").read_text().lstrip().startswith("Apache License")
    state = read_state_dict(root / "models" / "model.pt")
    assert all(torch.equal(value, state[name]) for name, value in read_state_dict(weights).items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # nothing left of the building


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["version"], "1.0"),
        (["authors"], ""),
        (["monai_version"], None),
        (["network_data_format", "inputs", "image", "num_channels"], 0),
        (["network_data_format", "inputs", "image", "spatial_shape"], ["large", 32, 32]),
        (["network_data_format", "outputs", "pred", "dtype"], "complex"),
        (["network_data_format", "outputs", "pred", "channel_def"], {"first": "background"}),
        (["network_data_format", "outputs"], {}),
    ],
)
def test_schema_refuses_wrong_metadata(tmp_path: Path, where: list[str], value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    root = export_bundle(make_weights(tmp_path / "weights.safetensors"), tmp_path / "bundle")
    metadata, schema = (json.loads((root / "configs" / f"{name}.json").read_text()) for name in ("metadata", "meta_schema"))
    holder = metadata
    for key in where[:-1]:
        holder = holder[key]
    if value is None:
        del holder[where[-1]]
    else:
        holder[where[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, schema)


def test_a_folder_is_replaced_only_if_asked_and_only_a_bundle(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights.safetensors")
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"beach")
    for overwrite, said in [(False, "not empty"), (True, "no bundle")]:
        with pytest.raises(InputError, match=said):
            export_bundle(weights, other, overwrite=overwrite)
    assert [path.name for path in other.iterdir()] == ["photo.jpg"]
    root = tmp_path / "bundle"
    root.mkdir()  # empty: taken
    export_bundle(weights, root)
    (root / "stale.txt").write_text("old")
    with pytest.raises(InputError, match="not empty"):
        export_bundle(weights, root)
    export_bundle(weights, root, facts=BundleFacts(version="0.2.0"), overwrite=True)
    assert not (root / "stale.txt").exists()
    assert json.loads((root / "configs" / "metadata.json").read_text())["version"] == "0.2.0"


def test_a_failed_export_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_weights(tmp_path / "weights.safetensors")
    root = export_bundle(weights, tmp_path / "bundle")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vsuite.medical.export.bundle.save_weights", full)
    with pytest.raises(InputError, match="No space left"):
        export_bundle(weights, root, overwrite=True)
    with pytest.raises(InputError, match="No space left"):
        export_bundle(weights, tmp_path / "new")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "weights.safetensors"]


@pytest.mark.parametrize("name", ["$__import__('os')", "%metadata.json", "@device"])
def test_names_that_monai_would_run_are_refused(tmp_path: Path, name: str) -> None:
    weights = make_weights(tmp_path / "weights.safetensors", labels={"background": 0, name: 1, "other": 2})
    with pytest.raises(InputError, match="takes for code"):
        export_bundle(weights, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_other_wrong_input(tmp_path: Path) -> None:
    from vsuite.medical.bundle_components import find_images, read_plan

    weights = make_weights(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="semantic"):
        export_bundle(weights, tmp_path / "bundle", facts=BundleFacts(version="v2"))
    with pytest.raises(InputError, match="bundle_root"):
        read_plan(tmp_path / "configs" / "plan.json")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="is no plan"):
        read_plan(tmp_path / "plan.json")
    root = export_bundle(weights, tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no images"):  # MONAI alone would end well and write nothing
        find_images(tmp_path / "images", read_plan(root / "configs" / "plan.json"))


@pytest.mark.slow
def test_every_command_of_monai_takes_the_bundle(tmp_path: Path) -> None:
    pytest.importorskip("fire")
    import onnxruntime

    root = export_bundle(make_weights(tmp_path / "weights.safetensors", channels=2, **REGIONS), tmp_path / "bundle")
    network = create_model("segformer3d", in_channels=2, num_classes=3, **NETWORK).eval()
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    files = ["--net_id", "network_def", "--ckpt_file", "models/model.pt", *META, *CONFIG]
    done = monai_bundle(root, "verify_metadata", *META, "--filepath", "configs/meta_schema.json")
    assert done.returncode == 0, done.stderr[-3000:]
    done = monai_bundle(root, "verify_net_in_out", "--net_id", "network_def", *META, *CONFIG, "--device", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    done = monai_bundle(root, "ckpt_export", "--filepath", "models/model.ts", "--use_trace", "True", *files)
    assert done.returncode == 0, done.stderr[-3000:]
    done = monai_bundle(root, "onnx_export", "--filepath", "models/model.onnx", "--input_shape", "[1,2,24,16,32]", *files)
    assert done.returncode == 0, done.stderr[-3000:]
    image = torch.randn(1, 2, 24, 16, 32)
    with torch.no_grad():
        wanted = network(image)
    tolerance = 1e-4 * float(wanted.abs().max())
    torch.testing.assert_close(torch.jit.load(root / "models" / "model.ts")(image), wanted, atol=tolerance, rtol=0)
    session = onnxruntime.InferenceSession(str(root / "models" / "model.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), wanted, atol=tolerance, rtol=0)


@pytest.mark.slow
def test_metadata_that_does_not_fit_and_an_empty_folder_fail(tmp_path: Path) -> None:
    pytest.importorskip("fire")
    root = export_bundle(make_weights(tmp_path / "weights.safetensors"), tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    done = monai_bundle(root, "run", *CONFIG, *META, "--dataset_dir", str(tmp_path / "images"))
    assert done.returncode != 0
    assert "holds no images" in done.stderr
    done = monai_bundle(root, "verify_net_in_out", "--net_id", "network_def", *META, *CONFIG, "--network_def#num_classes", "5")
    assert done.returncode != 0
    assert "doesn't match" in done.stderr
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    del metadata["authors"]
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    done = monai_bundle(root, "verify_metadata", *META, "--filepath", "configs/meta_schema.json")
    assert done.returncode != 0
    assert "'authors' is a required property" in done.stderr


def test_shipped_facts_reach_the_papers(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w.safetensors")
    facts = {
        "data_source": "Decathlon Task04",
        "data_licence": "CC BY-SA 4.0",
        "authors": "A. Author",
        "modality": "MR",
        "description": "Two parts of the hippocampus.",
        "references": ["arXiv 2404.10156"],
        "version": "1.2.0",
        "later": 1,
    }
    plan = read_metadata(weights)["plan"]
    model = create_model("segformer3d", weights=str(weights))
    save_weights(model, weights, metadata={"plan": plan, "facts": facts})
    bundle = export_bundle(weights, tmp_path / "bundle")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert (bundle / "docs" / "data_license.txt").read_text() == "CC BY-SA 4.0\n"
    for key in ("data_source", "authors", "description", "references", "version"):
        assert metadata[key] == facts[key]
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == "MR"
    other = export_bundle(weights, tmp_path / "other", facts=BundleFacts(version="2.0.0"))
    assert json.loads((other / "configs" / "metadata.json").read_text())["authors"] == "not stated"


@pytest.mark.parametrize("given", [{"authors": 3}, {"references": "one"}, {"references": [1]}, {"version": ["1.0.0"]}, "text"])
def test_facts_of_another_kind_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="the weights' fact"):
        facts_of({"facts": given})


def test_weights_without_facts_leave_them_as_they_are() -> None:
    assert facts_of({}) == BundleFacts()
