"""The classification task from data to figures: training, resuming, starting from other weights, prediction, evaluation, commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsuite.core import create_model, register_model, save_weights
from vsuite.core.cli.app import run
from vsuite.core.cli.commands import app
from vsuite.core.errors import InputError
from vsuite.core.images import Predictor, evaluate, evaluate_file, predict_files, resolve_settings, train
from vsuite.core.images.predictor import find_images
from vsuite.core.images.training import cross_entropy
from vsuite.core.training import TrainingResult, TrainingSettings
from vsuite.core.training.optimiser import make_optimiser, parameter_groups
from vsuite.core.weights import load_weights, read_metadata, read_state_dict

cv2 = pytest.importorskip("cv2")


class Toy(nn.Module):
    """Two convolutions and a linear layer; numbers its layers as the backbones do."""

    no_decay = frozenset({"scale"})

    def __init__(self, in_channels: int, num_classes: int, width: int, drop_path_rate: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, 2, 1)
        self.norm = nn.GroupNorm(1, width)
        self.block = nn.Conv2d(width, width, 3, 2, 1)
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.drop = nn.Dropout(drop_path_rate)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.block(x)) * self.scale
        return self.head(self.drop(x.mean((2, 3))))

    def layer_id(self, name: str) -> int:
        return {"stem": 0, "norm": 0, "block": 1, "scale": 1, "head": 2}[name.split(".")[0]]


@register_model(system="toy_images", task="classification", paper="none", licence="none", input_size=(3, 16, 16))
def toy_images(*, in_channels: int = 3, num_classes: int = 10, width: int = 16, drop_path_rate: float = 0.0) -> nn.Module:
    """For the tests."""
    return Toy(in_channels, num_classes, width, drop_path_rate)


@register_model(system="toy_segmenter", task="segmentation", paper="none", licence="none")
def toy_segmenter(*, num_classes: int = 2) -> nn.Module:
    """For the tests."""
    return nn.Conv2d(3, num_classes, 1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


COLOURS = {"blue": (255, 30, 30), "green": (30, 255, 30), "red": (30, 30, 255)}  # as opencv orders them


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, eight noisy images each, told apart by colour."""
    root, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(8):
            image = np.clip(np.array(colour) + rng.normal(0, 25, (12, 14, 3)), 0, 255).astype(np.uint8)
            assert cv2.imwrite(str(root / name / f"{index}.png"), image)
    return root


QUICK = [
    "training.steps=40",
    "training.epochs=null",
    "training.learning_rate=0.02",
    "training.warmup_steps=0",
    "training.log_every=1",
    "training.ema_decay=null",
    "training.batch_size=8",
    "training.checkpoint_every=10",
    "validation.every_epochs=null",
    "training.validate_every=20",
    "validation.fraction=0.25",
    "image.size=16",
]


def trained(data: Path, out: Path, *overrides: str, resume: bool = False, **given: Any) -> TrainingResult:
    said: list[str] = []
    settings = resolve_settings(data=data, overrides=[*QUICK, *overrides], **({"model": "toy_images"} | given))
    return train(settings, out, device="cpu", resume=resume, say=said.append)


@pytest.fixture(scope="module")
def photo_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "photos"
    trained(photos, out)
    return out


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


# --- training ---


def test_training_learns_and_leaves_all_that_prediction_needs(photo_run: Path, photos: Path) -> None:
    note = read_metadata(photo_run / "checkpoints/best.safetensors")
    assert note["model"] == "toy_images"
    assert note["classifier"]["classes"] == ["blue", "green", "red"]
    assert note["classifier"]["image"]["size"] == [16, 16]
    assert note["classifier"]["multi_label"] is False
    lines = [json.loads(line) for line in (photo_run / "metrics.jsonl").read_text().splitlines()]
    last = [line["validation"] for line in lines if "validation" in line][-1]
    assert last["top1"] == 1.0
    assert last["auc"] == 1.0
    assert {"mean_class_accuracy", "loss", "accuracy/red", "auc/red"} <= last.keys()
    assert {path.name for path in (photo_run / "pictures").iterdir()} == {"validation.png", "confusion.png"}
    with (photo_run / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["split"] for row in rows) == ["train"] * 18 + ["val"] * 6
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)


