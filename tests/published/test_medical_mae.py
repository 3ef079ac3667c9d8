"""Masked autoencoder for chest X-rays: the published cases, sizes and checkpoints, and what fine-tuning takes from it."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import create_model, list_models, load_published, load_weights, model_info, save_weights
from vsuite.core.errors import InputError
from vsuite.core.images.metrics import classification_metrics, roc_auc
from vsuite.core.nn import resize_position_grid, sincos_position_grid
from vsuite.core.training.optimiser import parameter_groups
from vsuite.core.training.schedules import get_schedule
from vsuite.core.training.settings import TrainingSettings
from vsuite.medical.bench.plain.mae import build as build_plain
from vsuite.medical.models.mae import MaskedAutoencoder, patchify, unpatchify

PARAMETERS = {  # all, and those that are trained
    "mae_vit_small_patch16_dec512d2b": (28_663_936, 28_487_424),
    "mae_vit_small_patch16_dec128d2b": (22_236_160, 22_135_296),
    "mae_vit_small_patch16_dec512d8b": (47_578_240, 47_401_728),
    "mae_vit_base_patch16_dec512d2b": (92_993_536, 92_741_376),
    "mae_vit_base_patch16_dec512d8b": (111_907_840, 111_655_680),
    "mae_vit_large_patch16_dec512d8b": (329_541_888, 329_239_296),
    "mae_vit_huge_patch14_dec512d8b": (657_074_508, 656_613_964),
}
SMALL = "mae_vit_small_patch16_dec512d2b"
TINY: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_num_heads": 4,
    "mask_ratio": 0.75,
}


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(SMALL, **{**TINY, **options})


def images(batch: int = 2, side: int = 48) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def noise(batch: int = 2, number: int = 36) -> Tensor:
    return torch.rand(batch, number, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["mae_small_dec512d2b", "mae_small_dec128_96"])
def test_golden_pre_training(name: str, load_case: Callable[[str], Any]) -> None:
    case = load_case(f"medical_mae/{name}")
    config = dict(case.meta["config"])
    options = {"image_size": config.pop("img_size", 224), **config}
    model = case.fill(create_model(SMALL, **options))
    x = case.tensors()
    found = model.reconstruct(x["imgs"], x["noise"])
    with torch.inference_mode():
        losses = []
        for model.norm_pix_loss in (False, True):
            losses.append(float(model(x["imgs"], x["noise"])))
            assert float(model.reconstruct(x["imgs"], x["noise"]).loss) == pytest.approx(losses[-1], rel=1e-5)
    case.check({**found._asdict(), "losses": np.array(losses)})


def test_golden_fine_tuning(load_case: Callable[[str], Any]) -> None:
    case = load_case("medical_mae/vit_small_nih14")
    model = case.fill(create_model("vit_small_patch16", num_classes=14))
    x = case.tensors()["x"]
    with torch.inference_mode():
        case.check({"tokens": model.forward_tokens(x), "logits": model(x)})


def test_golden_small_parts(load_case: Callable[[str], Any]) -> None:
    case = load_case("medical_mae/patchify")
    imgs = case.tensors()["imgs"]
    patches = patchify(imgs, case.meta["config"]["patch_size"])
    case.check({"patches": patches})
    assert torch.equal(unpatchify(patches, 16), imgs)

    case = load_case("medical_mae/sincos")
    case.check({"d384_g14_cls1": sincos_position_grid(384, 14, num_extra=1), "d16_g3_cls0": sincos_position_grid(16, 3)})

    case = load_case("medical_mae/pos_embed_resize")
    before, after = case.meta["config"]["from"], case.meta["config"]["to"]
    table = case.tensors()["pos_embed"]
    resized = resize_position_grid(table, (before, before), (after, after), num_extra=1)
    case.check({"pos_embed": resized})
    assert torch.equal(resized[:, 0], table[:, 0])


def test_golden_layer_wise_rates(load_case: Callable[[str], Any]) -> None:
    case = load_case("medical_mae/llrd_vit_small")
    config = case.meta["config"]
    with torch.device("meta"):
        model = create_model("vit_small_patch16", num_classes=14)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert sorted(names.values()) == sorted(config["names"])
    groups = parameter_groups(model, config["weight_decay"], layer_decay=config["layer_decay"])
    assert len(groups) == config["num_groups"]
    found = {names[p]: (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    scales, decays = zip(*(found[name] for name in config["names"]), strict=True)
    case.check({"lr_scale": np.array(scales), "weight_decay": np.array(decays)})


def test_golden_learning_rate(load_case: Callable[[str], Any]) -> None:
    case = load_case("medical_mae/lr_schedule")
    config = case.meta["config"]
    per_epoch = 1000
    recipe = TrainingSettings(
        epochs=config["epochs"],
        learning_rate=config["lr"],
        min_learning_rate=config["min_lr"],
        warmup_steps=config["warmup_epochs"] * per_epoch,
        schedule="cosine_from_zero",
    )
    schedule = get_schedule(recipe.schedule)
    rates = [schedule(round(epoch * per_epoch), config["epochs"] * per_epoch, recipe) for epoch in case.inputs()["epoch"]]
    scales = [scale or 1.0 for scale in config["lr_scales"]]
    case.check({"lr": np.outer(rates, scales)})


def test_golden_auc(load_case: Callable[[str], Any]) -> None:
    case = load_case("medical_mae/auc")
    inputs = case.inputs()
    target = inputs["target"].copy()
    target[:, 2] = 0
    scores = np.round(inputs["noise"] + 0.8 * target, 1)
    by_class = [roc_auc(scores[:, k], target[:, k] > 0) for k in range(5)]
    assert math.isnan(by_class[2])
    overall = classification_metrics(scores, target > 0, list("abcde"), multi_label=True)["auc"]
    case.check({"auc": np.array([*np.nan_to_num(by_class), overall])})


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (sum(p.numel() for p in model.parameters()), trained) == PARAMETERS[name]
    assert model_info(name).task == "pretraining"
    assert model.num_kept == (25 if "patch14" in name else 19)  # truncated: 25.6 of 256, 19.6 of 196


def test_all_variants_are_listed() -> None:
    assert set(list_models(system="medical_mae")) == set(PARAMETERS)
    values = {r.dataset.split(" ")[0]: r.value for r in model_info(SMALL).published}
    assert values == {"ChestX-ray14": 82.3, "CheXpert": 89.2, "COVIDx": 95.2}


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 5), patch=st.integers(1, 5), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_patches_make_the_image_again(side: int, patch: int, channels: int, seed: int) -> None:
    image = torch.randn(2, channels, side * patch, side * patch, generator=torch.Generator().manual_seed(seed))
    patches = patchify(image, patch)
    assert patches.shape == (2, side * side, patch * patch * channels)
    assert torch.equal(unpatchify(patches, patch), image)
    assert torch.equal(patches[0, -1].unflatten(0, (patch, patch, channels)).permute(2, 0, 1), image[0, :, -patch:, -patch:])


def test_masks_follow_the_noise() -> None:
    model = tiny().eval()
    found = model.reconstruct(images(), noise())
    assert found.mask.sum(1).tolist() == [27, 27]
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.reconstruct(images(), noise()[:, order]).mask, found.mask[:, order])
    assert torch.equal(found.mask.bool(), noise() > noise().sort(1).values[:, 8:9])
    assert torch.equal(found.ids_restore, noise().argsort(1).argsort(1))
    assert not torch.equal(model.reconstruct(images()).mask, model.reconstruct(images()).mask)


def test_hidden_patches_never_reach_the_encoder() -> None:
    model = tiny().eval()
    lengths: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    first = model.reconstruct(images(), noise())
    assert lengths == [10, 10]
    changed = unpatchify(patchify(images(), 8) + 5 * first.mask[..., None], 8)
    second = model.reconstruct(changed, noise())
    assert torch.equal(first.latent, second.latent)
    assert torch.equal(first.pred, second.pred)
    assert float(second.loss) > float(first.loss)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_fast_and_plain_forms_are_equal(norm_pix_loss: bool) -> None:
    model = tiny(norm_pix_loss=norm_pix_loss)
    reference = build_plain(**TINY, norm_pix_loss=norm_pix_loss)
    reference.load_state_dict(model.state_dict())
    losses = []
    for form in (model, reference):
        loss = form(images(), noise())
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for (name, ours), plain in zip(model.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_loss_is_that_of_the_predicted_pictures() -> None:
    model = tiny(norm_pix_loss=True).eval()
    found = model.reconstruct(images(), noise())
    target = patchify(images(), 8)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    each = (found.pred - target).square().mean(-1)
    assert float((each * found.mask).sum() / found.mask.sum()) == pytest.approx(float(found.loss), rel=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_pictures_keep_what_was_seen(norm_pix_loss: bool) -> None:
    model = tiny(norm_pix_loss=norm_pix_loss).eval()
    found = model.reconstruct(images(), noise())
    hidden = unpatchify(found.mask[..., None].expand_as(found.pred).contiguous(), 8) > 0
    painted = model.paint(images(), found)
    assert torch.equal(painted[~hidden], images()[~hidden])
    target = patchify(images(), 8)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    perfect = model.paint(images(), found._replace(pred=target))
    torch.testing.assert_close(perfect, images(), rtol=1e-4, atol=1e-5)


def test_it_trains_and_its_positions_stay() -> None:
    model = tiny(mask_ratio=0.5).train()
    tables = model.pos_embed.clone(), model.decoder_pos_embed.clone()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(40):
        loss = model(images(), noise())
        optimiser.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert float(parameter.grad.abs().max()) > 0, name
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(model.pos_embed, tables[0])
    assert torch.equal(model.decoder_pos_embed, tables[1])


def test_starting_tables_and_weights() -> None:
    model = tiny()
    assert torch.equal(model.pos_embed[0], sincos_position_grid(16, 6, num_extra=1))
    assert not model.pos_embed[0, 0].any()
    bound = math.sqrt(6 / (16 + 3 * 64))  # Xavier, on the view that a linear layer would have
    assert 0.9 * bound < float(model.patch_embed.proj.weight.detach().abs().max()) <= bound
    assert not model.patch_embed.proj.bias.any()


def test_what_cannot_be_masked_is_refused() -> None:
    for ratio in (-0.1, 1.0, 0.99):  # of 36 patches 0.99 would leave none
        with pytest.raises(InputError, match=r"mask_ratio must lie in \[0, 1\)"):
            tiny(mask_ratio=ratio)
    whole = tiny(mask_ratio=0.0).eval()
    assert math.isnan(float(whole.reconstruct(images()).loss))  # as the official code
    with pytest.raises(InputError, match="leaves all of them visible"):
        whole(images())
    model = tiny()
    for shape in [(1, 3, 48, 64), (1, 3, 64, 64), (1, 1, 48, 48), (3, 48, 48)]:
        with pytest.raises(InputError, match="takes B, 3, 48, 48; got"):
            model(torch.zeros(shape))
    with pytest.raises(InputError, match="floating-point"):
        model(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
    with pytest.raises(InputError, match="noise must be of shape 2, 36; got 2, 35"):
        model(images(), noise(2, 35))
    with pytest.raises(InputError, match="square images whose side is a multiple"):
        patchify(torch.zeros(1, 3, 40, 48), 8)
    with pytest.raises(InputError, match="square images whose side is a multiple"):
        patchify(torch.zeros(1, 3, 44, 44), 8)
    with pytest.raises(InputError, match="make no square image"):
        unpatchify(torch.zeros(1, 35, 192), 8)
    with pytest.raises(InputError, match="image_size must be a positive multiple"):
        tiny(image_size=50)
    with pytest.raises(InputError, match="decoder_embed_dim must be divisible by decoder_num_heads"):
        tiny(decoder_num_heads=3)
    with pytest.raises(InputError, match="multiple of 4"):
        tiny(embed_dim=6, num_heads=2)


# --- checkpoints ---


def checkpoint(model: nn.Module, path: Path) -> Path:
    """As the authors' script saves it."""
    args = argparse.Namespace(model="mae_vit_small_patch16", mask_ratio=0.9)
    torch.save({"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": 799, "scaler": {"scale": 1.0}, "args": args}, path)
    return path


