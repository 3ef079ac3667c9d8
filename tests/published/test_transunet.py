"""TransUNet against what the official code computes, its checkpoints, and the JAX weights it starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from vsuite.core import (
    InputError,
    create_model,
    list_models,
    load_published,
    load_weights,
    model_info,
    optimize_for_inference,
    save_weights,
)
from vsuite.core.weights import read_state_dict
from vsuite.medical.bench.plain.transunet import build as build_plain
from vsuite.medical.bench.plain.transunet import predict_slices as predict_one_by_one
from vsuite.medical.inference.slices import predict_slices
from vsuite.medical.jax_vit import load_jax_weights
from vsuite.medical.losses import LOSSES
from vsuite.medical.metrics import compare_masks
from vsuite.medical.models.resnet_v2 import BottleneckUnit
from vsuite.medical.models.transunet import DecoderBlock, TransUNet

from .conftest import filled

LoadCase = Callable[[str], Any]
SMALL = ["small_160", "skip1_128", "vit_cup_96"]


def options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the official configuration under our names."""
    hybrid = config["hybrid"]
    return {
        "num_classes": config["n_classes"],
        "image_size": config["img_size"],
        "embed_dim": config["hidden_size"],
        "mlp_dim": config["mlp_dim"],
        "num_heads": config["num_heads"],
        "depth": config["num_layers"],
        "patch_size": 16 if hybrid else config["patch_size"][0],
        "resnet_depths": config["resnet_layers"] if hybrid else (),
        "resnet_width": int(64 * config["width_factor"]) if hybrid else 64,
        "num_skips": config["n_skip"],
        "decoder_channels": config["decoder_channels"],
    }


@torch.inference_mode()
def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    tokens, skips = model.forward_features(x)
    return {"tokens": tokens, "logits": model(x)} | {f"skip{i}": skip for i, skip in enumerate(skips)}


@pytest.mark.parametrize("name", SMALL)
def test_whole_model(load_case: LoadCase, name: str) -> None:
    case = load_case(f"transunet/{name}")
    model = case.fill(TransUNet(**options(case.meta["config"])))
    x = case.tensors()["x"]
    case.check(outputs(model, x))
    case.check(outputs(optimize_for_inference(model), x))


@pytest.mark.parametrize("name", SMALL)
def test_plain_form(load_case: LoadCase, name: str) -> None:
    """The oracle of the other tests is held to the same figures."""
    case = load_case(f"transunet/{name}")
    case.check(outputs(case.fill(build_plain(**options(case.meta["config"]))), case.tensors()["x"]))


def test_the_published_model(load_case: LoadCase) -> None:
    case = load_case("transunet/r50_vit_b16_224")
    model = case.fill(create_model("transunet_r50_vit_b16"))
    case.check(outputs(optimize_for_inference(model), case.tensors()["x"]))


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck_s2"])
@torch.inference_mode()
def test_bottleneck(load_case: LoadCase, name: str) -> None:
    case = load_case(f"transunet/{name}")
    config, x = case.meta["config"], case.tensors()["x"]
    assert config["cmid"] == config["cout"] // 4
    module = case.fill(BottleneckUnit(config["cin"], config["cout"], config["stride"]))
    case.check({"out": module(x)})
    case.check({"out": optimize_for_inference(module)(x)})


@torch.inference_mode()
def test_decoder_block(load_case: LoadCase) -> None:
    case = load_case("transunet/decoder_block")
    config, given = case.meta["config"], case.tensors()
    module = case.fill(DecoderBlock(config["in"], config["out"], config["skip"]))
    case.check({"out": module(given["x"], given["skip"])})
    case.check({"out": optimize_for_inference(module)(given["x"], given["skip"])})


def test_loss(load_case: LoadCase) -> None:
    case = load_case("transunet/loss")
    logits, label = (case.tensors()[name] for name in ("logits", "label"))
    logits.requires_grad_()
    terms = LOSSES["transunet_dice_ce"](logits, label)
    weighted = LOSSES["transunet_dice_ce"](logits, label, class_weights=(0, 1, 2, 3))
    total = terms["dice"] + terms["ce"]
    total.backward()
    losses = torch.stack([2 * terms["dice"], 2 * terms["ce"], total, 2 * weighted["dice"]])
    case.check({"losses": losses.detach(), "grad": logits.grad})