def test_the_same_seed_gives_the_same_losses_also_after_a_resumption(photos: Path, tmp_path: Path) -> None:
    mixing = ("augmentation.mixup=0.8", "augmentation.cutmix=1.0", "drop_path=0.3", "training.steps=16", "training.checkpoint_every=8")
    trained(photos, tmp_path / "a", *mixing)
    whole = losses(tmp_path / "a")
    assert len(whole) == 16

    class Killed(Exception):
        pass

    settings = resolve_settings(data=photos, model="toy_images", overrides=[*QUICK, *mixing])
    import vsuite.core.images.training as module

    mix, calls = module.mix, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 11:
            raise Killed
        return mix(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "mix", dying)
        with pytest.raises(Killed):
            train(settings, tmp_path / "b", device="cpu", say=lambda _: None)
    train(settings, tmp_path / "b", device="cpu", resume=True, say=lambda _: None)
    assert losses(tmp_path / "b") == whole
    first, second = (read_state_dict(tmp_path / name / "checkpoints/best.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    trained(photos, tmp_path / "c", *mixing, "training.seed=1")
    assert losses(tmp_path / "c") != whole


def test_the_size_follows_the_images(photos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = resolve_settings(data=photos, model="toy_images", overrides=[*QUICK, "image.size=null", "training.steps=1"])
    train(settings, tmp_path / "run", device="cpu", say=said.append)
    assert "images are brought to 32 x 32 pixels" in said[1]
    assert read_metadata(tmp_path / "run/checkpoints/best.safetensors")["classifier"]["image"]["size"] == [32, 32]


def test_without_validation_images_the_last_weights_are_kept(photos: Path, tmp_path: Path) -> None:
    result = trained(photos, tmp_path / "run", "validation.fraction=0", "training.steps=2")
    assert result.best_metrics == {}
    assert result.best_path.is_file()


def test_targets_of_the_loss() -> None:
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    smooth = targets * 0.8 + 0.1
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, targets, 0.2, multi_label=False), expected)
    chances = logits.sigmoid()
    expected = -(smooth * chances.log() + (1 - smooth) * (1 - chances).log()).mean()
    torch.testing.assert_close(cross_entropy(logits, targets, 0.2, multi_label=True), expected)


def test_multi_label_from_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (32, 3))
    images = (rng.normal(40, 10, (32, 12, 12, 3)) + 180 * labels[:, None, None]).clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, class_names=["r", "g", "b"])
    result = trained(tmp_path / "a.npz", tmp_path / "run", "training.steps=60")
    assert result.best_metrics["mean_average_precision"] == 1.0
    predictor = Predictor(result.best_path)
    assert predictor.multi_label
    found = predictor.predict(images[3])
    assert found.label == ";".join(name for name, marked in zip(("r", "g", "b"), labels[3], strict=True) if marked)
    evaluation = evaluate(predictor, tmp_path / "a.npz", out=tmp_path / "evaluation")
    assert evaluation.summary["mean_average_precision"] > 0.99
    assert not (tmp_path / "evaluation/confusion.png").exists()
    predict_files(predictor, [tmp_path / "a.npz"], tmp_path / "predictions")
    again = evaluate_file(tmp_path / "predictions/predictions.csv", tmp_path / "a.npz")
    assert again.summary == pytest.approx(evaluation.summary, nan_ok=True)


# --- starting from other weights ---


def test_a_new_head_on_other_weights(photos: Path, photo_run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "a.csv").write_text(
        f"path,label\n{photos}/red/0.png,x\n{photos}/red/1.png,x\n{photos}/blue/0.png,y\n{photos}/blue/1.png,y\n"
    )
    settings = resolve_settings(
        data=tmp_path / "a.csv",
        model="toy_images",
        weights=str(photo_run),
        overrides=[*QUICK, "training.steps=1", "training.learning_rate=1e-9"],
    )
    assert settings.name == "transfer"
    result = train(settings, tmp_path / "run", device="cpu", say=said.append)
    assert any("7 tensors loaded; new, as the classes differ: head.bias, head.weight" in line for line in said)
    before, after = read_state_dict(photo_run / "checkpoints/best.safetensors"), read_state_dict(result.best_path)
    assert after["head.weight"].shape[0] == 2
    torch.testing.assert_close(after["block.weight"], before["block.weight"])
    settings = settings.model_copy(update={"data": str(photos), "weights": str(result.best_path)})
    train(settings, tmp_path / "back", device="cpu", say=said.append)
    (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text().replace(",x", ",z"))
    train(settings.model_copy(update={"data": str(tmp_path / "b.csv")}), tmp_path / "other", device="cpu", say=said.append)
    assert any("9 tensors loaded; the head included, which was trained on x, y" in line for line in said)


