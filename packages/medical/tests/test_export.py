"""ONNX, TorchScript and published files, and the contract beside each."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vsuite.core import InputError, create_model, load_published, save_weights
from vsuite.core.weights import read_state_dict
from vsuite.medical.export import Contract, contract_of, export_onnx, export_published, export_torchscript
from vsuite.medical.export import onnx as onnx_module
from vsuite.medical.export.contract import weights_digest
from vsuite.medical.plan import Plan

# Two stages, so that the exporters take seconds.
SMALL: dict[str, Any] = {
    "embed_dims": (8, 16),
    "num_heads": (1, 2),
    "depths": (1, 1),
    "sr_ratios": (2, 1),
    "mlp_ratios": (2, 2),
    "patch_kernel_size": (7, 3),
    "patch_stride": (4, 2),
    "patch_padding": (3, 1),
    "decoder_head_embedding_dim": 16,
}


def make_plan(**changes: Any) -> Plan:
    channels = changes.pop("channels", ["T1", "T2"])
    facts: dict[str, Any] = {
        "channels": channels,
        "normalisation": [{"kind": "zscore"}] * len(channels),
        "labels": {"background": 0, "anterior": 1, "posterior": 4},
        "patch_size": (24, 32, 16),
        "spacing": (1.5, 1.0, 2.0),
        "axes": (2, 0, 1),
        "dataset": "made up",
    }
    return Plan(**facts | changes)


def make_model(plan: Plan, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"in_channels": len(plan.channels), "num_classes": plan.num_outputs}
    return create_model("segformer3d", **sizes | SMALL | options).eval()


REGIONS: dict[str, Any] = {
    "channels": ["FLAIR", "T1w", "T1gd", "T2w"],
    "labels": {"background": 0, "core": [2, 3], "whole": [1, 2, 3], "enhancing": 3},
    "regions_class_order": [2, 1, 3],
    "spacing": None,
}


def test_contract_says_all_that_surrounds_the_network() -> None:
    plan = make_plan(normalisation=[{"kind": "ct", "lower": -100, "upper": 300, "mean": 90, "std": 40}, {"kind": "rescale_to_0_1"}])
    contract = contract_of(make_model(plan), plan, overlap=0.25, blend="constant")
    assert [channel.name for channel in contract.input.channels] == ["T1", "T2"]
    assert contract.input.channels[0].normalisation.lower == -100
    assert (contract.input.orientation, contract.input.axes) == ("RAS", ("z", "x", "y"))
    assert (contract.input.spacing_mm, contract.input.window) == ((1.5, 1.0, 2.0), (24, 32, 16))
    assert (contract.windows.overlap, contract.windows.blending) == (0.25, "constant")
    assert contract.output.activation == "softmax"
    classes = [(c.index, c.name, c.written_as) for c in contract.output.classes]
    assert classes == [
        (0, "background", 0),
        (1, "anterior", 1),
        (2, "posterior", 4),
    ]
    assert contract.model == "segformer3d"
    assert contract.options["embed_dims"] == (8, 16)
    assert contract.software["torch"] == torch.__version__
    assert Contract.model_validate_json(contract.model_dump_json()).model_dump(mode="json") == contract.model_dump(mode="json")


def test_contract_of_regions_names_what_is_covered_and_the_order_of_writing() -> None:
    plan = make_plan(**REGIONS)
    output = contract_of(make_model(plan), plan).output
    assert output.activation == "sigmoid"
    classes = [(c.name, c.covers, c.written_as) for c in output.classes]
    assert classes == [
        ("core", [2, 3], 2),
        ("whole", [1, 2, 3], 1),
        ("enhancing", [3], 3),
    ]
    assert output.writing_order == [1, 0, 2]  # the whole first, or it would hide the core


@pytest.mark.parametrize(("options", "said"), [({"overlap": 1.0}, "overlap"), ({"overlap": -0.1}, "overlap"), ({"blend": "mean"}, "mean")])
def test_contract_refuses_other_options(options: dict[str, Any], said: str) -> None:
    plan = make_plan()
    with pytest.raises(InputError, match=said):
        contract_of(nn.Identity(), plan, **options)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), st.integers(0, 2))
def test_digest_changes_with_any_value_and_with_nothing_else(values: list[float], changed: int) -> None:
    first, second = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([values]))
        second.weight.copy_(first.weight)
        assert weights_digest(first) == weights_digest(second.train())
        second.weight[0, changed] += 1
    assert weights_digest(first) != weights_digest(second)


def test_onnx_equals_the_network_and_carries_its_contract(tmp_path: Path) -> None:
    import onnxruntime

    plan = make_plan()
    model = make_model(plan)
    save_weights(model, tmp_path / "weights.safetensors", metadata={"plan": plan.model_dump(mode="json")})
    exported = export_onnx(tmp_path / "weights.safetensors", tmp_path / "network.onnx")
    assert exported.max_difference <= 1e-4 * exported.largest_logit
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("image", ["batch", 2, 24, 32, 16])]
    image = torch.randn(5, 2, 24, 32, 16)  # a batch that the export has not seen
    with torch.no_grad():
        wanted = model(image).numpy()
    np.testing.assert_allclose(session.run(["pred"], {"image": image.numpy()})[0], wanted, atol=1e-4 * np.abs(wanted).max())
    contract = Contract.model_validate_json(exported.contract.read_text())
    assert exported.contract == tmp_path / "network.onnx.json"
    assert contract.weights_sha256 == weights_digest(model)
    assert json.loads(session.get_modelmeta().custom_metadata_map["contract"]) == contract.model_dump(mode="json")
    assert str(exported).startswith(f"{exported.path}: differs from the network by at most")
    assert logging.getLogger("torch.onnx").level == logging.NOTSET  # as it was


@pytest.mark.slow
def test_onnx_of_any_size(tmp_path: Path) -> None:
    import onnxruntime

    plan = make_plan(**REGIONS)
    stages = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 1, 2), "depths": (1, 1, 1, 1), "sr_ratios": (4, 2, 1, 1)}
    patches = {"patch_kernel_size": (7, 3, 3, 3), "patch_stride": (4, 2, 2, 2), "patch_padding": (3, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)}
    model = make_model(plan, **stages, **patches)
    exported = export_onnx((model, plan), tmp_path / "network.onnx", dynamic_size=True)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    for size in [(32, 32, 32), (36, 44, 52), (128, 32, 64)]:
        image = torch.randn(1, 4, *size)
        with torch.no_grad():
            wanted = model(image).numpy()
        np.testing.assert_allclose(session.run(["pred"], {"image": image.numpy()})[0], wanted, atol=1e-4 * np.abs(wanted).max())


def test_torchscript_takes_any_batch_and_carries_its_contract(tmp_path: Path) -> None:
    plan = make_plan(**REGIONS)
    model = make_model(plan).train()
    exported = export_torchscript((model, plan), tmp_path / "network.ts", window=(16, 24, 32))
    assert model.training  # the caller's model is left as it is
    extra = {"contract.json": ""}
    loaded = torch.jit.load(exported.path, _extra_files=extra)
    image = torch.randn(3, 4, 16, 24, 32)
    with torch.no_grad():
        wanted = model.eval()(image)
        torch.testing.assert_close(loaded(image), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)
    assert json.loads(extra["contract.json"]) == json.loads(exported.contract.read_text())
    assert json.loads(exported.contract.read_text())["input"]["window"] == [16, 24, 32]


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".safetensors"])
def test_published_layout_loads_back(tmp_path: Path, suffix: str) -> None:
    plan = make_plan()
    model = make_model(plan)
    exported = export_published((model, plan), tmp_path / f"network{suffix}")
    state = read_state_dict(exported.path)
    assert "segformer_encoder.embed_1.patch_embeddings.weight" in state
    assert exported.contract.is_file()
    options = {"patch_stride": (4, 2), "num_heads": (1, 2)}  # heads and strides are not in the tensors
    assert weights_digest(load_published(exported.path, **options)) == weights_digest(model)


def test_an_export_that_differs_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    monkeypatch.setattr(onnx_module, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"differs from the network by .*not written"):
        export_torchscript((make_model(plan), plan), tmp_path / "network.ts")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_their_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find_spec(name, *rest))
    with pytest.raises(InputError, match=r'needs onnxscript: pip install "vsuite-medical\[export\]"'):
        export_onnx((make_model(plan), plan), tmp_path / "network.onnx")


def test_wrong_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = make_plan()
    model = make_model(plan)
    save_weights(model, tmp_path / "no_plan.safetensors")
    before = sorted(tmp_path.iterdir())
    for call, said in [
        (lambda: export_onnx((model, plan), tmp_path / "network.pb"), r"\.onnx"),
        (lambda: export_onnx((model, plan), tmp_path / "network.onnx", batch=0), "batch"),
        (lambda: export_onnx((model, plan), tmp_path / "network.onnx", window=(24, 32)), "three numbers"),
        (lambda: export_onnx((model, plan), tmp_path / "network.onnx", window=(2, 1, 1)), "voxels up"),
        (lambda: export_torchscript((model, make_plan(**REGIONS)), tmp_path / "network.ts"), "4"),
        (
            lambda: export_torchscript((make_model(plan, num_classes=7), plan), tmp_path / "network.ts"),
            "7 outputs, .* need 3",
        ),
        (lambda: export_published(tmp_path / "no_plan.safetensors", tmp_path / "network.bin"), "holds no plan"),
        (lambda: export_published(tmp_path / "absent.safetensors", tmp_path / "network.bin"), "no such file"),
    ]:
        with pytest.raises(InputError, match=said):
            call()
    assert sorted(tmp_path.iterdir()) == before
