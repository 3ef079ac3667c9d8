"""SegFormer3D against what the official code computes, and its checkpoint as the authors and others store it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vsuite.core import InputError, create_model, load_published, load_weights, model_info, optimize_for_inference, save_weights
from vsuite.core.weights import read_state_dict
from vsuite.medical.bench.plain.segformer3d import build as build_plain
from vsuite.medical.models.segformer3d import Decoder, EfficientSelfAttention, MixFFN, SegFormer3D

LoadCase = Callable[[str], Any]
WHOLE = ["brats_96", "brats_64_head_dim", "noncubic_32x64x96", "odd_50"]


def inputs(case: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in case.inputs().items()}


def state_dict(case: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in case.state_dict().items()}


def filled(module: nn.Module, case: Any) -> nn.Module:
    assert sum(p.numel() for p in module.parameters()) == case.meta["num_params"]
    report = load_weights(module, case.state_dict())
    assert report.problems() == ""
    assert report.renamed == {}
    return module.eval()


@torch.inference_mode()
def maps_and_logits(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    maps = model.segformer_encoder(x)
    return {f"c{i}": map_ for i, map_ in enumerate(maps, 1)} | {"logits": model.segformer_decoder(*maps)}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_model(load_case: LoadCase, name: str) -> None:
    case = load_case(f"segformer3d/{name}")
    model = filled(SegFormer3D(**case.meta["config"]), case)
    x = inputs(case)["x"]
    case.check(maps_and_logits(model, x))
    if name in ("brats_64_head_dim", "odd_50"):  # the two smaller ones
        case.check(maps_and_logits(optimize_for_inference(model), x))


def test_plain_form(load_case: LoadCase) -> None:
    """The oracle of the other tests is held to the same figures."""
    case = load_case("segformer3d/odd_50")
    case.check(maps_and_logits(filled(build_plain(**case.meta["config"]), case), inputs(case)["x"]))


@torch.inference_mode()
def test_attention(load_case: LoadCase) -> None:
    case = load_case("segformer3d/attention_sr2")
    config = dict(case.meta["config"])
    grid = tuple(config.pop("grid"))
    x = inputs(case)["x"]
    case.check(
        {scale: filled(EfficientSelfAttention(**config, attention_scale=scale), case)(x, grid) for scale in ("num_heads", "head_dim")}
    )


@torch.inference_mode()
def test_mix_ffn(load_case: LoadCase) -> None:
    case = load_case("segformer3d/mix_ffn")
    config, x = case.meta["config"], inputs(case)["x"]
    module = filled(MixFFN(config["in_feature"], config["mlp_ratio"]), case)
    case.check({"out": module(x, tuple(config["grid"]))})
    case.check({"out": optimize_for_inference(module)(x, tuple(config["grid"]))})


@torch.inference_mode()
def test_decoder(load_case: LoadCase) -> None:
    case = load_case("segformer3d/decoder")
    module = filled(Decoder(**case.meta["config"]), case)
    maps = [inputs(case)[f"c{i}"] for i in (1, 2, 3, 4)]
    case.check({"logits": module(*maps)})
    case.check({"logits": optimize_for_inference(module)(*maps)})


def test_parameter_counts() -> None:
    model = create_model("segformer3d")
    parts = (model, model.segformer_encoder, model.segformer_decoder)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [4_525_251, 4_127_680, 397_571]
    assert {result.value for result in model_info("segformer3d").published} >= {82.1, 82.15, 90.96}


# The checkpoint


@pytest.fixture(scope="module")
def published(load_case: LoadCase) -> dict[str, Tensor]:
    """The released checkpoint by names and shapes, for another number of channels and classes."""
    state = state_dict(load_case("segformer3d/odd_50"))
    state["segformer_encoder.embed_1.patch_embeddings.weight"] = state["segformer_encoder.embed_1.patch_embeddings.weight"][:, :2].clone()
    state["segformer_decoder.linear_pred.weight"] = state["segformer_decoder.linear_pred.weight"].repeat(3, 1, 1, 1, 1)
    state["segformer_decoder.linear_pred.bias"] = state["segformer_decoder.linear_pred.bias"].repeat(3)
    return state


def wrapped(state: dict[str, Tensor], form: str) -> dict[str, Any]:
    tracked = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(5) for name in state if name.endswith("running_mean")}
    return {
        "flat": state,
        "module.": {f"module.{name}": value for name, value in state.items()},
        "state_dict": {"state_dict": state, "epoch": 799, "best": 0.82},
        "state_dict of module.": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "with counters": state | tracked,
    }[form]


@pytest.mark.parametrize("form", ["flat", "module.", "state_dict", "state_dict of module.", "with counters"])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".npz"])
def test_load_published(tmp_path: Path, published: dict[str, Tensor], suffix: str, form: str) -> None:
    path, content = tmp_path / f"pytorch_model{suffix}", wrapped(published, form)
    if suffix in (".safetensors", ".npz") and "state_dict" in content:
        pytest.skip("this format has no containers")
    if suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in content.items()})
    else:
        torch.save(content, path)
    model = load_published(path)
    assert isinstance(model, SegFormer3D)
    assert (model.in_channels, model.num_classes) == (2, 9)
    assert [len(getattr(model.segformer_encoder, f"tf_block{i}")) for i in (1, 2, 3, 4)] == [2, 2, 2, 2]
    assert [getattr(model.segformer_encoder, f"tf_block{i}")[0].attention.num_heads for i in (1, 2, 3, 4)] == [1, 2, 5, 8]
    assert [getattr(model.segformer_encoder, f"tf_block{i}")[0].attention.sr_ratio for i in (1, 2, 3, 4)] == [4, 2, 1, 1]
    ours = model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in published.items())
    assert set(ours) - set(published) == {name for name in ours if name.endswith("num_batches_tracked")}


def test_the_attention_scale_is_assumed_or_given(published: dict[str, Tensor]) -> None:
    assumed = load_published(published)
    assert assumed.built_from["assumed"]["attention_scale"] == "num_heads"
    given = load_published(published, attention_scale="head_dim")
    assert "attention_scale" not in given.built_from["assumed"]
    scales = [[getattr(m.segformer_encoder, f"tf_block{i}")[0].attention.scale for i in (1, 2, 3, 4)] for m in (assumed, given)]
    assert scales == [pytest.approx([1, 2**-0.5, 5**-0.5, 8**-0.5]), pytest.approx([32**-0.5] * 4)]


def test_what_is_saved_as_published_reads_back(tmp_path: Path, published: dict[str, Tensor]) -> None:
    model = load_published(published)
    for suffix in (".bin", ".safetensors"):
        path = tmp_path / f"saved{suffix}"
        save_weights(model, path, published=True)
        state = read_state_dict(path)
        assert {name for name in state if not name.endswith("num_batches_tracked")} == set(published)
        again = load_published(path).state_dict()
        assert all(torch.equal(again[name], value) for name, value in published.items())


def test_a_scale_that_was_given_survives_saving(tmp_path: Path, published: dict[str, Tensor]) -> None:
    save_weights(load_published(published, attention_scale="head_dim"), tmp_path / "w.safetensors")
    again = load_published(tmp_path / "w.safetensors")
    assert again.segformer_encoder.tf_block4[0].attention.scale == pytest.approx(32**-0.5)


def test_wrong_checkpoints_are_refused_by_name(published: dict[str, Tensor]) -> None:
    lacking = {name: value for name, value in published.items() if name != "segformer_encoder.norm3.weight"}
    with pytest.raises(InputError, match=r"1 missing: segformer_encoder\.norm3\.weight"):
        load_published(lacking)
    lacking = {name: value for name, value in published.items() if ".tf_block2." not in name}
    with pytest.raises(InputError, match=r"is no c.*segformer3d"):
        load_published(lacking)
    with pytest.raises(InputError, match=r"1 left over: segformer_encoder\.extra"):
        load_published(published | {"segformer_encoder.extra": torch.zeros(1)})
    with pytest.raises(InputError, match="is not a checkpoint of"):
        load_published({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(InputError, match=r"of another shape: .*embed_1.patch_embeddings.weight"):
        load_weights(create_model("segformer3d"), published)