def test_weights_of_another_model_are_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    save_weights(create_model("toy_images", width=8), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: does not fit Toy: 9 of another shape: .*block\.weight"):
        trained(photos, tmp_path / "run", "options.width=4", weights=str(tmp_path / "other.safetensors"))
    assert not (tmp_path / "run").exists()


def test_our_own_weights_bring_the_options_of_their_model(photos: Path, tmp_path: Path) -> None:
    save_weights(create_model("toy_images", width=8, num_classes=7), tmp_path / "wide.safetensors")
    given = {"data": photos, "weights": str(tmp_path / "wide.safetensors")}
    for settings in (resolve_settings(**given), resolve_settings(**given, model="toy_images")):
        assert (settings.model, settings.options) == ("toy_images", {"width": 8})
    assert resolve_settings(**given, overrides=["model=resnet18"]).options == {}
    assert resolve_settings(**given, overrides=["options.width=6"]).options == {"width": 6}


def test_layer_wise_rates() -> None:
    model = create_model("toy_images")
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    assert [(group["scale"], group["weight_decay"]) for group in groups] == [(1, 0.1), (1, 0), (0.5, 0.1), (0.5, 0), (0.25, 0.1), (0.25, 0)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))  # type: ignore[arg-type]
    assert any(parameter is model.scale for parameter in groups[3]["params"])  # type: ignore[attr-defined]
    plain = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in plain] == [0.1, 0.0]
    assert all("scale" not in group for group in plain)
    settings = TrainingSettings(steps=1, layer_decay=0.5)
    with pytest.raises(InputError, match="Linear does not number its layers"):
        make_optimiser(nn.Linear(2, 2), settings)


def test_the_rates_of_layers_are_used(photos: Path, tmp_path: Path) -> None:
    """With a factor near nothing, one step of AdamW moves the head by the rate and the stem not at all."""
    save_weights(create_model("toy_images", num_classes=3), tmp_path / "start.safetensors")
    moved = ("training.steps=1", "training.layer_decay=1e-5", "training.learning_rate=0.01", "training.weight_decay=0")
    result = trained(photos, tmp_path / "run", *moved, weights=str(tmp_path / "start.safetensors"))
    before, after = read_state_dict(tmp_path / "start.safetensors"), read_state_dict(result.best_path)
    change = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert change["head.weight"] == pytest.approx(0.01, rel=0.01)
    assert change["block.weight"] < 2e-7
    assert change["stem.weight"] < 2e-7


# --- prediction ---