def test_metric(load_case: LoadCase) -> None:
    case = load_case("transunet/metric")
    smooth = [ndimage.gaussian_filter(case.inputs()[name].astype(np.float64), 1.2) for name in ("noise_a", "noise_b")]
    a, b = (blob > np.quantile(blob, 0.55) for blob in smooth)
    a[0] = False
    masks = {"a": a, "b": b, "empty": np.zeros_like(a), "one": np.zeros_like(a), "two": np.zeros_like(a)}
    masks["one"][4, 5, 6] = masks["two"][7, 9, 3] = True
    rows = []
    for pair in case.meta["config"]["pairs"]:
        prediction, reference = (masks[name] for name in pair.split(","))
        scores = compare_masks(prediction, reference, (3.0, 0.7, 0.7), convention="paper:transunet")
        rows.append((scores.dice, scores.hd95))
    case.check({"dice_hd95": np.array(rows), "mask_a": a.astype(np.uint8), "mask_b": b.astype(np.uint8)})


@pytest.mark.parametrize("form", ["one by one", "batched", "matrices"])
def test_slice_inference(load_case: LoadCase, form: str) -> None:
    case = load_case("transunet/slice_inference")
    size = case.meta["config"]["patch_size"]
    image = ndimage.gaussian_filter(case.inputs()["noise"], (0, 2, 2))
    image = (image - image.min()) / (image.max() - image.min())

    def network(x: Tensor) -> Tensor:
        assert x.shape[1:] == (1, size, size)
        return torch.cat([-((x - k / 3) ** 2) for k in range(4)], 1)

    if form == "one by one":
        labels = predict_one_by_one(network, image, size)
    else:
        labels = predict_slices(network, image, size, batch_size=2, exact_zoom=form == "batched")
    case.check({"image": image, "prediction": labels})


# Sizes


COUNTS = {
    "transunet_r50_vit_b16": 105_277_081,
    "transunet_r50_vit_l16": 324_024_729,
    "transunet_vit_b16": 91_674_201,
    "transunet_vit_b32": 93_330_777,
    "transunet_vit_l16": 310_356_313,
    "transunet_vit_l32": 312_565_081,  # not on the page: vit_l16 with the patches and positions of patch 32
}


def test_parameter_counts() -> None:
    assert set(list_models(system="transunet")) == set(COUNTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = create_model(name)
        assert sum(p.numel() for p in model.parameters()) == count, name
    assert {result.value for result in model_info("transunet_r50_vit_b16").published} >= {77.48, 31.69, 89.71, 55.86}


def test_parameters_of_the_parts() -> None:
    with torch.device("meta"):
        model = create_model("transunet_r50_vit_b16")
    embeddings = model.transformer.embeddings
    parts = (embeddings.hybrid_model, embeddings, model.transformer.encoder, model.decoder, model.segmentation_head)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [11_894_848, 11_894_848 + 937_728, 85_056_000, 7_387_200, 1_305]


# The authors' checkpoints


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("form", ["flat", "module.", "state_dict"])
def test_load_published(load_case: LoadCase, tmp_path: Path, name: str, form: str) -> None:
    case = load_case(f"transunet/{name}")
    heads = case.meta["config"]["num_heads"]
    state = {key: torch.from_numpy(value) for key, value in case.state_dict().items()}
    content: Any = {f"module.{key}": value for key, value in state.items()} if form == "module." else state
    content = {"state_dict": content, "epoch": 149} if form == "state_dict" else content
    torch.save(content, tmp_path / "epoch_149.pth")
    model = load_published(tmp_path / "epoch_149.pth", num_heads=heads).eval()
    assert isinstance(model, TransUNet)
    case.check(outputs(model, case.tensors()["x"]))


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes_are_inferred(name: str) -> None:
    from vsuite.medical.models.transunet import LAYOUT

    with torch.device("meta"):
        model = create_model(name, num_classes=14, image_size=512)
    found = LAYOUT.infer(model.state_dict())
    wanted = dict(model_info(name).options) | {"num_classes": 14, "image_size": 512}
    assert all(found[key] == (list(wanted[key]) if isinstance(wanted[key], tuple) else wanted[key]) for key in found)
    assert set(wanted) - set(found) == {"dropout"}


def small_state(load_case: LoadCase) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in load_case("transunet/skip1_128").state_dict().items()}


def test_what_is_saved_as_published_reads_back(load_case: LoadCase, tmp_path: Path) -> None:
    state = small_state(load_case)
    save_weights(load_published(state), tmp_path / "w.pth", published=True)
    saved = read_state_dict(tmp_path / "w.pth")
    assert {name for name in saved if not name.endswith("num_batches_tracked")} == set(state)
    assert all(torch.equal(saved[name], value) for name, value in state.items())


def test_another_image_size_resizes_the_positions(load_case: LoadCase) -> None:
    state = small_state(load_case)
    model = load_published(state, image_size=160)
    before = state["transformer.embeddings.position_embeddings"].reshape(8, 8, 32).numpy()
    after = model.state_dict()["transformer.embeddings.position_embeddings"].reshape(10, 10, 32).numpy()
    np.testing.assert_allclose(after, ndimage.zoom(before, (10 / 8, 10 / 8, 1), order=1), atol=1e-6)


