"""Pre-training of masked autoencoders: recipes, data, a run that resumes, reconstruction pictures, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
import torch

from vsuite.core import create_model
from vsuite.core.cli.app import run
from vsuite.core.errors import InputError
from vsuite.core.weights import read_metadata, read_state_dict
from vsuite.medical.cli import app
from vsuite.medical.pretraining import list_recipes, load_recipe, resolve_settings, train
from vsuite.medical.pretraining.training import PretrainingTask, read_pictures

TINY = [
    "options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2, decoder_embed_dim: 16, decoder_depth: 1, decoder_num_heads: 2}",
    "training.epochs=null",
    "training.batch_size=4",
    "training.warmup_steps=0",
    "training.checkpoint_every=1",
    "validation.fraction=0.25",
    "image.size=[32, 32]",
]


def write_pictures(root: Path, number: int = 12) -> Path:
    (root / "sub").mkdir(parents=True)
    waves = np.add.outer(np.arange(40), np.arange(40))
    for index in range(number):
        picture = (30000 + 20000 * np.sin(waves / (4 + index))).astype(np.uint16)
        cv2.imwrite(str(root / ("sub" if index % 2 else ".") / f"hippocampus_{index:03d}_z001.png"), picture)
    return root


def settings(data: Path, *overrides: str, **given: Any) -> Any:
    return resolve_settings(data=data, recipe="mae_small", overrides=[*TINY, *overrides], **given)


def test_the_published_pre_training_is_kept() -> None:
    assert list_recipes() == ["chestxray14_mae_vit_b", "chestxray14_mae_vit_s", "mae_small"]
    for name in list_recipes()[:2]:
        recipe = load_recipe(name)
        training = recipe.training
        assert (training.betas, training.learning_rate, training.epochs, training.weight_decay) == ((0.9, 0.95), 1.2e-3, 800, 0.05)
        assert training.batch_size * training.accumulate == 2048
        assert recipe.augmentation.crop_scale == (0.5, 1.0)
        assert recipe.options == {"mask_ratio": 0.9, "norm_pix_loss": False}
        with torch.device("meta"):
            create_model(recipe.model, **recipe.options)


def test_a_run_learns_and_leaves_pictures(tmp_path: Path) -> None:
    chosen = settings(write_pictures(tmp_path / "d"), "training.steps=30", "training.learning_rate=0.01", "training.validate_every=15")
    result = train(chosen, tmp_path / "run", device="cpu", say=lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result.best_metrics["loss"] < 0.95 * losses[0]
    assert list((tmp_path / "run" / "pictures").rglob("reconstruction.png"))
    sheet = cv2.imread(str(next((tmp_path / "run" / "pictures").rglob("reconstruction.png"))))
    background = sheet[0, 0]
    assert (sheet[:, :2] == background).all(), "names do not run into the edges"
    assert (sheet[:, -2:] == background).all(), "the title fits"
    note = read_metadata(result.best_path)
    assert note["model"] == "mae_vit_small_patch16_dec128d2b"
    assert note["options"]["image_size"] == 32
    assert note["pretraining"]["image"]["size"] == [32, 32]


def test_validation_uses_the_same_masks_every_time(tmp_path: Path) -> None:
    chosen = settings(write_pictures(tmp_path / "d"), "training.steps=1")
    dataset = read_pictures(chosen.data)
    dataset.splits["val"] = dataset.splits["all"]
    task = PretrainingTask(chosen, dataset, print)
    torch.manual_seed(0)
    model = task.build_model().eval()
    with torch.no_grad():
        first, second = (task.validate(model, torch.device("cpu"), 0, 1)["loss"] for _ in range(2))
    assert first == second > 0


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "d")
    whole = train(settings(data, "training.steps=4", "training.schedule=constant"), tmp_path / "a", device="cpu", say=lambda line: None)
    part = settings(data, "training.steps=2", "training.schedule=constant")
    train(part, tmp_path / "b", device="cpu", say=lambda line: None)
    more = settings(data, "training.steps=4", "training.schedule=constant")
    resumed = train(more, tmp_path / "b", device="cpu", resume=True, say=lambda line: None)
    assert resumed.steps_done == whole.steps_done == 4
    wanted, got = read_state_dict(whole.best_path), read_state_dict(resumed.best_path)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0)


def test_volumes_are_cut_into_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name in "ab":
        array = np.random.default_rng(0).normal(size=(20, 24, 6)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "v" / f"{name}.nii.gz")
    lines: list[str] = []
    train(settings(tmp_path / "v", "training.steps=1", "validation.fraction=0.5"), tmp_path / "run", device="cpu", say=lines.append)
    assert len(list((tmp_path / "run" / "prepared").glob("*.png"))) == 12
    assert any("6 pictures to train on, 6 to validate on" in line for line in lines)  # whole volumes are held back


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["image.size=[32, 40]"], "square"),
        (["image.size=[30, 30]"], "multiple of the patch size 8; got 30"),
        (["model=vit_small_patch16", "options={}"], "vit_small_patch16 is a model for classification"),
        (["options={mask_ratio: 1.0}", "image.size=[32, 32]"], r"mask_ratio must lie in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "d", 4)
    with pytest.raises(InputError, match=message):
        train(settings(data, "training.steps=1", *overrides), tmp_path / "run", device="cpu", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_comes_next(tmp_path: Path, capsys) -> None:
    data = write_pictures(tmp_path / "d")
    sets = [part for override in [*TINY, "training.steps=1"] for part in ("--set", override)]
    command = [
        "train",
        "--task",
        "pretraining",
        "--recipe",
        "mae_small",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *sets,
    ]
    with pytest.raises(SystemExit) as left:
        run(app, [str(part) for part in command])
    assert left.value.code == 0
    assert "--task classification" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        run(app, ["predict", str(data), "--weights", str(tmp_path / "run"), "--out", str(tmp_path / "p")])
    assert left.value.code == 2
    assert "classifies nothing" in capsys.readouterr().err