def test_prediction_of_files_folders_patterns_and_arrays(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(photo_run)
    assert predictor.predict(photos / "red/0.png").label == "red"
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[..., 2] = 255
    assert predictor.predict(rgb).label == "blue"
    np.savez(tmp_path / "a.npz", images=np.stack([rgb, rgb]))
    inputs = [photos / "red", str(photos / "green/[0-2].png"), tmp_path / "a.npz"]
    found, failed = predict_files(predictor, inputs, tmp_path / "out", as_json=True)
    assert not failed
    assert [one.label for one in found] == ["red"] * 8 + ["green"] * 3 + ["blue"] * 2
    with (tmp_path / "out/predictions.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header == ["path", "label", "probability", "blue", "green", "red"]
    assert rows[0][:2] == [str(photos / "red/0.png"), "red"]
    assert float(rows[0][2]) == float(rows[0][5])
    assert sum(map(float, rows[0][3:])) == pytest.approx(1, abs=1e-4)
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert content["images"][-1]["path"] == "images[1]"
    assert (tmp_path / "out/contact_sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_predictions_do_not_depend_on_the_batch(photo_run: Path, photos: Path) -> None:
    samples, _ = find_images([photos])
    one, many = (Predictor(photo_run, batch_size=size).predict_samples(samples) for size in (1, 7))
    for (i, first), (j, second) in zip(one, many, strict=True):
        assert i == j
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)  # type: ignore[union-attr]


def test_a_bad_file_does_not_stop_the_others(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        (tmp_path / f"in/{index}.png").write_bytes((photos / f"red/{index}.png").read_bytes())
    (tmp_path / "in/1.png").write_bytes(b"")
    found, failed = predict_files(Predictor(photo_run, batch_size=2), [tmp_path / "in"], tmp_path / "out")
    assert [Path(one.name).name for one in found] == ["0.png", "2.png"]
    assert str(failed[str(tmp_path / "in/1.png")]).endswith("1.png: is empty")


def test_weights_without_a_note_have_numbers_for_classes(tmp_path: Path, photos: Path) -> None:
    model = create_model("toy_images", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: is not a checkpoint of any"):
        Predictor(tmp_path / "a.pth")
    save_weights(model, tmp_path / "b.safetensors")
    predictor = Predictor(tmp_path / "b.safetensors")
    assert (predictor.classes, predictor.note.named, predictor.note.image.size) == (["0", "1", "2"], False, (16, 16))
    assert evaluate(predictor, photos).classes == ["blue", "green", "red"]


def test_a_published_checkpoint_predicts_and_is_started_from(tmp_path: Path, photos: Path) -> None:
    small = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]}
    model = create_model("convnext_tiny", num_classes=12, **small)
    torch.save({"model": model.state_dict()}, tmp_path / "official.pth")
    predictor = Predictor(tmp_path / "official.pth")
    assert (len(predictor.classes), predictor.note.image.size, predictor.note.image.crop) == (12, (224, 224), 0.875)
    assert Predictor(tmp_path / "official.pth", image_size=64).note.image.size == (64, 64)
    image = predictor.predict(photos / "red/0.png")
    assert image.label in predictor.classes
    said: list[str] = []
    settings = resolve_settings(
        data=photos,
        model="convnext_tiny",
        weights=str(tmp_path / "official.pth"),
        overrides=[*QUICK, f"options={json.dumps(small)}", "image.size=32", "training.steps=1"],
    )
    result = train(settings, tmp_path / "run", device="cpu", say=said.append)
    assert any("new, as the classes differ: head.bias, head.weight" in line for line in said)
    assert Predictor(result.best_path).classes == ["blue", "green", "red"]


# --- evaluation ---


def test_evaluation_of_a_run_on_what_was_held_back(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(photo_run)
    held = evaluate(predictor, photo_run / "split.csv", out=tmp_path / "out")
    assert len(held.samples) == 6
    assert held.summary["top1"] == 1.0
    assert held.confusion is not None
    assert held.confusion.tolist() == (2 * np.eye(3, dtype=int)).tolist()
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"metrics.json", "metrics.csv", "predictions.csv", "confusion.csv", "confusion.png", "contact_sheet.png"}
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert content["summary"]["top1"] == 1.0
    assert (content["split"], content["num_samples"], content["auc_undefined"]) == ("val", 6, [])
    with (tmp_path / "out/metrics.csv").open() as file:
        table = {(row["metric"], row["class"]): (row["value"], row["images"]) for row in csv.DictReader(file)}
    assert table["top1", ""] == ("1.0", "6")
    assert table["accuracy", "red"] == ("1.0", "2")
    assert len(evaluate(predictor, photo_run / "split.csv", split="train").samples) == 18
    with pytest.raises(InputError, match=r"unknown split of .*'test'"):
        evaluate(predictor, photo_run / "split.csv", split="test")


def test_predictions_evaluate_to_the_same_figures(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(photo_run)
    predict_files(predictor, [photos], tmp_path)
    direct, again = evaluate(predictor, photos), evaluate_file(tmp_path / "predictions.csv", photos)
    assert again.summary == pytest.approx(direct.summary)
    lines = (tmp_path / "predictions.csv").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.csv").write_text("".join(lines[:-1]))
    fewer = evaluate_file(tmp_path / "fewer.csv", photos)
    assert list(fewer.failed) == [str(photos / "red/7.png")]
    (tmp_path / "broken.csv").write_text("".join(lines[:3]) + "x,red\n")
    with pytest.raises(InputError, match=r"broken\.csv: is no predictions\.csv"):
        evaluate_file(tmp_path / "broken.csv", photos)


def test_an_undefined_auc_is_said_and_counted_out(
    photo_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(f"path,label\n{photos}/red/0.png,red\n{photos}/blue/0.png,blue\n{photos}/none.png,red\n")
    with pytest.raises(SystemExit) as left:
        run(app, ["evaluate", "--weights", str(photo_run), "--data", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert "AUC not defined, and left out of the mean, for classes of no or of every image: green" in said.out
    assert "1 of 3 images could not be compared" in said.err
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert content["auc_undefined"] == ["green"]
    assert (content["summary"]["auc/green"], content["summary"]["auc"]) == (None, 1.0)


# --- the command line ---


def vsuite(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as left:
        run(app, [str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_three_commands(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [part for setting in QUICK[:-1] for part in ("--set", setting)]
    where = ("--out", tmp_path / "run")
    assert vsuite("train", "--data", photos, "--model", "toy_images", "--image-size", 16, "--device", "cpu", *quick, *where) == 0
    assert "top1 1.0000" in capsys.readouterr().out
    assert vsuite("train", "--data", photos, "--model", "toy_images", "--image-size", 16, *quick, *where) == 2
    assert "holds a run already; resume it" in capsys.readouterr().err
    assert vsuite("train", "--resume", *where) == 0
    assert vsuite("predict", photos / "red", "--weights", tmp_path / "run", "--out", tmp_path / "found", "--no-pictures") == 0
    assert "8 images in" in capsys.readouterr().out
    assert not (tmp_path / "found/contact_sheet.png").exists()
    assert vsuite("evaluate", "--weights", tmp_path / "run", "--data", tmp_path / "run/split.csv", "--out", tmp_path / "figures") == 0
    said = capsys.readouterr().out
    assert "mean class accuracy  1.0000" in said
    assert "6 images (val)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "no data set is named"),
        (["train", "--data", "none"], "none: no such file or folder"),
        (["train", "--data", "PHOTOS", "--model", "toy_imges"], "did you mean 'toy_images'"),
        (["train", "--data", "PHOTOS", "--model", "toy_segmenter"], "toy_segmenter is a model for segmentation"),
        (["train", "--data", "PHOTOS", "--recipe", "genric"], "did you mean 'generic'"),
        (["train", "--data", "PHOTOS", "--set", "augmentation.flp=1"], "did you mean 'augmentation.flip'"),
        (["train", "--data", "PHOTOS", "--model", "toy_images", "--set", "options.widht=3"], "did you mean 'width'"),
        (["train", "--data", "PHOTOS", "--model", "toy_images", "--weights", "none.pth"], "none.pth: no such file"),
        (["predict", "none.png", "--weights", "WEIGHTS"], "none.png: no such file"),
        (["predict", "PHOTOS/red/0.png", "--weights", "none"], "none"),
        (["evaluate", "--data", "PHOTOS"], "give either --weights or a predictions.csv"),
    ],
)
def test_what_the_user_gave_wrongly_is_one_line(
    arguments: list[str], message: str, photos: Path, photo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("PHOTOS", str(photos)).replace("WEIGHTS", str(photo_run)) for argument in arguments]
    assert vsuite(*given, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said


def test_a_bad_training_image_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data/x").mkdir(parents=True)
    (tmp_path / "data/y").mkdir()
    for index in range(3):
        for name, source in (("x", "red"), ("y", "blue")):
            (tmp_path / f"data/{name}/{index}.png").write_bytes((photos / f"{source}/{index}.png").read_bytes())
    (tmp_path / "data/y/1.png").write_bytes((photos / "red/1.png").read_bytes()[:100])
    assert vsuite("train", "--data", tmp_path / "data", "--model", "toy_images", "--out", tmp_path / "run") == 2
    assert f"error: {tmp_path}/data/y/1.png: is truncated" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_weights_load_into_a_plain_model(photo_run: Path) -> None:
    report = load_weights(create_model("toy_images", num_classes=3), photo_run / "checkpoints/best.safetensors")
    assert not report.problems()


# --- what once went wrong ---


def test_mended_a_run_resumes_with_its_own_data_only(photos: Path, tmp_path: Path) -> None:
    rows = [f"{photos}/{name}/{index}.png,{name}" for name in ("red", "green") for index in range(4)]
    data = tmp_path / "a.csv"
    data.write_text("\n".join(["path,label", *rows]))
    trained(data, tmp_path / "run", "training.steps=2")
    split = (tmp_path / "run/split.csv").read_text()
    for changed in (rows[:-1], [row.replace(",green", ",lime") for row in rows]):
        data.write_text("\n".join(["path,label", *changed]))
        with pytest.raises(InputError, match="the run began with other images, labels, classes or splits"):
            trained(data, tmp_path / "run", "training.steps=3", resume=True)
        assert (tmp_path / "run/split.csv").read_text() == split
    data.write_text("\n".join(["path,label", *rows]))
    trained(data, tmp_path / "run", "training.steps=3", resume=True)
    assert (tmp_path / "run/split.csv").read_text() == split


def test_mended_a_run_on_arrays_resumes_with_its_own_data_only(tmp_path: Path) -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8), np.arange(12) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    trained(tmp_path / "a.npz", tmp_path / "run", "training.steps=2")
    assert not (tmp_path / "run/split.csv").exists()
    trained(tmp_path / "a.npz", tmp_path / "run", "training.steps=3", resume=True)
    np.savez(tmp_path / "a.npz", images=images[::-1], labels=labels)
    with pytest.raises(InputError, match=r"data\.json: the run began with other images"):
        trained(tmp_path / "a.npz", tmp_path / "run", "training.steps=4", resume=True)


def test_mended_the_number_of_classes_is_the_files(tmp_path: Path) -> None:
    model = create_model("resnet18", num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    predictor = Predictor(tmp_path / "a.pth", model="resnet18", image_size=32)
    assert predictor.classes == list("01234")
    image = np.zeros((32, 32, 3), np.uint8)
    assert set(predictor.predict(image).label) <= set("01234")
    torch.save({name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}, tmp_path / "b.pth")
    with pytest.raises(InputError):
        Predictor(tmp_path / "b.pth", model="resnet18")
    model.built_from = {"model": "resnet18", "options": {"num_classes": 7}}  # type: ignore[assignment]
    save_weights(model, tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="its last layer does not fit"):
        Predictor(tmp_path / "c.safetensors")


@pytest.mark.parametrize("metric", ["top5", "f1", "nothing"])
def test_mended_the_best_metric_is_checked_before_anything_is_written(photos: Path, tmp_path: Path, metric: str) -> None:
    with pytest.raises(InputError, match=rf"unknown validation metric \(training.best_metric\) '{metric}'"):
        trained(photos, tmp_path / "run", f"training.best_metric={metric}")
    assert not (tmp_path / "run").exists()


def test_mended_the_best_metric_of_several_labels_is_checked(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((8, 16, 16, 3), np.uint8), labels=np.ones((8, 2), np.uint8))
    with pytest.raises(InputError, match="unknown validation metric"):
        trained(tmp_path / "a.npz", tmp_path / "run", "training.best_metric=mean_class_accuracy")
    assert not (tmp_path / "run").exists()


def test_mended_steps_between_validations_win_over_epochs(photos: Path, tmp_path: Path) -> None:
    def chosen(*overrides: str, **given: Any) -> tuple[int, float | None]:
        settings = resolve_settings(data=photos, overrides=overrides, **given)
        (tmp_path / "settings.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
        kept = resolve_settings(config=tmp_path / "settings.yaml")
        assert kept == settings
        return kept.training.validate_every, kept.validation.every_epochs

    assert chosen() == (500, 1.0)
    assert chosen("validation.every_epochs=2") == (500, 2.0)
    assert chosen("training.validate_every=50") == (50, None)
    assert chosen("training.validate_every=500") == (500, None)
    (tmp_path / "mine.yaml").write_text("name: mine\ntraining: {steps: 5, validate_every: 500}\n")
    assert chosen(recipe=tmp_path / "mine.yaml") == (500, None)
