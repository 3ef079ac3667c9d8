from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from vsuite.core import create_model, load_weights, model_info, save_weights
from vsuite.core.errors import InputError
from vsuite.core.training import checkpoint
from vsuite.core.weights import read_metadata, read_state_dict
from vsuite.restoration.settings import LoopSettings, halved, list_recipes, load_recipe
from vsuite.restoration.training import resolve_settings, scale_of, split_pictures, start_from, train

QUICK = {
    "training.steps": 6,
    "training.batch_size": 2,
    "training.warmup_steps": 0,
    "training.learning_rate": 0.01,
    "training.validate_every": 3,
    "training.checkpoint_every": 3,
    "training.log_every": 1,
    "patch": 8,
    "validation.held_out": 2,
    "validation.pictures": 1,
}
REAL = {"degradation": "real_esrgan", "degradations.side": 32, "patch": 8}
GAN = REAL | {"loss.adversarial_weight": 0.1, "loss.discriminator_features": 8}


def settings_for(pictures, **changes):
    overrides = [f"{key}={'null' if value is None else value}" for key, value in (QUICK | changes).items()]
    return resolve_settings(data=pictures, model="restoration_toy", overrides=overrides)


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["terms"]) for record in records if "loss" in record]


def test_a_run_leaves_weights_figures_and_pictures(pictures, tmp_path):
    said = []
    result = train(settings_for(pictures), tmp_path / "run", device="cpu", say=said.append)
    assert said == ["4 pictures to train on, 2 to validate on; x2, bicubic"]
    assert set(result.best_metrics) == {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"}
    assert result.best_metrics["psnr_y"] > 20
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 1
    assert "bicubic, restored, original" in (tmp_path / "run" / "report.html").read_text()
    assert read_metadata(result.best_path)["model"] == "restoration_toy"
    load_weights(create_model("restoration_toy"), result.best_path)
    curve = losses(tmp_path / "run")
    assert sum(loss for _, loss, _ in curve[-2:]) < sum(loss for _, loss, _ in curve[:2])


@pytest.mark.parametrize("changes", [{}, GAN], ids=["bicubic", "gan"])
def test_a_resumed_run_is_bit_equal(pictures, tmp_path, changes, monkeypatch):
    whole = settings_for(pictures, **changes)
    train(whole, tmp_path / "whole", device="cpu", say=lambda _: None)

    class Killed(Exception):
        pass

    write = checkpoint.write_checkpoint

    def write_and_die(content, path):
        write(content, path)
        raise Killed

    monkeypatch.setattr(checkpoint, "write_checkpoint", write_and_die)
    with pytest.raises(Killed):
        train(whole, tmp_path / "parts", device="cpu", say=lambda _: None)
    monkeypatch.undo()
    torch.manual_seed(99)
    train(whole, tmp_path / "parts", device="cpu", resume=True, say=lambda _: None)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    a, b = (read_state_dict(tmp_path / name / "checkpoints" / "best.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_discriminator_learns_and_stays_out_of_the_weights(pictures, tmp_path):
    run = tmp_path / "run"
    train(settings_for(pictures, **GAN), run, device="cpu", say=lambda _: None)
    curve = losses(run)
    assert set(curve[0][2]) == {"pixel", "adversarial", "discriminator/real", "discriminator/restored"}
    assert curve[0][2] != curve[-1][2]
    assert set(read_state_dict(run / "checkpoints" / "best.safetensors")) == set(create_model("restoration_toy").state_dict())
    kept = torch.load(run / "checkpoints" / "last.pth", weights_only=True)
    assert set(kept["adversary"]) == {"network", "optimizer"}


def test_real_degradations_validate_on_the_same_pictures_each_time(pictures, tmp_path):
    runs = [train(settings_for(pictures, **REAL), tmp_path / name, device="cpu", say=lambda _: None) for name in "ab"]
    assert runs[0].best_metrics == runs[1].best_metrics
    assert not list((tmp_path / "a" / "prepared").glob("*-low.npy"))


def test_x4_starts_from_x2(tmp_path):
    source = create_model("drct_lite_x2")
    save_weights(source, tmp_path / "x2.safetensors")
    model, said = create_model("drct_lite_x4"), []
    start_from(model, tmp_path / "x2.safetensors", say=said.append)
    assert "upsample.2.weight" in said[0]
    assert torch.equal(model.conv_first.weight, source.conv_first.weight)
    assert torch.equal(model.upsample[0].weight, source.upsample[0].weight)
    with pytest.raises(InputError, match="does not fit"):
        start_from(create_model("restoration_toy"), tmp_path / "x2.safetensors")


def test_published_recipes():
    recipes = {name: load_recipe(name) for name in list_recipes()}
    published = {"drct_scratch", "drct_imagenet", "drct_finetune", "drct_x4_from_x2", "real_drct_mse", "real_drct_gan"}
    assert published | {"drct_lite"} <= set(recipes)
    for name, recipe in recipes.items():
        assert (recipe.name, recipe.training.weight_decay, recipe.training.ema_decay) == (name, 0, 0.999)
        assert model_info(recipe.model).system == "drct"
    scratch = recipes["drct_scratch"].training
    rates = [halved(step, scratch.steps, scratch) for step in (0, 249_999, 250_000, 400_000, 450_000, 475_000, 499_999)]
    assert rates == [2e-4, 2e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5, 1.25e-5]
    assert recipes["real_drct_gan"].loss.adversarial_weight == 0.1


@pytest.mark.parametrize("name", list_recipes())
def test_the_model_of_every_recipe_takes_its_patches(name):
    """Found out on the device "meta", where nothing may depend on values."""
    settings = resolve_settings(recipe=name, data=".")
    assert scale_of(settings) == create_model(settings.model, **settings.options).scale


def test_pictures_are_held_out_or_given(pictures):
    training, validation = split_pictures(settings_for(pictures))
    assert len(training) == 4
    assert not set(training) & set(validation)
    assert [len(part) for part in split_pictures(settings_for(pictures, **{"validation.held_out": 0}))] == [6, 0]
    given = settings_for(pictures).model_copy(update={"validation_data": str(pictures)})
    assert [len(part) for part in split_pictures(given)] == [6, 6]


@pytest.mark.parametrize(("count", "wanted", "held_out"), [(2, 5, 1), (4, 5, 1), (8, 5, 2), (9, 5, 3), (20, 5, 5), (40, 5, 5), (8, 1, 1)])
def test_at_most_a_quarter_is_held_out(tmp_path, count, wanted, held_out):
    for number in range(count):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    training, validation = split_pictures(settings_for(tmp_path, **{"validation.held_out": wanted}))
    assert (len(training), len(validation)) == (count - held_out, held_out)
    assert not set(training) & set(validation)


def test_fewer_held_out_than_wanted_are_mentioned(pictures, tmp_path):
    said = []
    train(settings_for(pictures, **{"validation.held_out": 5, "training.steps": 1}), tmp_path / "run", device="cpu", say=said.append)
    assert said == ["4 pictures to train on, 2 to validate on (a quarter, not 5); x2, bicubic"]


def test_one_picture_is_too_few_to_validate(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="one picture is too few to hold any out"):
        split_pictures(settings_for(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 32}, "too few for patches of 64"),
        ({"model": "resnet50"}, "does not restore pictures"),
        ({"loss.perceptual_weight": 1}, r"loss\.perceptual_weights"),
        (REAL | {"patch": 20}, "larger than the squares of 32"),
        (GAN | {"patch": 6}, "multiples of 8"),
        ({"data": "[/no/such/folder]"}, "no such folder"),
    ],
)
def test_wrong_settings_are_found_before_training(pictures, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(settings_for(pictures, **changes), tmp_path / "run", device="cpu", say=lambda _: None)
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_settings_that_contradict_each_other():
    with pytest.raises(InputError, match="accumulate 1"):
        resolve_settings(data=".", overrides=["loss.adversarial_weight=0.1", "training.accumulate=2"])
    with pytest.raises(InputError, match="did you mean"):
        resolve_settings(data=".", overrides=["loss.pixels=l1"])
    with pytest.raises(InputError, match="no pictures are named"):
        resolve_settings()
    with pytest.raises(InputError, match="recipe"):
        load_recipe("drct_light")
    assert LoopSettings(steps=1, schedule="halved").milestones == ()


def test_a_folder_with_a_run_is_not_trained_into(pictures, tmp_path):
    run = tmp_path / "run"
    train(settings_for(pictures, **{"training.steps": 1}), run, device="cpu", say=lambda _: None)
    with pytest.raises(InputError, match="holds a run already"):
        train(settings_for(pictures), run, device="cpu")
