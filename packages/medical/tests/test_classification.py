"""Classification of medical pictures: ChestX-ray14, starting from an autoencoder, intervals, bad input, exports, the commands."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from vsuite.core import create_model, save_weights
from vsuite.core.cli.app import run
from vsuite.core.errors import InputError
from vsuite.core.images.classifier import ClassifierNote, load_classifier
from vsuite.core.images.datasets import divide
from vsuite.core.images.preprocessing import PreprocessingSettings
from vsuite.core.weights import read_metadata, read_state_dict
from vsuite.medical import classification
from vsuite.medical.classification import FINDINGS, Predictor, evaluate, load_recipe, read_dataset, resolve_settings, train
from vsuite.medical.classification.export import export_bundle, export_onnx
from vsuite.medical.cli import app
from vsuite.medical.export import BundleFacts
from vsuite.medical.pretraining.training import read_pictures

VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
MAE: dict[str, Any] = VIT | {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "mask_ratio": 0.5}
TINY = [
    "model=vit_small_patch16",
    f"options={json.dumps(VIT)}",
    "drop_path=0.0",
    "training.epochs=null",
    "training.steps=2",
    "training.batch_size=4",
    "training.accumulate=1",
    "training.precision=fp32",
    "training.workers=0",
    "training.warmup_steps=0",
    "image.size=[32, 32]",
]


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        run(app, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def write_chest(root: Path, labels: dict[str, str] | None = None, missing: str = "") -> Path:
    """Eight patients of two pictures each; half of them for training."""
    labels = labels or {
        f"{patient:08d}_{view:03d}.png": ["No Finding", "Mass|Nodule", "Mass", "Hernia"][patient % 4]
        for patient in range(8)
        for view in (0, 1)
    }
    rng = np.random.default_rng(0)
    for index, name in enumerate(labels):
        folder = root / f"images_{1 + index % 2:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        if name != missing:
            cv2.imwrite(str(folder / name), rng.integers(0, 256, (40, 36), np.uint8))
    lines = ["Image Index,Finding Labels,Patient ID", *(f"{name},{found},{int(name[:8])}" for name, found in labels.items())]
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    names = list(labels)
    (root / "train_val_list.txt").write_text("\n".join(names[: len(names) // 2 + 4]))
    (root / "test_list.txt").write_text("\n".join(names[len(names) // 2 + 4 :]))
    return root


def write_table(root: Path, classes: tuple[str, ...] = ("mass", "fluid"), number: int = 12) -> Path:
    """A CSV of single-channel pictures; the first class is bright."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    lines = [",".join(["path", "split", "group", *classes])]
    for index in range(number):
        flags = [int(rng.random() < 0.5) if k else index % 2 for k in range(len(classes))]
        flags = [0, 1] if index == 0 else flags
        picture = rng.integers(0, 20000, (32, 32)) + 40000 * flags[0]
        cv2.imwrite(str(root / f"{index}.png"), picture.astype(np.uint16))
        lines.append(",".join([f"{index}.png", "val" if index % 3 == 0 else "train", f"p{index // 2}", *map(str, flags)]))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained multi-label classifier."""
    torch.manual_seed(0)
    model = create_model("vit_small_patch16", num_classes=2, in_channels=1, **VIT)
    image = PreprocessingSettings(size=(32, 32), channels=1, mean=(0.5,), std=(0.25,))
    note = ClassifierNote(classes=["mass", "fluid"], multi_label=True, image=image)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_weights(model, path, metadata={"classifier": note.model_dump(mode="json")})
    return path


def test_every_recipe_builds_its_model() -> None:
    assert {"chestxray14_vit_s", "chestxray14_vit_b", "chestxray14_densenet121", "duoformer", "vit_small_scratch", "transfer"} <= set(
        classification.list_recipes()
    )
    for name in classification.list_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        with torch.device("meta"):
            create_model(recipe.model, num_classes=14, **recipe.options)


def test_the_published_fine_tuning_is_kept() -> None:
    recipe = load_recipe("chestxray14_vit_s")
    training = recipe.training
    assert (training.layer_decay, training.learning_rate, training.epochs, training.min_learning_rate) == (0.55, 1e-3, 75, 1e-5)
    assert training.batch_size * training.accumulate == 1024
    assert recipe.drop_path == 0.2
    assert recipe.augmentation.rand_augment is not None
    assert recipe.augmentation.rand_augment.magnitude == 6
    with pytest.raises(InputError, match=r"unknown recipe.*chestxray14_vit_s"):
        load_recipe("chestxray14_vits")


def test_chestxray14_is_read_as_distributed(tmp_path: Path) -> None:
    dataset = read_dataset(write_chest(tmp_path))
    assert dataset.multi_label
    assert dataset.classes == list(FINDINGS)
    assert len(FINDINGS) == 14
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 12, "test": 4}
    by_name = {sample.name: sample for samples in dataset.splits.values() for sample in samples}
    assert [FINDINGS[k] for k in by_name["00000001_000.png"].labels] == ["Mass", "Nodule"]
    assert by_name["00000004_001.png"].labels == ()
    assert by_name["00000004_001.png"].group == "4"
    divided = divide(dataset, 0.3, 0)
    groups = [{sample.group for sample in divided.splits[split]} for split in ("train", "val")]
    assert len(groups[1]) == 2
    assert not groups[0] & groups[1]


def write_flagged(root: Path) -> Path:
    """The same pictures under lists with flags, without the table."""
    findings = {sample.name: sample.labels for samples in read_dataset(write_chest(root)).splits.values() for sample in samples}
    lines = [f"{name} {' '.join(str(int(k in labels)) for k in range(14))}" for name, labels in findings.items()]
    for name in ("Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"):
        (root / name).unlink()
    for split, part in (("train", lines[:8]), ("val", lines[8:12]), ("test", lines[12:])):
        (root / f"{split}_official.txt").write_text("\n".join(part) + "\n")
    return root


def test_chestxray14_is_read_from_the_authors_lists(tmp_path: Path) -> None:
    wanted = read_dataset(write_chest(tmp_path / "a"))
    dataset = read_dataset(write_flagged(tmp_path / "b"))
    assert (dataset.classes, dataset.multi_label) == (list(FINDINGS), True)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 8, "val": 4, "test": 4}
    labels = [{s.name: s.labels for samples in one.splits.values() for s in samples} for one in (wanted, dataset)]
    assert labels[0] == labels[1]
    groups = {sample.group for sample in dataset.splits["train"]}
    assert groups == {"00000000", "00000001", "00000002", "00000003"}
    assert {split: len(found) for split, found in read_pictures(tmp_path / "b").splits.items()} == {"train": 8, "val": 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000001_000.png 0 1", r"train_official\.txt, line 2: a picture and 14 flags 0 or 1 are expected; got '00000001_000\.png 0 1'"),
        ("00000001_000.png" + " 2" * 14, "14 flags 0 or 1"),
        ("00000099_000.png" + " 0" * 14, "1 pictures of its lists are missing.*00000099_000"),
    ],
)
def test_wrong_lists_are_one_line(line: str, message: str, tmp_path: Path) -> None:
    path = write_flagged(tmp_path) / "train_official.txt"
    path.write_text(f"00000000_000.png{' 0' * 14}\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("labels", "missing", "message"),
    [
        ({"00000001_000.png": "Masss", "00000002_000.png": "Mass"}, "", r"line 2: unknown finding 'Masss'; did you mean 'Mass'"),
        (
            {f"0000000{i}_000.png": "Mass" for i in range(8)},
            "00000003_000.png",
            r"1 pictures of Data_Entry_2017\.csv are missing.*00000003_000",
        ),
    ],
)
def test_wrong_findings_and_missing_files_are_one_line(labels: dict[str, str], missing: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_dataset(write_chest(tmp_path, labels, missing))


def test_a_picture_listed_but_not_in_the_table_is_refused(tmp_path: Path) -> None:
    write_chest(tmp_path)
    (tmp_path / "test_list.txt").write_text("00000099_000.png\n")
    with pytest.raises(InputError, match=r"1 listed pictures are not in Data_Entry_2017\.csv: 00000099_000\.png"):
        read_dataset(tmp_path)


def test_a_table_with_unknown_findings_or_missing_files_is_refused(weights: Path, tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "a", ("mass", "flud"))
    code, _, err = invoke(capsys, "evaluate", "--weights", weights, "--data", table, "--out", tmp_path / "e", "--device", "cpu")
    assert code == 2
    assert err.count("\n") == 1
    assert "unknown label 'flud'; did you mean 'fluid'?" in err
    table = write_table(tmp_path / "b")
    (tmp_path / "b" / "4.png").unlink()
    code, _, err = invoke(capsys, "train", "--task", "classification", "--data", table, "--out", tmp_path / "r", *sets(*TINY))
    assert code == 2
    assert err.splitlines()[-1].endswith("4.png: no such file")


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def test_an_autoencoder_starts_the_vit_that_is_its_encoder(tmp_path: Path) -> None:
    autoencoder = create_model("mae_vit_small_patch16_dec128d2b", in_channels=3, **MAE)
    save_weights(autoencoder, tmp_path / "mae.safetensors", metadata={"pretraining": {}})
    overrides = [part for part in TINY if not part.startswith(("model", "options"))]
    settings = resolve_settings(
        data=write_table(tmp_path / "d"), recipe="chestxray14_vit_s", weights=str(tmp_path / "mae.safetensors"), overrides=overrides
    )
    assert settings.model == "vit_small_patch16"
    assert settings.options == {"head_init_scale": 0.001, "mlp_ratio": 4.0} | VIT
    frozen = settings.model_copy(update={"freeze": "backbone"})
    result = train(frozen, tmp_path / "run", device="cpu", say=lambda line: None)
    kept, before = read_state_dict(result.best_path), autoencoder.state_dict()
    for name in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "pos_embed"):  # a linear probe leaves them alone
        torch.testing.assert_close(kept[name], before[name])
    assert read_metadata(result.best_path)["classifier"]["classes"] == ["mass", "fluid"]


def test_an_autoencoder_starts_no_other_model(tmp_path: Path) -> None:
    save_weights(create_model("mae_vit_small_patch16_dec128d2b", in_channels=3, **MAE), tmp_path / "mae.safetensors")
    given: dict[str, Any] = {"data": "x", "weights": str(tmp_path / "mae.safetensors")}
    for chosen in ({"recipe": "chestxray14_densenet121"}, {"recipe": "chestxray14_vit_b"}, {"overrides": ["model=densenet121"]}):
        with pytest.raises(InputError, match=r"holds a mae_vit_small.*which starts a vit_small_patch16, not a (densenet121|vit_base)"):
            resolve_settings(**given, **chosen)
    assert resolve_settings(**given).model == "vit_small_patch16"  # where nothing else was asked for


def test_published_weights_of_an_autoencoder_start_a_vit(tmp_path: Path) -> None:
    autoencoder = create_model("mae_vit_small_patch16_dec128d2b", in_channels=3, **MAE)
    torch.save({"model": autoencoder.state_dict(), "epoch": 799}, tmp_path / "checkpoint-799.pth")
    lines: list[str] = []
    weights = str(tmp_path / "checkpoint-799.pth")
    settings = resolve_settings(data=write_table(tmp_path / "d"), recipe="chestxray14_vit_s", weights=weights, overrides=TINY)
    train(settings, tmp_path / "run", device="cpu", say=lines.append)
    assert any("new, as the classes differ: fc_norm.bias, fc_norm.weight, head.bias, head.weight" in line for line in lines)


def test_any_backbone_takes_a_recipe() -> None:
    settings = resolve_settings(data="x", recipe="chestxray14_vit_s", overrides=["model=densenet121"])
    assert (settings.model, settings.options, settings.training.layer_decay) == ("densenet121", {}, 0.55)


def test_weights_of_another_vit_are_refused(tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "d")
    other = create_model("vit_small_patch16", num_classes=2, **VIT | {"embed_dim": 64})
    np.savez(tmp_path / "other.npz", **{name: value.numpy() for name, value in other.state_dict().items()})
    command = ["train", "--task", "classification", "--data", table, "--recipe", "chestxray14_vit_s", "--out", tmp_path / "r"]
    code, _, err = invoke(capsys, *command, "--weights", tmp_path / "other.npz", *sets(*TINY))
    assert code == 2
    assert "other.npz: does not fit ViT" in err.splitlines()[-1]
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_commands_train_evaluate_and_predict(tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "d")
    chosen = ["--recipe", "vit_small_scratch", "--device", "cpu", *sets(*TINY), "--set", "training.best_metric=auc"]
    code, out, err = invoke(capsys, "train", "--task", "classification", "--data", table, "--out", tmp_path / "run", *chosen)
    assert code == 0, err
    assert "auc" in out
    assert "vsuite-medical predict" in out
    code, out, err = invoke(capsys, "evaluate", "--weights", tmp_path / "run", "--data", table, "--out", tmp_path / "e", "--device", "cpu")
    assert code == 0, err
    for name in ("metrics.json", "metrics.csv", "predictions.csv", "auc.png", "report.html", "contact_sheet.png"):
        assert (tmp_path / "e" / name).stat().st_size
    low, high = json.loads((tmp_path / "e" / "metrics.json").read_text())["intervals"]["auc/mass"]
    assert low <= high
    again = ["evaluate", tmp_path / "e" / "missing.csv", "--data", table, "--out", tmp_path / "f"]
    assert invoke(capsys, *again)[0] == 2
    command = ["predict", tmp_path / "d" / "1.png", "--weights", tmp_path / "run", "--out", tmp_path / "p", "--device", "cpu"]
    code, out, err = invoke(capsys, *command, "--explain", "rollout")
    assert code == 0, err
    assert list((tmp_path / "p" / "explanations").glob("*.png"))
    code, _, err = invoke(capsys, *command, "--mirror")
    assert code == 2
    assert "--mirror: not for --task classification" in err


def test_a_folder_stands_for_its_predictions(weights: Path, tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "d")
    model, note = load_classifier(weights)
    for value, said in ((-9.0, "none (likeliest: "), (9.0, "mass;fluid (likeliest: ")):
        with torch.no_grad():
            model.head.bias.fill_(value)
        save_weights(model, tmp_path / "w.safetensors", metadata={"classifier": note.model_dump(mode="json")})
        command = ["predict", tmp_path / "d", "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "p", "--device", "cpu"]
        code, out, err = invoke(capsys, *command)
        assert code == 0, err
        assert f"0.png: {said}" in out
    code, out, err = invoke(capsys, "evaluate", tmp_path / "p", "--data", table, "--split", "val", "--out", tmp_path / "e")
    assert code == 0, err
    assert "fluid" in out


def test_the_auc_picture_says_what_its_line_is(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    said: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text, **given: said.append(text))
    found = evaluate(Predictor(weights, device="cpu"), write_table(tmp_path / "d"), split="train", out=tmp_path / "e", resamples=0)
    assert said == [f"AUC; dashed: the mean, {found.summary['auc']:.3f}"]


def test_a_finding_without_positives_is_said_and_counted_out(weights: Path, tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "d")
    rows = list(csv.reader(table.open()))
    table.write_text("\n".join(",".join([*row[:-1], row[-1] if index == 0 else "0"]) for index, row in enumerate(rows)) + "\n")
    found = evaluate(Predictor(weights, device="cpu"), table, split="train", out=tmp_path / "e", resamples=50)
    assert found.undefined == ["fluid"]
    assert math.isnan(found.summary["auc/fluid"])
    assert found.summary["auc"] == found.summary["auc/mass"]
    assert math.isnan(found.intervals["auc/fluid"].low)
    assert not math.isnan(found.intervals["auc/mass"].low)
    assert "left out of the mean: fluid" in (tmp_path / "e" / "report.html").read_text()
    code, out, _ = invoke(capsys, "evaluate", "--weights", weights, "--data", table, "--out", tmp_path / "f", "--device", "cpu")
    assert code == 0
    assert "AUC not defined, and left out of the mean" in out
    code, _, err = invoke(capsys, "train", "--task", "classification", "--data", table, "--out", tmp_path / "r", *sets(*TINY))
    assert code == 2
    assert err.splitlines()[-1].endswith("no image to train on of fluid; each class needs one")


def test_options_of_another_task_are_refused(tmp_path: Path, capsys) -> None:
    code, _, err = invoke(capsys, "train", "--task", "classification", "--data", tmp_path, "--fold", "0")
    assert code == 2
    assert "--fold: not for --task classification" in err
    code, _, err = invoke(capsys, "train", "--data", tmp_path, "--freeze", "backbone")
    assert code == 2
    assert "--freeze" in err
    code, _, err = invoke(capsys, "evaluate", tmp_path, "--data", tmp_path, "--split", "val")
    assert code == 2
    assert "--split: only with --task classification" in err
    code, _, err = invoke(capsys, "evaluate", tmp_path / "p.csv", "--data", tmp_path, "--labels", tmp_path / "labels.json")
    assert code == 2
    assert "--labels: not for --task classification" in err


def test_onnx_gives_the_networks_logits(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_onnx(weights, tmp_path / "net.onnx")
    assert exported.max_difference < 1e-4 * exported.largest_logit
    contract = json.loads(exported.contract.read_text())
    assert (contract["classes"], contract["activation"], contract["size"]) == (["mass", "fluid"], "sigmoid", [32, 32])
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        export_onnx(weights, tmp_path / "net.ts")


def test_a_bundle_says_what_the_weights_say_of_themselves(weights: Path, tmp_path: Path) -> None:
    model, _ = load_classifier(weights)
    metadata = read_metadata(weights) | {"facts": {"version": "2.1.0", "authors": "A. Person"}}
    save_weights(model, tmp_path / "known.safetensors", metadata=metadata)
    root = export_bundle(tmp_path / "known.safetensors", tmp_path / "bundle")
    content = json.loads((root / "configs" / "metadata.json").read_text())
    assert (content["version"], content["authors"]) == ("2.1.0", "A. Person")
    assert content["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "mass", "1": "fluid"}
    with pytest.raises(InputError, match="version must be semantic"):
        export_bundle(weights, tmp_path / "other", facts=BundleFacts(version="2"))
    assert not (tmp_path / "other").exists()
    assert 'pip install "vsuite-medical[bundle]"' in (root / "docs" / "README.md").read_text()


def test_pictures_of_one_name_have_results_of_their_own(weights: Path, tmp_path: Path) -> None:
    from vsuite.medical.classification.bundle_components import PreparePicture, SaveProbabilities, find_pictures

    note = load_classifier(weights)[1]
    for folder in ("a", "b"):
        write_table(tmp_path / "images" / folder, number=1)
    save = SaveProbabilities(note, tmp_path / "out")
    for entry in find_pictures(tmp_path / "images"):
        save({**PreparePicture(note)(entry), "pred": torch.zeros(2)})
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json")) == [
        "a/0.png.json",
        "b/0.png.json",
    ]


@pytest.mark.slow
def test_a_bundle_gives_what_predict_gives(weights: Path, tmp_path: Path) -> None:
    for needed in ("ignite", "jsonschema", "fire"):
        pytest.importorskip(needed)
    table = write_table(tmp_path / "d", number=3)
    root = export_bundle(weights, tmp_path / "bundle")
    (root / "images").mkdir()
    for path in table.parent.glob("*.png"):
        path.rename(root / "images" / path.name)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    meta = ["--meta_file", "configs/metadata.json"]
    commands = [
        ["run", "--config_file", "configs/inference.json", *meta],
        ["verify_metadata", *meta, "--filepath", "configs/meta_schema.json"],
        ["verify_net_in_out", "--net_id", "network_def", *meta, "--config_file", "configs/inference.json"],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "monai.bundle", *command],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    predictor = Predictor(weights, device="cpu")
    for path in sorted((root / "images").glob("*.png")):
        content = json.loads((root / "eval" / f"{path.name}.json").read_text())
        wanted = predictor.predict(path).scores
        np.testing.assert_allclose(list(content["probabilities"].values()), wanted, atol=2e-6)