def test_wrong_checkpoints_are_refused_by_name(load_case: LoadCase) -> None:
    state = small_state(load_case)
    lacking = {name: value for name, value in state.items() if name != "transformer.encoder.encoder_norm.bias"}
    with pytest.raises(InputError, match=r"1 missing: transformer\.encoder\.encoder_norm\.bias"):
        load_published(lacking)
    with pytest.raises(InputError, match=r"1 left over: decoder\.extra"):
        load_published(state | {"decoder.extra": torch.zeros(1)})
    lacking = {name: value for name, value in state.items() if ".encoder.layer." not in name}
    with pytest.raises(InputError, match=r"is no c.*transunet"):
        load_published(lacking)


def test_other_classes_are_told(load_case: LoadCase) -> None:
    """Weights for 3 classes into a model for 9, the commonest failure."""
    config = options(load_case("transunet/skip1_128").meta["config"]) | {"num_classes": 9}
    with pytest.raises(InputError, match="of another number of classes"):
        create_model("transunet_r50_vit_b16", weights=small_state(load_case), **{k: v for k, v in config.items() if k != "num_classes"})
    model = create_model("transunet_r50_vit_b16", **config)
    report = load_weights(model, small_state(load_case))
    assert report.fresh == ["segmentation_head.0.weight", "segmentation_head.0.bias"]


# The JAX weights


def jax_arrays(case: Any) -> dict[str, np.ndarray]:
    return {name: filled(name, tuple(shape)) for name, shape in case.meta["config"]["npz"].items()}


def test_npz_loading(load_case: LoadCase, tmp_path: Path) -> None:
    case = load_case("transunet/npz_loading")
    model = TransUNet(**options(case.meta["config"]))
    decoder = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("transformer.")}
    extra = {"head/kernel": np.zeros((16, 5), np.float32), "pre_logits/bias": np.zeros(16, np.float32), "cls": np.zeros((1, 1, 16))}
    np.savez(tmp_path / "R50+ViT-B_16.npz", **jax_arrays(case), **extra)
    report = load_jax_weights(model, tmp_path / "R50+ViT-B_16.npz")
    state = model.state_dict()
    case.check(state)
    assert report.problems() == ""
    assert set(report.loaded) == {name for name in state if name.startswith("transformer.")}
    assert set(report.fresh) == {name for name in decoder if not name.endswith("num_batches_tracked")}
    assert set(report.ignored) == set(extra)
    assert report.resized == {"transformer.embeddings.position_embeddings": ((1, 37, 16), (1, 81, 16))}
    assert all(torch.equal(state[name], value) for name, value in decoder.items())


def test_npz_of_the_same_grid_only_loses_the_class_token(load_case: LoadCase) -> None:
    case = load_case("transunet/npz_loading")
    arrays = {name: torch.from_numpy(value) for name, value in jax_arrays(case).items()}
    model = TransUNet(**options(case.meta["config"]) | {"image_size": 96})
    report = load_jax_weights(model, arrays)
    assert report.resized == {}
    table = arrays["Transformer/posembed_input/pos_embedding"]
    assert torch.equal(model.transformer.embeddings.position_embeddings, table[:, 1:])


def test_an_npz_of_another_vit_is_refused(load_case: LoadCase, tmp_path: Path) -> None:
    case = load_case("transunet/npz_loading")
    arrays, path = jax_arrays(case), tmp_path / "other.npz"
    model = TransUNet(**options(case.meta["config"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pure = {name: value for name, value in arrays.items() if not name.startswith(("block", "conv_root", "gn_root"))}
    deeper = arrays | {f"Transformer/encoderblock_2/{n}": np.zeros(16, np.float32) for n in ("LayerNorm_0/scale", "LayerNorm_0/bias")}
    wider = arrays | {"embedding/kernel": np.zeros((1, 1, 512, 24), np.float32)}
    for content, message in (
        (pure, r"other\.npz: is another Vision Transformer than this model's: \d+ missing: .*hybrid_model\.root\.conv\.weight"),
        (deeper, r"2 left over: Transformer/encoderblock_2/LayerNorm_0/scale"),
        (wider, r"1 of another shape: .*patch_embeddings\.weight \[24, 512, 1, 1\] instead of \[16, 512, 1, 1\]"),
        ({"conv1.weight": np.zeros(3)}, r"other\.npz: is no JAX Vision Transformer: it lacks Transformer/posembed_input"),
    ):
        np.savez(path, **content)
        with pytest.raises(InputError, match=message):
            load_jax_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