def pre_trained(path: Path) -> tuple[Any, Path]:
    """Heads 64 wide and 16 in the decoder, which a file does not tell."""
    model = tiny(embed_dim=128, num_heads=2, decoder_embed_dim=32, decoder_num_heads=16)
    nn.init.normal_(model.pos_embed, std=0.2)  # a table of its own, which must not be made anew
    return model, checkpoint(model, path / "checkpoint-799.pth")


def test_the_authors_file_gives_the_autoencoder(tmp_path: Path) -> None:
    model, path = pre_trained(tmp_path)
    found: Any = load_published(path, mask_ratio=0.75)
    assert isinstance(found, MaskedAutoencoder)
    assert torch.equal(found(images(), noise()), model(images(), noise()))
    assert found.built_from["assumed"] == {"decoder_num_heads": 16, "norm_pix_loss": False}
    assert not found.pos_embed.requires_grad
    save_weights(found, tmp_path / "w.safetensors")
    assert torch.equal(load_published(tmp_path / "w.safetensors")(images(), noise()), model(images(), noise()))


def test_the_encoder_goes_into_a_classifier(tmp_path: Path) -> None:
    model, path = pre_trained(tmp_path)
    options = {"image_size": 48, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    for classifier in (
        create_model("vit_small_patch16", weights=path, num_classes=14, **options),
        load_published(path, system="vit", num_classes=14),
    ):
        state, source = classifier.state_dict(), model.state_dict()
        for name, value in state.items():
            if not name.startswith(("fc_norm.", "head.")):
                assert torch.equal(value, source[name]), name
        assert torch.equal(state["fc_norm.weight"], torch.ones(128))
        assert classifier(images()).shape == (2, 14)
        assert classifier.pos_embed.requires_grad
    report = load_weights(create_model("vit_small_patch16", num_classes=14, **options), path)
    assert report.problems() == ""
    assert report.fresh == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert all(name.startswith(("decoder_", "mask_token", "norm.")) for name in report.ignored)


def test_the_encoder_sees_what_the_classifier_sees(tmp_path: Path) -> None:
    _, path = pre_trained(tmp_path)
    whole: Any = load_published(path, mask_ratio=0.0).eval()
    order = torch.arange(36.0).expand(2, -1)
    latent = whole.reconstruct(images(), order).latent
    classifier: Any = load_published(path, system="vit", pool="token").eval()
    with torch.inference_mode():
        torch.testing.assert_close(classifier.norm(classifier.forward_tokens(images())), latent, rtol=1e-4, atol=1e-5)


def test_a_larger_classifier_resizes_the_positions(tmp_path: Path) -> None:
    model, path = pre_trained(tmp_path)
    larger: Any = load_published(path, system="vit", image_size=72)
    wanted = resize_position_grid(model.pos_embed, (6, 6), (9, 9), num_extra=1)
    assert torch.equal(larger.pos_embed, wanted)
    with pytest.raises(InputError, match="pos_embed"):
        load_weights(larger, {**model.state_dict(), "pos_embed": torch.zeros(1, 36, 128)})


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    model, _ = pre_trained(tmp_path)
    state = model.state_dict()
    del state["decoder_blocks.1.norm1.bias"]
    with pytest.raises(InputError, match=r"1 missing: decoder_blocks.1.norm1.bias"):
        load_published(state)
    state = model.state_dict() | {"blocks.0.attn.extra": torch.zeros(1)}
    with pytest.raises(InputError, match=r"1 left over: blocks.0.attn.extra"):
        load_published(state)
    with pytest.raises(InputError, match="is not a checkpoint of medical_mae"):
        load_published({"conv1.weight": torch.zeros(1)}, system="medical_mae")


# --- precisions, graphs ---


def test_half_precision_is_close() -> None:
    model = tiny().eval()
    with torch.inference_mode():
        wanted = float(model(images(), noise()))
        with torch.autocast("cpu", torch.bfloat16):
            assert float(model(images(), noise())) == pytest.approx(wanted, rel=0.05)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        assert float(half(images().bfloat16(), noise())) == pytest.approx(wanted, rel=0.05)
    loss = half.train()(images().bfloat16(), noise())
    loss.backward()
    assert all(p.grad is not None for p in half.parameters() if p.requires_grad)


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    model = tiny()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    found = compiled(images(), noise())
    torch.testing.assert_close(found, model(images(), noise()), rtol=1e-4, atol=1e-5)
    found.backward()


@pytest.mark.slow
def test_onnxruntime_agrees(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny().eval()
    torch.onnx.export(model, (images(), noise()), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    names = [node.name for node in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (images().numpy(), noise().numpy()), strict=True)))
    with torch.inference_mode():
        assert float(found) == pytest.approx(float(model(images(), noise())), rel=1e-4)
