"""`vsuite-medical export`: every format gives the numbers of the weights it was made from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vsuite.core import load_published


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def wanted(trained, windows) -> torch.Tensor:
    with torch.no_grad():
        return load_published(trained.weights).eval()(windows)


@pytest.fixture
def export(trained, invoke, tmp_path):
    def execute(form: str, name: str):
        finished = invoke("export", "--weights", trained.weights, "--format", form, "--out", tmp_path / name)
        assert finished.code == 0, finished.err
        return tmp_path / name

    return execute


def check_contract(path) -> None:
    contract = json.loads(path.with_name(f"{path.name}.json").read_text())
    text = json.dumps(contract)
    assert "lesion" in text
    assert "zscore" in text
    assert contract["input"]["window"] == [16, 16, 16]


def test_published(export, windows, wanted, tiny_segformer3d):
    path = export("published", "authors.bin")
    check_contract(path)
    untold = {name: tiny_segformer3d[name] for name in ("patch_stride", "num_heads", "attention_scale")}
    model = load_published(path, **untold).eval()
    with torch.no_grad():
        assert torch.allclose(model(windows), wanted, rtol=0, atol=1e-5)


def test_torchscript(export, windows, wanted):
    path = export("torchscript", "network.ts")
    check_contract(path)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(path)(windows), wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx(export, windows, wanted):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export("onnx", "network.onnx")
    check_contract(path)
    found = onnxruntime.InferenceSession(str(path)).run(None, {"image": windows.numpy()})[0]
    assert np.allclose(found, wanted.numpy(), rtol=0, atol=1e-4)


def test_exports_of_one_name_keep_their_contracts_and_other_files(export, trained, invoke, tmp_path):
    (tmp_path / "network.json").write_text("mine")
    for form, name in (("published", "network.pth"), ("torchscript", "network.ts")):
        check_contract(export(form, name))
    names = ["network.json", "network.pth", "network.pth.json", "network.ts", "network.ts.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "network.json").read_text() == "mine"
    command = ("export", "--weights", trained.weights, "--format", "published", "--out", tmp_path / "network.pth")
    (tmp_path / "network.pth.json").write_text("mine as well")
    invoke(*command).refused("network.pth: exists; --overwrite replaces it")
    (tmp_path / "network.pth").unlink()
    invoke(*command).refused("network.pth.json: exists; --overwrite replaces it")
    assert (tmp_path / "network.pth.json").read_text() == "mine as well"
    assert not (tmp_path / "network.pth").exists()
    assert invoke(*command, "--overwrite").code == 0
    check_contract(tmp_path / "network.pth")


def test_bundle(export, trained, invoke):
    path = export("bundle", "phantom_bundle")
    for name in ("configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md", "LICENSE"):
        assert (path / name).stat().st_size > 0, name
    assert json.loads((path / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]["num_channels"] == 5
    again = invoke("export", "--weights", trained.weights, "--out", path)
    assert again.code == 2
    assert "exists and is not empty" in again.err
