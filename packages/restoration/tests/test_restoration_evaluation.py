from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vsuite.core import create_model, save_weights
from vsuite.core.errors import InputError
from vsuite.restoration.cli import app
from vsuite.restoration.data.pictures import list_pictures, read_rgb
from vsuite.restoration.evaluation import Conventions, evaluate_folder, evaluate_methods, model_method, resize_method, write_evaluation
from vsuite.restoration.metrics import psnr
from vsuite.restoration.resize import imresize

X2 = Conventions(2, 2)


def test_both_kinds_of_evaluation_call_pictures_the_same(tmp_path):
    for name in ("a.png", "inner/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.effect_noise((16, 16), 50).save(tmp_path / name)
    methods = evaluate_methods(tmp_path, {"bicubic": resize_method("bicubic", 2)}, X2).results["bicubic"]
    folder = evaluate_folder(tmp_path, tmp_path, X2).results["restored"]
    assert [row.name for row in folder.rows] == [row.name for row in methods.rows] == ["a", "inner/b"]


def test_equal_folders_are_perfect(pictures, tmp_path):
    found = evaluate_folder(pictures, pictures, X2)
    assert found.results["restored"].summary["psnr_y"] == math.inf
    write_evaluation(found, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["means"]["restored"]["psnr_rgb"] == "inf"


def test_suffixes_missing_ones_and_wrong_sizes(pictures, tmp_path):
    for number in range(5):
        shutil.copy(pictures / f"picture_{number}.png", tmp_path / f"picture_{number}_x2.png")
    Image.fromarray(np.zeros((7, 7, 3), np.uint8)).save(tmp_path / "picture_4_x2.png")
    (tmp_path / "picture_3_x2.png").write_bytes(b"nothing")
    found = evaluate_folder(tmp_path, pictures, X2)
    assert [row.name for row in found.results["restored"].rows] == ["picture_0", "picture_1", "picture_2"]
    problems = "\n".join(found.failed)
    assert "picture_3_x2.png: is no picture" in problems
    assert "picture_4_x2.png: sizes differ: 7 x 7 x 3 against 40 x 48 x 3" in problems
    assert "picture_5.png: no restored picture" in problems
    shutil.copy(pictures / "picture_0.png", tmp_path / "picture_0.png")
    with pytest.raises(InputError, match="both belong to"):
        evaluate_folder(tmp_path, pictures, X2)


def test_methods_are_measured_on_made_and_on_stored_low_resolution(pictures, tmp_path):
    path = list_pictures(pictures)[0]
    high = read_rgb(path)
    made = evaluate_methods(pictures, {"bicubic": resize_method("bicubic", 2)}, X2, resize="B")
    enlarged = imresize(imresize(high, 0.5, convention="B"), 2)
    row = made.results["bicubic"].rows[0]
    assert row.values["psnr_rgb"] == pytest.approx(psnr(enlarged[2:-2, 2:-2], high[2:-2, 2:-2]))
    for picture in list_pictures(pictures):
        Image.fromarray(imresize(read_rgb(picture), 0.5, convention="B")).save(tmp_path / picture.name)
    stored = evaluate_methods(pictures, {"bicubic": resize_method("bicubic", 2)}, X2, low=tmp_path)
    assert stored.results["bicubic"].summary == made.results["bicubic"].summary
    assert "convention B" in made.conventions.describe("psnr_y")
    assert str(tmp_path) in stored.conventions.describe("psnr_y")


def test_a_model_of_grey_is_measured_on_each_colour(pictures, tmp_path):
    sizes = {"embed_dim": 8, "growth": 4, "depths": (1,), "num_heads": 2, "window_size": 4, "upsample_dim": 8}
    save_weights(create_model("drct_lite_x2", in_channels=1, **sizes), tmp_path / "grey.safetensors")
    _, method, scale = model_method(str(tmp_path / "grey.safetensors"), None, "cpu")
    assert scale == 2
    assert method(np.zeros((5, 4, 3), np.uint8)).shape == (10, 8, 3)


def test_the_command_prints_conventions_and_writes_a_line_a_picture(pictures, tmp_path):
    save_weights(create_model("restoration_toy"), tmp_path / "toy.safetensors")
    arguments = ["evaluate", "--data", str(pictures), "--weights", str(tmp_path / "toy.safetensors"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--crop", "3", "--round-y", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("PSNR-Y"))
    assert "x2, crop 3, pictures rounded to 8 bits, Y of BT.601 studio range, rounded, low resolution: bicubic, convention A" in line
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    figures = ["psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"]
    baselines = [f"{method}_{figure}" for method in ("bicubic", "lanczos") for figure in figures]
    assert list(rows[0]) == ["image", "width", "height", *figures, *baselines, "convention"]
    assert [row["image"] for row in rows] == [f"picture_{number}" for number in range(6)]
    assert [(row["width"], row["height"]) for row in rows] == [("40", "48"), ("48", "40")] * 3
    assert all("crop 3" in row["convention"] for row in rows)
    means = json.loads((tmp_path / "out" / "metrics.json").read_text())["means"]
    for method, prefix in (("toy", ""), ("bicubic", "bicubic_")):
        column = [float(row[f"{prefix}psnr_y"]) for row in rows]
        assert np.mean(column) == pytest.approx(means[method]["psnr_y"], abs=1e-9)
    assert means["toy"]["psnr_y"] != means["bicubic"]["psnr_y"]


def test_pictures_of_subfolders_keep_their_names_and_sizes_apart(tmp_path):
    for name, size in (("a.png", (20, 14)), ("inner/a.png", (13, 12))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.effect_noise(size, 50).save(tmp_path / name)
    found = evaluate_methods(tmp_path, {"bicubic": resize_method("bicubic", 2)}, X2)
    write_evaluation(found, tmp_path / "out")
    rows = csv.DictReader((tmp_path / "out" / "metrics.csv").open())
    assert [(row["image"], row["width"], row["height"]) for row in rows] == [("a", "20", "14"), ("inner/a", "12", "12")]


def test_what_one_method_makes_of_a_wrong_size_is_in_no_mean(pictures):
    bicubic = resize_method("bicubic", 2)
    methods = {"bicubic": bicubic, "m": lambda low: bicubic(low)[: 44 if low.shape[0] == 24 else None]}
    found = evaluate_methods(pictures, methods, X2)
    assert {name: [row.index for row in result.rows] for name, result in found.results.items()} == {"bicubic": [1, 3, 5], "m": [1, 3, 5]}
    line = "m makes 40 x 44 x 3 of 20 x 24 x 3, not 40 x 48 x 3"
    assert found.failed == [f"{pictures / f'picture_{number}.png'}: {line}" for number in (0, 2, 4)]


def test_what_one_method_cannot_restore_is_in_no_mean(pictures):
    def broken(low):
        raise InputError("no")

    found = evaluate_methods(pictures, {"bicubic": resize_method("bicubic", 2), "broken": broken}, X2)
    assert [len(result.rows) for result in found.results.values()] == [0, 0]
    assert len(found.failed) == 6


def test_wrong_arguments_are_named(pictures, tmp_path):
    save_weights(create_model("restoration_toy"), tmp_path / "toy.safetensors")
    with pytest.raises(InputError, match="enlarges 2 times, not 4"):
        model_method(str(tmp_path / "toy.safetensors"), 4, "cpu")
    save_weights(create_model("resnet18"), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no model that restores"):
        model_method(str(tmp_path / "other.safetensors"), None, "cpu")
    result = CliRunner().invoke(app, ["evaluate", str(pictures), "--data", str(pictures)])
    assert isinstance(result.exception, InputError)
    assert "--scale" in str(result.exception)


def test_training_from_the_command_line(pictures, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "--data", str(pictures), "--model", "restoration_toy", "--out", str(run), "--device", "cpu", "--batch-size", "2"]
    changes = ["training.steps=2", "patch=8", "validation.held_out=1"]
    result = CliRunner().invoke(app, [*arguments, *(part for change in changes for part in ("--set", change))])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "psnr_y" in result.output
    assert CliRunner().invoke(app, ["train", "--out", str(run), "--resume", "--device", "cpu"]).exit_code == 0
