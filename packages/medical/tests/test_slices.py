"""Networks of slices on volumes: plans, windows, zooming, training patches, exports, and the way from a folder to a label map."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from vsuite.core import create_model, load_published, model_info, save_weights
from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import read_dataset
from vsuite.medical.data.nifti import Volume
from vsuite.medical.data.planning import PlanSettings, fingerprint, make_plan
from vsuite.medical.data.training_data import TrainingData
from vsuite.medical.data.transforms import AugmentationSettings
from vsuite.medical.export import export_bundle, export_onnx, export_published, export_torchscript
from vsuite.medical.inference import Predictor
from vsuite.medical.inference.slices import predict_slices, run_network
from vsuite.medical.inference.sliding_window import sliding_window
from vsuite.medical.plan import Plan
from vsuite.medical.preprocess import preprocess
from vsuite.medical.training import check_network, resolve_settings, start_from

TINY: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 32,
    "mlp_dim": 32,
    "num_heads": 2,
    "depth": 1,
    "resnet_depths": [1, 1, 1],
    "resnet_width": 32,
    "decoder_channels": [8, 8, 8, 8],
}
FACTS: dict[str, Any] = {
    "channels": ["T1"],
    "normalisation": [{"kind": "zscore"}],
    "labels": {"background": 0, "a": 1, "b": 4},
    "patch_size": (1, 32, 32),
    "axes": (2, 0, 1),
    "model": "transunet_r50_vit_b16",
    "options": TINY | {"in_channels": 1, "num_classes": 3},
}


def plan_of(**changes: Any) -> Plan:
    return Plan.model_validate(FACTS | changes)


def network(**options: Any) -> nn.Module:
    """An untrained network in whose outputs every class appears."""
    torch.manual_seed(1)
    model = create_model("transunet_r50_vit_b16", in_channels=1, num_classes=3, **TINY | options).eval()
    nn.init.normal_(model.get_parameter("segmentation_head.0.weight"))
    nn.init.zeros_(model.get_parameter("segmentation_head.0.bias"))
    return model


def smooth(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).cumsum(0).cumsum(1).astype(np.float32)


# --- plans ---


def test_a_patch_one_voxel_thick_makes_a_plan_of_slices() -> None:
    assert plan_of().is_2d
    assert not plan_of(patch_size=(2, 32, 32)).is_2d
    assert plan_of().mirror_axes == (1, 2)  # across the slices there is nothing to mirror
    assert plan_of(spacing=(1, 2, 3)).target_spacing((0.5, 0.6, 0.7)) == (1, 2, 0.7)
    assert plan_of(spacing=(1, 2, 3), patch_size=(16, 16, 16)).target_spacing((0.5, 0.6, 0.7)) == (1, 2, 3)
    for patch in ((1, 32, 48), (32, 32, 32)):
        with pytest.raises(pydantic.ValidationError, match="zoom_slices needs a patch of 1 x S x S"):
            plan_of(zoom_slices=True, patch_size=patch)


def test_slices_are_never_mixed_by_resampling() -> None:
    volume = Volume(smooth(20, 16, 7)[None], np.diag([1.0, 2.0, 5.0, 1]))
    prepared = preprocess(volume, plan_of(spacing=(2.0, 2.0, 2.0)))
    assert prepared.tensor.shape == (1, 7, 10, 16)


@pytest.mark.parametrize(
    ("shapes", "spacing", "axes", "side"),
    [([(40, 50, 20)], (1, 1, 4), (2, 0, 1), 64), ([(30, 50, 20)], (3, 1, 1), (0, 1, 2), 64), ([(1000, 30, 1)], (1, 1, 1), (2, 0, 1), 224)],
)
def test_planning_cuts_across_the_coarsest_axis(tmp_path: Path, shapes: list, spacing: tuple, axes: tuple, side: int) -> None:
    for i, shape in enumerate(shapes):
        label = np.zeros(shape, np.uint8)
        label[:10, :10] = 1
        write_case(tmp_path, f"case{i}", smooth(*shape), label, np.diag([*spacing, 1.0]))
    description = read_dataset(tmp_path)
    chosen = PlanSettings(model="transunet_r50_vit_b16", patch_voxels=50176)
    plan = make_plan(description, fingerprint(description, progress=False), chosen)
    assert (plan.axes, plan.patch_size, plan.options["image_size"]) == (axes, (1, side, side), side)
    oblong = chosen.model_copy(update={"patch_size": (1, 32, 48)})
    with pytest.raises(InputError, match="takes square slices; got a patch of 1 x 32 x 48"):
        make_plan(description, fingerprint(description, progress=False), oblong)


def write_case(root: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    for folder, array in (("images", image), ("labels", label)):
        (root / folder).mkdir(exist_ok=True, parents=True)
        nib.save(nib.Nifti1Image(array, affine), root / folder / f"{name}.nii.gz")


def test_a_2d_model_brings_its_own_default_recipe() -> None:
    assert resolve_settings(data="x", model="transunet_vit_b16").name == "generic_slices"
    assert resolve_settings(data="x", model="transunet_vit_b16").plan.model == "transunet_vit_b16"
    assert resolve_settings(data="x", model="segformer3d").name == "generic"


def test_networks_that_cannot_label_every_pixel_are_refused() -> None:
    run = resolve_settings(data="x", recipe="hippocampus_slices")
    options = FACTS["options"] | {"patch_size": 32, "image_size": 64, "resnet_depths": [], "num_skips": 0}
    with pytest.raises(InputError, match="answers on 1 x 32 x 32 voxels for a patch of 1 x 64 x 64"):
        check_network(plan_of(model="transunet_vit_b32", options=options, patch_size=(1, 64, 64)), run)
    with pytest.raises(InputError, match="built for slices of 32 x 32; got 48 x 48"):
        check_network(plan_of(patch_size=(1, 48, 48)), run)
    check_network(plan_of(), run)


# --- prediction ---


@given(batch=st.integers(1, 3), depth=st.integers(1, 4))
@settings(max_examples=8)
def test_every_slice_of_a_window_goes_through_alone(batch: int, depth: int) -> None:
    model = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    windows = torch.randn(batch, 2, depth, 6, 5, generator=torch.Generator().manual_seed(0))
    found = run_network(model, windows, plan_of())
    wanted = torch.stack([torch.stack([model(window[None, :, d])[0] for d in range(depth)], 1) for window in windows])
    torch.testing.assert_close(found, wanted)
    thick = plan_of(patch_size=(4, 32, 32))
    assert run_network(lambda x: x, windows, thick) is windows


@pytest.mark.parametrize("shape", [(40, 50, 11), (20, 30, 3), (70, 33, 1)])
def test_batches_of_slices_give_what_windows_of_one_slice_give(shape: tuple[int, int, int]) -> None:
    plan, model = plan_of(), network()
    prepared = preprocess(Volume(smooth(*shape)[None], np.eye(4)), plan)
    wanted = sliding_window(prepared.tensor, (1, 32, 32), lambda x: run_network(model, x, plan).detach(), 0.5)
    for batch_size in (1, 4, 32):
        slabs, axis = Predictor((model, plan), device="cpu", batch_size=batch_size).slabs(prepared.tensor)
        found = torch.cat([slab.clone() for slab in slabs], axis + 1)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_slices_share_calls_of_the_network() -> None:
    sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.expand(-1, 3, -1, -1)

    Predictor((Counting(), plan_of()), device="cpu", batch_size=8).predict(smooth(32, 32, 20), np.eye(4))
    assert sizes == [7, 7, 7]  # 20 slices in as many calls of 8, evenly: the last window is moved back by one


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_zoomed_slices_are_the_official_inference(batch_size: int) -> None:
    volume, model, plan = smooth(45, 38, 6), network(), plan_of(zoom_slices=True)
    predictor = Predictor((model, plan), device="cpu", batch_size=batch_size)
    found = predictor.predict(volume, np.eye(4)).label
    normal = preprocess(Volume(volume[None], np.eye(4)), plan).tensor.numpy()[0]  # D, H, W = z, x, y
    classes = predict_slices(model, normal, 32)
    assert len(np.unique(classes)) > 1
    assert np.array_equal(found, np.array([0, 1, 4])[classes].transpose(1, 2, 0))


def test_zooming_can_be_chosen_at_prediction() -> None:
    model, volume = network(), smooth(45, 38, 3)
    zoomed, windows = (Predictor((model, plan_of(zoom_slices=z)), device="cpu").predict(volume, np.eye(4)).label for z in (True, False))
    assert not np.array_equal(zoomed, windows)
    chosen = Predictor((model, plan_of()), device="cpu", zoom_slices=True)
    assert np.array_equal(chosen.predict(volume, np.eye(4)).label, zoomed)
    with pytest.raises(InputError, match=r"prediction: .*zoom_slices needs a patch of 1 x S x S"):
        Predictor((nn.Identity(), plan_of(patch_size=(8, 8, 8))), device="cpu", zoom_slices=True)


# --- training patches ---


def training_data(folder: Path, image: np.ndarray, label: np.ndarray, plan: Plan, **augmentation: Any) -> TrainingData:
    write_case(folder, "case", image, label, np.diag([1.0, 1.0, 3.0, 1.0]))
    return TrainingData(read_dataset(folder).training, plan, AugmentationSettings(**augmentation), folder / "prepared")


STRONG: dict[str, Any] = {
    "mirror_probability": 0.5,
    "rotation_probability": 1.0,
    "rotation": [0.5, 0.5, 0.5],
    "scale_probability": 1.0,
    "scale": [0.7, 1.4],
    "elastic_probability": 1.0,
    "elastic_magnitude": 2.0,
}


def test_augmented_patches_stay_within_their_slice(tmp_path: Path) -> None:
    image = np.broadcast_to(np.arange(1, 10, dtype=np.float32), (90, 90, 9)).copy()  # the value of a slice is its number
    plan = plan_of(normalisation=[{"kind": "none"}], labels={"background": 0, "a": 1})
    label = np.zeros(image.shape, np.uint8)
    label[30:60, 30:60] = 1
    data = training_data(tmp_path, image, label, plan, foreground_share=1.0, **STRONG)
    seen = set()
    for seed in range(25):
        sample = data.sample(0, np.random.default_rng(seed))
        assert sample["image"].shape == sample["label"].shape == (1, 1, 32, 32)
        inside = sample["image"][sample["image"] > 0]
        middle = float(sample["image"][0, 0, 16, 16])
        assert middle == pytest.approx(round(middle), abs=1e-4)
        torch.testing.assert_close(inside.max(), torch.tensor(middle), atol=1e-4, rtol=0)
        seen.add(round(middle))
    assert len(seen) > 4


def test_voxel_changes_keep_a_slice_as_bright_as_it_is(tmp_path: Path) -> None:
    plan = plan_of(normalisation=[{"kind": "none"}], labels={"background": 0, "a": 1})
    image = np.full((64, 64, 3), 5, np.float32)
    image[0, 0, 0] = 6
    label = np.ones(image.shape, np.uint8)
    smoothed = {"smooth_probability": 1.0, "smooth_sigma": [1.0, 1.0], "low_resolution_probability": 1.0, "gibbs_probability": 1.0}
    data = training_data(tmp_path, image, label, plan, foreground_share=0.0, **smoothed)
    patch = data.sample(0, np.random.default_rng(3))["image"]
    assert patch.shape == (1, 1, 32, 32)
    torch.testing.assert_close(patch[0, 0, 10:20, 10:20], torch.full((10, 10), 5.0), atol=0.2, rtol=0)


@pytest.mark.parametrize("zoom", [True, False])
def test_turned_and_zoomed_patches_keep_image_and_label_together(tmp_path: Path, zoom: bool) -> None:
    label = np.zeros((64, 64, 4), np.uint8)
    label[8:30, 12:50] = 1
    label[40:60, 5:20] = 2
    plan = plan_of(normalisation=[{"kind": "none"}], labels={"background": 0, "a": 1, "b": 2}, zoom_slices=zoom)
    turned = {"turn_probability": 0.5, "rotation_probability": 0.5, "rotation": [0.35, 0, 0]}
    data = training_data(tmp_path, label.astype(np.float32), label, plan, foreground_share=1.0, **turned)
    patches = []
    for seed in range(16):
        sample = data.sample(0, np.random.default_rng(seed))
        wrong = (sample["image"].round() != sample["label"]).float().mean()
        assert wrong < 0.12, seed  # only along edges, where a spline lies between two labels
        patches.append(sample["label"][0, 0])
    assert len({patch.numpy().tobytes() for patch in patches}) > 6
    if zoom:  # whole slices: both structures are always seen
        assert all({1, 2} <= set(patch.unique().tolist()) for patch in patches)


# --- weights to start from ---


def jax_arrays(model: nn.Module, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """The encoder's weights of a tiny TransUNet as Google's files name and lay them out."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    prefix, arrays = "transformer.embeddings.", {}
    arrays["embedding/kernel"] = state[f"{prefix}patch_embeddings.weight"].transpose(2, 3, 1, 0)
    arrays["embedding/bias"] = state[f"{prefix}patch_embeddings.bias"]
    table = state[f"{prefix}position_embeddings"]
    arrays["Transformer/posembed_input/pos_embedding"] = np.concatenate([np.zeros_like(table[:, :1]), table], 1)
    for name, value in state.items():
        resnet, encoder = f"{prefix}hybrid_model.", "transformer.encoder."
        if name.startswith(resnet):
            theirs = name.removeprefix(resnet).removeprefix("body.").replace("root.conv", "conv_root").replace("root.gn", "gn_root")
            theirs = theirs.replace("downsample", "conv_proj").replace(".", "/")
            kernel = value.ndim == 4
            arrays[theirs.replace("weight", "kernel" if kernel else "scale")] = value.transpose(2, 3, 1, 0) if kernel else value
        elif name.startswith(f"{encoder}encoder_norm"):
            arrays["Transformer/encoder_norm/" + ("scale" if name.endswith("weight") else "bias")] = value
        elif name.startswith(encoder):
            index, part = name.removeprefix(f"{encoder}layer.").split(".", 1)
            block, kind = f"Transformer/encoderblock_{index}/", part.rsplit(".", 1)[1]
            for ours, theirs in {"attention_norm": "LayerNorm_0", "ffn_norm": "LayerNorm_2"}.items():
                if part.startswith(ours):
                    arrays[f"{block}{theirs}/{'scale' if kind == 'weight' else 'bias'}"] = value
            for ours, theirs in {"ffn.fc1": "MlpBlock_3/Dense_0", "ffn.fc2": "MlpBlock_3/Dense_1"}.items():
                if part.startswith(ours):
                    arrays[f"{block}{theirs}/{'kernel' if kind == 'weight' else 'bias'}"] = value.T
            if part.startswith("attn."):
                one, heads = part.split(".")[1], TINY["num_heads"]
                shape = (heads, -1, value.shape[0]) if one == "out" else (value.shape[0], heads, value.shape[0] // heads)
                found = value.T.reshape(shape) if kind == "weight" else value if one == "out" else value.reshape(heads, -1)
                arrays[f"{block}MultiHeadDotProductAttention_1/{one}/{'kernel' if kind == 'weight' else 'bias'}"] = found
    return arrays | changes


def test_jax_weights_start_a_training(tmp_path: Path) -> None:
    trained, model, said = network(), network(image_size=64), []
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.uniform_(-1, 1)
    np.savez(tmp_path / "R50+ViT.npz", **jax_arrays(trained), **{"head/kernel": np.zeros((32, 5), np.float32)})
    start_from(model, tmp_path / "R50+ViT.npz", said.append)
    ours, theirs = model.state_dict(), trained.state_dict()
    same = [name for name in ours if name.startswith("transformer.") and torch.equal(ours[name], theirs[name])]
    assert len(same) == sum(name.startswith("transformer.") for name in ours) - 1  # all but the table, which is of another grid
    assert "resized: transformer.embeddings.position_embeddings" in said[0]
    assert "the decoder's" in said[0]


def test_jax_weights_of_another_network_are_one_line(tmp_path: Path, tiny_segformer3d: dict[str, Any]) -> None:
    np.savez(tmp_path / "other.npz", **jax_arrays(network(depth=2)))
    with pytest.raises(InputError, match=r"other\.npz: is another Vision Transformer than this model's: .*encoderblock_1") as caught:
        start_from(network(), tmp_path / "other.npz")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="starts a TransUNet, not a SegFormer3D"):
        start_from(create_model("segformer3d", in_channels=1, num_classes=3, **tiny_segformer3d), tmp_path / "other.npz")
    np.savez(tmp_path / "none.npz", x=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="is no JAX Vision Transformer"):
        start_from(network(), tmp_path / "none.npz")


