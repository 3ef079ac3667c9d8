"""CvT against what the official code computes, its published sizes, and its checkpoints under all their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vsuite.core import InputError, create_model, load_published, model_info, optimize_for_inference
from vsuite.core.bench.plain.cvt import build as build_plain
from vsuite.core.models.cvt import Attention, Block, CvT, DepthwiseProjection

LoadCase = Callable[[str], Any]
PARAMETERS = {
    "cvt_13": 19_997_480,
    "cvt_13_384": 19_997_480,
    "cvt_21": 31_622_696,
    "cvt_21_384": 31_622_696,
    "cvt_w24": 277_196_392,
}
TINY: dict[str, Any] = {"depths": (1, 1, 2), "embed_dims": (8, 16, 32), "num_heads": (1, 2, 4)}


def tiny(**options: Any) -> CvT:
    """A small model whose norms and running statistics are not those of a new one."""
    torch.manual_seed(0)
    model: Any = create_model("cvt_13", **{**TINY, "num_classes": 7, **options})
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value.add_(0.2 * torch.rand_like(value) if name.endswith("running_var") else 0.2 * torch.randn_like(value))
    return model.eval()


@torch.inference_mode()
def outputs(model: Any, image: Tensor) -> dict[str, Tensor]:
    maps = {f"stage{i}": value for i, value in enumerate(model.features(image), 1)}
    logits = model(image)
    model.head, head = torch.nn.Identity(), model.head
    pooled = model(image)
    model.head = head
    return {**maps, "pooled": pooled, "logits": logits}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cvt13_224", {}),
        ("cvt13_190x155", {}),
        ("cvt13_nocls_avg_96x128", {"depths": (1, 1, 2), "projections": ("dw_bn", "dw_bn", "avg"), "class_token": False}),
    ],
)
def test_models_return_what_the_official_code_returns(load_case: LoadCase, name: str, options: dict[str, Any]) -> None:
    case = load_case(f"cvt/{name}")
    model = case.fill(create_model("cvt_13", num_classes=case.meta["config"]["num_classes"], **options))
    case.check(outputs(model, case.tensors()["image"]))
    case.check(outputs(optimize_for_inference(model), case.tensors()["image"]))


def test_attention_returns_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("cvt/attention_cls")
    attention = case.fill(Attention(32, 4, "dw_bn", class_token=True))
    for module in (attention, optimize_for_inference(attention)):
        with torch.inference_mode():
            case.check({"out": module(case.tensors()["x"], (9, 7))})


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).published


def test_variants_for_384_pixels_say_so() -> None:
    assert [model_info(name).input_size[1] for name in PARAMETERS] == [224, 384, 224, 384, 384]


def test_folding_leaves_no_batch_norm_and_no_third_pass_of_quick_gelu() -> None:
    fast = optimize_for_inference(tiny())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert all(block.mlp.activation is torch.nn.functional.silu for block in fast.modules() if isinstance(block, Block))
    again = optimize_for_inference(fast)
    x = torch.randn(2, 3, 41, 50)
    torch.testing.assert_close(fast(x), tiny()(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(again(x), fast(x))


@pytest.mark.parametrize("options", [{}, {"class_token": False, "projections": ("dw_bn", "avg", "dw_bn")}])
def test_plain_form_is_equal(options: dict[str, Any]) -> None:
    model = tiny(**options)
    plain = build_plain(**{**TINY, "num_classes": 7, **options}).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 70, 51)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)
    for found, wanted in zip(plain.features(x), model.features(x), strict=True):  # type: ignore[operator]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_official_file_is_recognised(load_case: LoadCase, tmp_path: Path) -> None:
    case = load_case("cvt/cvt13_nocls_avg_96x128")
    state = {name: torch.from_numpy(value) for name, value in case.state_dict().items()}
    counter = {"stage0.blocks.0.attn.conv_proj_q.bn.num_batches_tracked": torch.tensor(3)}
    torch.save(state | counter, tmp_path / "CvT-13-224x224-IN-1k.pth")
    model = load_published(tmp_path / "CvT-13-224x224-IN-1k.pth")
    assert model.built_from["options"]["num_heads"] == [1, 3, 6]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    training = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "optimizer": {}, "epoch": 3}
    torch.save(training, tmp_path / "checkpoint.pth")
    assert type(load_published(tmp_path / "checkpoint.pth")) is CvT


def test_a_22k_head_is_found_and_left_out_for_other_classes() -> None:
    source = tiny(num_classes=43)
    assert load_published(source.state_dict()).num_classes == 43
    model: Any = create_model("cvt_13", weights=source.state_dict(), **{**TINY, "num_classes": 5})
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(model.eval().forward_features(x), source.forward_features(x))


def transformers_name(name: str) -> str:
    """Written from the side of transformers: how its CvT names the same tensor."""
    head, *rest = name.split(".")
    if head in ("norm", "head"):
        return ".".join([{"norm": "layernorm", "head": "classifier"}[head], *rest])
    start = ["cvt", "encoder", "stages", head[-1]]
    if rest[0] == "cls_token":
        return ".".join([*start, "cls_token"])
    if rest[0] == "patch_embed":
        return ".".join([*start, "embedding.convolution_embeddings", {"proj": "projection", "norm": "normalization"}[rest[1]], rest[2]])
    start += ["layers", rest[1]]
    part, leaf = ".".join(rest[2:-1]), rest[-1]
    letters = {"q": "query", "k": "key", "v": "value"}
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "attn.proj": "attention.output.dense",
        **{f"attn.proj_{short}": f"attention.attention.projection_{long}" for short, long in letters.items()},
    }
    if part in parts:
        return ".".join([*start, parts[part], leaf])
    found = re.fullmatch(r"attn\.conv_proj_(.)\.(conv|bn)", part)
    assert found
    middle = f"attention.attention.convolution_projection_{letters[found[1]]}.convolution_projection"
    return ".".join([*start, middle, {"conv": "convolution", "bn": "normalization"}[found[2]], leaf])


def test_file_of_transformers_gives_the_same_model(tmp_path: Path) -> None:
    source = create_model("cvt_13", depths=(1, 1, 2), embed_dims=(64, 128, 64), num_heads=(1, 2, 1), num_classes=5)
    torch.save({transformers_name(name): value for name, value in source.state_dict().items()}, tmp_path / "pytorch_model.bin")
    found = load_published(tmp_path / "pytorch_model.bin")
    x = torch.randn(2, 3, 40, 33)
    assert torch.equal(found.eval()(x), source.eval()(x))


def test_a_batch_gives_what_its_images_give_one_by_one() -> None:
    model, x = tiny(), torch.randn(3, 3, 37, 58)
    alone = torch.cat([model(image[None]) for image in x])
    assert alone.shape == (3, 7)
    torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 3), (3, 11), (7, 4), (64, 33)])
def test_any_size_from_three_pixels_up_runs(size: tuple[int, int]) -> None:
    model = tiny()
    grids = [tuple(side // 4 + (side % 4 == 3) for side in size)]
    for _ in range(2):
        grids.append(tuple(-(-side // 2) for side in grids[-1]))
    assert [tuple(x.shape[2:]) for x in model.features(torch.randn(1, 3, *size))] == grids
    assert model(torch.randn(1, 3, *size)).shape == (1, 7)


def test_class_token_is_what_is_classified() -> None:
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    with pytest.raises(InputError, match="class token"):
        model.forward_head(model.forward_features(x))
    before = model(x)
    model.stage2.cls_token.data.add_(torch.randn(32))  # type: ignore[union-attr, operator]
    assert not torch.allclose(model(x), before, atol=1e-3)
    mean = tiny(class_token=False)
    assert torch.equal(mean.forward_head(mean.forward_features(x)), mean(x))


def test_layers_rise_block_by_block() -> None:
    model = tiny()
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["stage0.patch_embed.proj.weight"] == 0
    assert [ids[f"stage{i}.blocks.0.norm1.weight"] for i in range(3)] == [1, 2, 3]
    assert ids["stage2.cls_token"] == ids["stage2.patch_embed.proj.weight"] == 3
    assert ids["stage2.blocks.1.norm1.weight"] == 4
    assert ids["norm.weight"] == ids["head.weight"] == 5


def test_drop_path_rises_over_the_last_stage_alone() -> None:
    model: Any = create_model("cvt_13", **{**TINY, "depths": (1, 2, 3)}, drop_path_rate=0.2)
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in model.stages()]
    assert rates == [[0], [0, 0], [0, pytest.approx(0.1), pytest.approx(0.2)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, "CvT has 3 stages; got depths"),
        ({"num_heads": (1, 2, 5)}, "32 is not by 5"),
        ({"projections": ("dw_bn", "dw_bn", "linear")}, "projections are 'dw_bn' or 'avg'; got 'linear'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("cvt_13", **{**TINY, **options})


def test_folded_projection_equals_convolution_and_norm() -> None:
    projection = DepthwiseProjection(8, 2).eval()
    for value in projection.bn.state_dict().values():
        if value.ndim:
            value.copy_(0.5 + torch.rand_like(value))
    x = torch.randn(2, 8, 9, 6)
    torch.testing.assert_close(optimize_for_inference(projection)(x), projection(x), rtol=1e-5, atol=1e-5)
