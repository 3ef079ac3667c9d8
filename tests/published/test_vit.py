"""ViT: published sizes, checkpoints under all their names, both ways to pool, and what it offers besides logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import create_model, load_published, load_weights, model_info, save_weights
from vsuite.core.bench.plain.vit import build as build_plain
from vsuite.core.errors import InputError
from vsuite.core.models.vit import TORCHVISION
from vsuite.core.training.optimiser import parameter_groups

PARAMETERS = {
    "vit_tiny_patch16": 5_717_416,
    "vit_small_patch16": 22_050_664,
    "vit_base_patch16": 86_567_656,
    "vit_large_patch16": 304_326_632,
    "vit_huge_patch14": 632_045_800,
}
FINE_TUNING = {"vit_small_patch16": 21_671_054, "vit_base_patch16": 85_809_422}
TINY: dict[str, Any] = {"image_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 1, "num_classes": 5}


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    model = create_model("vit_small_patch16", **{**TINY, **options}).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def image(height: int = 48, width: int = 48) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("pool", ["mean", "token"])
def test_published_sizes(name: str, pool: str) -> None:
    with torch.device("meta"):
        model = create_model(name, pool=pool)
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
        if name in FINE_TUNING:
            model.reset_head(14)
            assert sum(p.numel() for p in model.parameters()) == FINE_TUNING[name]
    assert model_info(name).published


def test_published_results_of_chest_x_rays() -> None:
    results = {name: {r.dataset.split(",")[0]: r.value for r in reversed(model_info(name).published)} for name in FINE_TUNING}
    assert (results["vit_small_patch16"]["ChestX-ray14"], results["vit_base_patch16"]["ChestX-ray14"]) == (82.3, 83.0)


@pytest.mark.parametrize("pool", ["mean", "token"])
@pytest.mark.parametrize("size", [(48, 48), (50, 72), (8, 8)])
def test_fast_and_plain_forms_are_equal(pool: str, size: tuple[int, int]) -> None:
    model = tiny(pool=pool)
    reference = build_plain(**TINY, pool=pool).eval()
    reference.load_state_dict(model.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(model(image(*size)), reference(image(*size)), rtol=1e-4, atol=1e-5)


def test_pooling() -> None:
    mean, token = tiny(), tiny(pool="token")
    with torch.inference_mode():
        tokens = mean.forward_tokens(image())
        assert tokens.shape == (2, 37, 64)
        torch.testing.assert_close(mean(image()), mean.head(mean.fc_norm(tokens[:, 1:].mean(1))), rtol=1e-4, atol=1e-5)
        wanted = token.head(token.norm(token.forward_tokens(image()))[:, 0])
        torch.testing.assert_close(token(image()), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean.features(image())[-1].flatten(2).transpose(1, 2), tokens[:, 1:])
        with pytest.raises(InputError, match="classifies its class token"):
            token.forward_head(token.forward_features(image()))
    assert not hasattr(mean, "norm")
    assert not hasattr(token, "fc_norm")


def test_the_class_token_trains_all_parameters_as_the_plain_form_does() -> None:
    model = tiny(pool="token").train()
    reference = build_plain(**TINY, pool="token").train()
    reference.load_state_dict(model.state_dict())
    for form in (model, reference):
        form(image()).square().sum().backward()
    for (name, ours), plain in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-3 * float(plain.grad.abs().max()), msg=name)


def test_features_at_four_depths() -> None:
    with torch.device("meta"):
        model = create_model("vit_base_patch16")
    assert [(info.name, info.channels, info.stride) for info in model.feature_info] == [(f"blocks.{i}", 768, 16) for i in (2, 5, 8, 11)]
    shallow = tiny(depth=2)
    assert [tuple(found.shape) for found in shallow.features(image(64, 40))] == [(2, 64, 8, 5)] * 2


def test_positions_of_the_own_size_are_not_resized() -> None:
    model = tiny()
    model.pos_embed.data.mul_(0)
    model.pos_embed.data[:, 0] = 5
    tokens, grid = model.embed(image(56, 24))
    feature = model.patch_embed(image(56, 24))
    assert grid == (7, 3)
    torch.testing.assert_close(tokens[:, 1:], feature.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens[:, 0], (model.cls_token + 5)[:, 0].expand(2, -1))


def test_attention_maps_are_those_of_the_forward_pass() -> None:
    model = tiny(num_heads=2)
    with torch.inference_mode():
        maps = list(model.attention_maps(image()))
        assert [tuple(found.shape) for found in maps] == [(2, 2, 37, 37)] * 3
        tokens, _ = model.embed(image())
        for block, weights in zip(model.blocks, maps, strict=True):
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 37))
            value = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)[2].unflatten(-1, (2, -1)).transpose(1, 2)
            attended = block.attn.proj((weights @ value).transpose(1, 2).flatten(2))
            torch.testing.assert_close(attended, block.attn(block.norm1(tokens)), rtol=1e-4, atol=1e-5)
            tokens = block(tokens)


def test_drop_path_rises_with_depth() -> None:
    model = tiny(drop_path_rate=0.2)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2])


def test_a_small_head_to_start_fine_tuning() -> None:
    torch.manual_seed(0)
    model: Any = create_model("vit_small_patch16", **{**TINY, "num_classes": 500}, head_init_scale=1e-3)
    assert float(model.head.weight.std()) == pytest.approx(2e-5, rel=0.05)


def test_layers_and_what_does_not_decay() -> None:
    model = tiny()
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    wanted = {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.bias": 0, "blocks.0.norm1.weight": 1, "blocks.2.mlp.fc2.bias": 3}
    assert ids | wanted | {"fc_norm.weight": 4, "head.weight": 4} == ids
    still = {p for group in parameter_groups(model, 0.05) if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (parameter in still) == (parameter.ndim == 1 or name in ("cls_token", "pos_embed"))


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of what the loader does, in torchvision's present names."""
    renames = [
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj.", "conv_proj."),
        ("blocks.", "encoder.layers.encoder_layer_"),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        (".attn.qkv.", ".self_attention.in_proj_"),
        (".attn.proj.", ".self_attention.out_proj."),
        (".mlp.fc1.", ".mlp.0."),
        (".mlp.fc2.", ".mlp.3."),
        ("head.", "heads.head."),
    ]
    found = {}
    for name, value in state.items():
        name = "encoder.ln." + name[5:] if name.startswith("norm.") else name
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        found[name] = value
    return found