# --- exports ---


def test_networks_of_slices_are_exported_as_such(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, plan = network(), plan_of(spacing=(1, 1, 2))
    exported = export_onnx((model, plan), tmp_path / "n.onnx")
    contract = json.loads(exported.contract.read_text())
    assert (contract["input"]["layout"], contract["output"]["layout"]) == ("B, C, H, W", "B, K, H, W")
    assert any("keep the voxel size along z" in step for step in contract["steps"])
    x = torch.randn(3, 1, 32, 32)
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), wanted, atol=1e-4, rtol=1e-3)
    export_torchscript((model, plan), tmp_path / "n.ts")
    torch.testing.assert_close(torch.jit.load(tmp_path / "n.ts")(x), wanted, atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match="a free size is for networks of volumes"):
        export_onnx((model, plan), tmp_path / "free.onnx", dynamic_size=True)
    with pytest.raises(InputError, match="window must be one voxel thick"):
        export_onnx((model, plan), tmp_path / "thick.onnx", window=(4, 32, 32))


def test_a_zoom_is_in_the_contract_and_the_authors_layout_loads(tmp_path: Path) -> None:
    model, plan = network(), plan_of(zoom_slices=True)
    exported = export_published((model, plan), tmp_path / "n.pth")
    steps = json.loads(exported.contract.read_text())["steps"]
    assert any(step.startswith("zoom each slice H, W to 32 x 32 pixels by cubic splines") for step in steps)
    loaded = load_published(tmp_path / "n.pth", num_heads=2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def saved_weights(path: Path, **changes: Any) -> Path:
    plan = plan_of(**changes)
    save_weights(network(), path, metadata={"plan": plan.model_dump(mode="json")})
    return path


def test_every_registered_transunet_is_known_to_take_slices() -> None:
    assert len(model_info("transunet_r50_vit_l16").input_size) == 3
    assert len(model_info("segformer3d").input_size) == 4


@pytest.mark.parametrize("changes", [{}, {"zoom_slices": True}, {"spacing": (1.5, 1.0, 9.0), "axes": (2, 1, 0)}])
def test_a_bundles_parts_give_our_label_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    from monai.data import DataLoader, Dataset, decollate_batch

    from vsuite.medical.bundle_components import LabelOnFileGrid, PrepareImage, SaveLabel, WindowInferer, find_images, read_plan

    weights = saved_weights(tmp_path / "w.safetensors", **changes)
    write_case(tmp_path, "case", smooth(40, 37, 5), np.zeros((40, 37, 5), np.uint8), np.diag([-1.1, 0.9, 2.5, 1]))
    root = export_bundle(weights, tmp_path / "bundle")
    image = json.loads((root / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [32, 32]
    assert "a picture `eval/<case>.png`" in (root / "docs" / "README.md").read_text()
    plan = read_plan(root / "configs" / "plan.json")
    built = json.loads((root / "configs" / "inference.json").read_text())["network_def"]
    model = create_model(**{key: value for key, value in built.items() if key != "_target_"})
    model.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    (batch,) = DataLoader(Dataset(find_images(tmp_path / "images", plan), PrepareImage(plan)), batch_size=1)
    logits = WindowInferer(plan)(batch["image"], model.eval())
    (item,) = decollate_batch(batch)
    SaveLabel(tmp_path)(LabelOnFileGrid(plan)({**item, "pred": logits[0]}))
    wanted = Predictor(weights, device="cpu").predict(tmp_path / "images" / "case.nii.gz").label
    assert len(np.unique(wanted)) > 1
    assert np.array_equal(np.asarray(nib.load(tmp_path / "case.nii.gz").dataobj), wanted)


@pytest.mark.slow
def test_every_command_of_monai_takes_the_bundle(tmp_path: Path) -> None:
    pytest.importorskip("fire")
    pytest.importorskip("ignite")
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = saved_weights(tmp_path / "w.safetensors")
    write_case(tmp_path, "case", smooth(40, 37, 5), np.zeros((40, 37, 5), np.uint8), np.diag([-1.1, 0.9, 2.5, 1]))
    root = export_bundle(weights, tmp_path / "bundle")
    meta, config = ["--meta_file", "configs/metadata.json"], ["--config_file", "configs/inference.json"]
    files = ["--net_id", "network_def", "--ckpt_file", "models/model.pt", *meta, *config]
    for command in (
        ["verify_metadata", *meta, "--filepath", "configs/meta_schema.json"],
        ["verify_net_in_out", "--net_id", "network_def", *meta, *config, "--device", "cpu"],
        ["ckpt_export", "--filepath", "models/model.ts", "--use_trace", "True", *files],
        ["onnx_export", "--filepath", "models/model.onnx", "--input_shape", "[1,1,32,32]", *files],
        ["run", *config, *meta, "--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "theirs")],
    ):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "https_proxy": "http://127.0.0.1:9"}
        whole = [sys.executable, "-m", "monai.bundle", *command]
        done = subprocess.run(whole, cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    wanted = Predictor(weights, device="cpu").predict(tmp_path / "images" / "case.nii.gz").label
    assert np.array_equal(np.asarray(nib.load(tmp_path / "theirs" / "case.nii.gz").dataobj), wanted)
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        logits = network()(x)
    torch.testing.assert_close(torch.jit.load(root / "models" / "model.ts")(x), logits, atol=1e-4, rtol=1e-3)
    session = onnxruntime.InferenceSession(str(root / "models" / "model.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), logits, atol=1e-4, rtol=1e-3)


# --- from a folder to label maps ---


def command(*arguments: object) -> None:
    from vsuite.medical.cli import app

    app([str(argument) for argument in arguments], standalone_mode=False)


def options_of_training(**more: Any) -> list[str]:
    values = {f"plan.options.{key}": value for key, value in TINY.items() if key != "image_size"}
    values |= {"training.batch_size": 2, "training.warmup_steps": 0, "validation.fraction": 0.5} | more
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def test_volumes_from_training_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        label = np.zeros((40, 37, 4), np.uint8)
        label[10:30, 10:30] = 1
        write_case(tmp_path / "data", f"c{i}", smooth(40, 37, 4) + 50 * label, label, np.diag([1.0, 1, 3, 1]))
    small = options_of_training(**{"training.steps": 2, "plan.patch_voxels": 4096})
    command("train", "--data", tmp_path / "data", "--model", "transunet_r50_vit_b16", "--out", tmp_path / "run", *small)
    plan = json.loads(json.dumps(Predictor(str(tmp_path / "run")).plan.model_dump(mode="json")))
    assert (plan["patch_size"], plan["axes"], plan["options"]["image_size"]) == ([1, 48, 48], [2, 0, 1], 48)
    weights = tmp_path / "run" / "checkpoints" / "best.safetensors"
    command("predict", tmp_path / "data" / "images", "--weights", weights, "--out", tmp_path / "predictions")
    command("evaluate", tmp_path / "predictions", "--data", tmp_path / "data" / "labels", "--out", tmp_path / "evaluation", "--no-pictures")
    assert len(json.loads((tmp_path / "evaluation" / "metrics.json").read_text())) > 0
    command("export", "--weights", weights, "--out", tmp_path / "bundle")
    assert (tmp_path / "bundle" / "configs" / "inference.json").is_file()


def test_pictures_from_training_to_label_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i, size in enumerate([(40, 50), (33, 32), (20, 60), (48, 48)]):  # rows, columns: of mixed sizes
        ids = np.zeros(size, np.uint8)
        ids[5:15, 8:28] = 3
        pixels = (rng.integers(0, 8000, size) + 30000 * (ids > 0)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"p{i}.png")
        Image.fromarray(ids).save(tmp_path / "data" / "labels" / f"p{i}.png")
    small = options_of_training(**{"training.steps": 25, "training.learning_rate": 3e-3, "plan.patch_voxels": 4096})
    command("train", "--data", tmp_path / "data", "--model", "transunet_r50_vit_b16", "--out", tmp_path / "run", *small)
    command("predict", tmp_path / "data" / "images", "--weights", tmp_path / "run", "--out", tmp_path / "found")
    found = np.asarray(Image.open(tmp_path / "found" / "p0.png"))
    wanted = np.asarray(Image.open(tmp_path / "data" / "labels" / "p0.png"))
    assert found.shape == (40, 50)
    assert set(np.unique(found)) <= {0, 3}
    assert 2 * ((found == 3) & (wanted == 3)).sum() / ((found == 3).sum() + (wanted == 3).sum()) > 0.5
    command("evaluate", tmp_path / "found", "--data", tmp_path / "data" / "labels", "--out", tmp_path / "evaluation", "--no-pictures")


def test_synapse_by_its_recipe(tmp_path: Path) -> None:
    root = tmp_path / "Synapse"
    for folder in ("train_npz", "test_vol_h5"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(2):
        content = rng.random((40, 40), np.float32)
        np.savez(root / "train_npz" / f"case0005_slice{i:03d}.npz", image=content, label=np.full((40, 40), 2 + i, np.uint8))
    with h5py.File(root / "test_vol_h5" / "case0001.npy.h5", "w") as file:
        file["image"], file["label"] = rng.random((3, 40, 40), np.float32), rng.integers(0, 9, (3, 40, 40)).astype(np.uint8)
    small = options_of_training(**{"training.epochs": 1, "plan.patch_size": [1, 32, 32], "plan.options.dropout": 0.0})
    command("train", "--data", root, "--recipe", "synapse", "--out", tmp_path / "run", *small)
    command("predict", root / "test_vol_h5", "--weights", tmp_path / "run", "--out", tmp_path / "found")
    found = ["evaluate", tmp_path / "found", "--data", root / "test_vol_h5", "--convention", "paper:transunet"]
    command(*found, "--out", tmp_path / "evaluation", "--no-pictures")
    assert nib.load(tmp_path / "found" / "case0001.nii.gz").shape == (40, 40, 3)


def test_only_square_slices_are_turned(tmp_path: Path) -> None:
    label = np.ones((16, 16, 16), np.uint8)
    for size in ((1, 16, 32), (16, 16, 16)):
        with pytest.raises(InputError, match=r"turn_probability: square slices can be turned; the patch is 1"):
            training_data(tmp_path / str(size), smooth(16, 16, 16), label, plan_of(patch_size=size), turn_probability=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "plan.patch_size=[1, 40, 40]"], "image_size must be a multiple of 16, 32 or more; got 40"),
        (["--set", "plan.patch_size=[1, 32, 48]"], "takes square slices"),
        (["--set", "plan.options.skips=2"], "skips"),
        (["--set", "plan.zoom_slices=true"], r"augmentation\.scale_probability: not with plan\.zoom_slices"),
        (["--recipe", "synapse"], r"the recipe is for the channels \['CT'\]"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, change: list[str], message: str) -> None:
    for i in range(2):
        write_case(tmp_path / "data", f"c{i}", smooth(40, 37, 4), (smooth(40, 37, 4) > 0).astype(np.uint8), np.eye(4))
    model = [] if "--recipe" in change else ["--model", "transunet_r50_vit_b16"]
    with pytest.raises(InputError, match=message) as caught:
        command("train", "--data", tmp_path / "data", *model, "--out", tmp_path / "run", *change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "plan.yaml").exists()
