"""Recipes as data, and the published learning rate."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vsuite.core import create_model, save_weights
from vsuite.core.errors import InputError
from vsuite.core.training.optimiser import make_optimiser
from vsuite.core.training.schedules import get_schedule
from vsuite.core.training.settings import TrainingSettings, write_settings
from vsuite.medical.data.planning import save_plan
from vsuite.medical.inference import Predictor
from vsuite.medical.inference.predictor import load_model_and_plan
from vsuite.medical.recipes import RecipeSettings, brats_learning_rate, find_plan, list_recipes, load_recipe


def test_every_shipped_recipe_loads() -> None:
    assert list_recipes() == ["acdc", "brats2017", "demo", "generic", "generic_slices", "hippocampus", "hippocampus_slices", "synapse"]
    for name in list_recipes():
        assert load_recipe(name).name == name


def test_brats2017_is_the_published_one() -> None:
    recipe = load_recipe("brats2017")
    training, augmentation, plan = recipe.training, recipe.augmentation, recipe.plan
    assert (training.learning_rate, training.weight_decay, training.decay_norms_and_biases) == (1e-4, 0.01, True)
    assert (training.epochs, training.ema_decay, training.clip_gradients, training.precision) == (800, None, None, "fp32")
    assert (training.batch_size, augmentation.crops_per_case, recipe.loss) == (8, 4, "dice")
    assert plan.labels == {"background": 0, "tumour core": [2, 3], "whole tumour": [1, 2, 3], "enhancing tumour": [3]}
    assert (plan.axes, plan.patch_size, plan.mirror_axes) == ((2, 1, 0), (96, 96, 96), (1,))
    assert [stop - start for start, stop in plan.crop or ()] == [128, 128, 128]
    assert (recipe.validation.window, recipe.validation.blend) == ((128, 128, 128), "constant")
    assert (augmentation.gibbs, augmentation.gibbs_probability) == ((0.5, 0.5), 1.0)


def test_synapse_is_the_published_one() -> None:
    recipe = load_recipe("synapse")
    training, augmentation, plan = recipe.training, recipe.augmentation, find_plan("synapse")
    assert (training.optimiser, training.learning_rate, training.momentum, training.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (training.epochs, training.batch_size, training.seed, training.decay_norms_and_biases) == (150, 24, 1234, True)
    assert training.total_steps(2211) == 13819  # 150 epochs of 2211 slices; the authors' 93 a epoch count a part of a batch as one
    assert (training.best_metric, recipe.loss, recipe.validation.convention) == (None, "transunet_dice_ce", "paper:transunet")
    assert (augmentation.turn_probability, augmentation.rotation_probability) == (0.5, 0.5)
    assert (plan.is_2d, plan.zoom_slices, plan.patch_size, plan.num_outputs, plan.spacing) == (True, True, (1, 224, 224), 9, None)


def test_the_polynomial_decay_runs_a_step_behind() -> None:
    settings = TrainingSettings(steps=100, learning_rate=0.01, schedule="transunet_poly", optimiser="sgd")
    rates = [get_schedule("transunet_poly")(step, 100, settings) for step in range(100)]
    assert rates[0] == rates[1] == 0.01
    assert rates[51] == pytest.approx(0.01 * 0.5**0.9)
    assert all(before > after > 0 for before, after in itertools.pairwise(rates[1:]))


def test_gradient_descent_decays_every_weight_as_published() -> None:
    settings = load_recipe("synapse").training
    optimiser = make_optimiser(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)), settings)
    assert isinstance(optimiser, torch.optim.SGD)
    (group,) = [group for group in optimiser.param_groups if group["weight_decay"]]
    assert (len(group["params"]), group["lr"], group["momentum"], group["nesterov"]) == (4, 0.01, 0.9, False)


def test_unknown_names_and_misspelt_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'hippocampus'"):
        load_recipe("hipocampus")
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ntraining: {steps: 3}\naugmentation: {rotaton: [0, 0, 0]}\n")
    with pytest.raises(InputError, match=r"own\.yaml.*augmentation\.rotaton.*rotation"):
        load_recipe(path)
    path.write_text("name: own\ntraining: {steps: 3}\nloss: dise\n")
    with pytest.raises(InputError, match="unknown loss 'dise'; did you mean 'dice'"):
        load_recipe(path)
    path.write_text("name: own\ntraining: {steps: 3}\naugmentation: {scale: [1.2, 0.8]}\n")
    with pytest.raises(InputError, match="scale is a range from low to high"):
        load_recipe(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_a_recipe_survives_being_written(tmp_path: Path) -> None:
    recipe = load_recipe("generic")
    write_settings(recipe, tmp_path / "settings.yaml")
    assert load_recipe(tmp_path / "settings.yaml") == recipe
    assert RecipeSettings.model_validate(yaml.safe_load((tmp_path / "settings.yaml").read_text())) == recipe


def test_the_schedule_follows_the_epochs() -> None:
    schedule = get_schedule("segformer3d_brats")
    settings = TrainingSettings(epochs=800, learning_rate=1e-4, min_learning_rate=6e-6, schedule="segformer3d_brats")
    steps_an_epoch = 7
    for epoch in (0, 1, 19, 20, 21, 219, 419, 420, 799):
        for step in (epoch * steps_an_epoch, (epoch + 1) * steps_an_epoch - 1):
            assert schedule(step, 800 * steps_an_epoch, settings) == brats_learning_rate(epoch)
    with pytest.raises(InputError, match=r"set training\.epochs"):
        schedule(0, 10, TrainingSettings(steps=10))


def test_a_recipe_that_fixes_everything_is_a_plan() -> None:
    plan = find_plan("brats2017")
    assert plan.channels == ["FLAIR", "T1w", "t1gd", "T2w"]
    assert plan.axes == (2, 1, 0)
    assert plan.patch_size == (128, 128, 128)  # the window it validates with
    assert plan.spacing is None
    assert [rule.kind for rule in plan.normalisation] == ["slice_minmax"] * 4
    assert (plan.num_outputs, plan.options) == (3, {"attention_scale": "num_heads"})


def test_other_recipes_are_no_plans() -> None:
    with pytest.raises(InputError, match="'generic' leaves channels, labels, normalisation, patch_size, spacing to the data set"):
        find_plan("generic")
    with pytest.raises(InputError, match="did you mean 'brats2017'"):
        find_plan("brats2018")


def test_the_plan_of_a_run_is_read_back(tmp_path: Path) -> None:
    plan = find_plan("brats2017")
    save_plan(plan, tmp_path / "plan.yaml")
    assert find_plan(tmp_path / "plan.yaml") == plan


def test_published_weights_predict_with_the_plan_of_their_recipe(tmp_path: Path) -> None:
    """Weights without a plan, as the authors publish them: the recipe's plan stands in, and its options decide the attention scale."""
    torch.manual_seed(0)
    model = create_model("segformer3d", attention_scale="num_heads").eval()
    save_weights(model, tmp_path / "pytorch_model.bin", published=True)
    with pytest.raises(InputError, match="holds no plan"):
        load_model_and_plan(tmp_path / "pytorch_model.bin")
    plan = find_plan("brats2017").model_copy(update={"patch_size": (32, 32, 32)})
    predictor = Predictor(load_model_and_plan(tmp_path / "pytorch_model.bin", plan))
    image = np.random.default_rng(0).random((4, 32, 32, 32), dtype=np.float32)
    found = predictor.predict(image, np.eye(4)).label
    scaled = (image - image.min((1, 2), keepdims=True)) / (image.max((1, 2), keepdims=True) - image.min((1, 2), keepdims=True))
    with torch.inference_mode():
        regions = model(torch.from_numpy(scaled).permute(0, 3, 2, 1)[None])[0].permute(0, 3, 2, 1).numpy() > 0
    wanted = np.zeros((32, 32, 32), np.uint8)
    for region, written in ((1, 1), (0, 2), (2, 3)):  # whole tumour first, then the core and the enhancing part inside it
        wanted[regions[region]] = written
    assert (found == wanted).mean() > 0.999