def test_checkpoints_under_all_their_names(tmp_path: Path) -> None:
    assert len(TORCHVISION) == 11
    for pool in ("mean", "token"):
        source = tiny(pool=pool)
        state = source.state_dict()
        contents = [state, {"model": state}, {"state_dict": {f"module.{name}": value for name, value in state.items()}}]
        if pool == "token":
            contents.append(torchvision_names(state))
        for content in contents:
            torch.save(content, tmp_path / "vit.pth")
            found: Any = load_published(tmp_path / "vit.pth").eval()
            assert found.pool == pool
            with torch.inference_mode():
                assert torch.equal(found(image()), source(image()))
        save_weights(source, tmp_path / "vit.safetensors", published=True)
        assert set(load_published(tmp_path / "vit.safetensors").state_dict()) == set(state)


def test_heads_that_a_file_does_not_tell() -> None:
    for dim, heads in ((384, 6), (768, 12), (1024, 16), (1280, 16)):
        with torch.device("meta"):
            state = create_model("vit_small_patch16", embed_dim=dim, num_heads=heads, depth=1).state_dict()
        small = {name: torch.zeros(value.shape) for name, value in state.items()}
        found: Any = load_published(small)
        assert found.blocks[0].attn.num_heads == heads


def test_deit_weights_start_a_mean_pooled_classifier() -> None:
    """The class token's norm is left behind, the norm of the mean begins anew; a head of as many classes is taken along."""
    source = tiny(pool="token")
    report = load_weights(tiny(num_classes=3), source.state_dict())
    assert report.problems() == ""
    assert set(report.fresh) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert set(report.ignored) == {"norm.weight", "norm.bias"}


def test_wrong_files_and_options_are_refused() -> None:
    state = tiny().state_dict()
    with pytest.raises(InputError, match=r"1 missing: blocks.1.mlp.fc2.bias"):
        load_published({name: value for name, value in state.items() if name != "blocks.1.mlp.fc2.bias"})
    with pytest.raises(InputError, match=r"1 left over: dist_token"):  # a distilled DeiT classifies two tokens
        load_published(state | {"dist_token": torch.zeros(1, 1, 64)})
    with pytest.raises(InputError, match="pos_embed"):  # a table that is no square grid
        load_weights(tiny(), state | {"pos_embed": torch.zeros(1, 36, 64)})
    for options, message in (
        ({"pool": "max"}, "pool is 'mean' or 'token'"),
        ({"num_heads": 5}, "embed_dim must be divisible by num_heads"),
        ({"image_size": 50}, "image_size must be a positive multiple of the patch size 8"),
        ({"depth": 0}, "depth must be 1 or more"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ):
        with pytest.raises(InputError, match=message):
            tiny(**options)


def test_frozen_encoder_trains_only_norm_and_head() -> None:
    model = tiny()
    model.freeze(len(model.feature_info))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }
    before = nn.utils.parameters_to_vector(model.blocks.parameters())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()(image()).square().sum().backward()
    optimiser.step()
    assert torch.equal(nn.utils.parameters_to_vector(model.blocks.parameters()), before)
