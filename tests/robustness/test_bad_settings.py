"""What a user mistypes on the command line or in a file: refused before anything is read or written, with the nearest right name."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--set", "training.steps"), ("'training.steps'", "name=value")),
        (("--set", "=3"), ("name=value",)),
        (("--set", "training.stepz=3"), ("unknown setting 'training.stepz'; did you mean 'training.steps'",)),
        (("--set", "steps=3"), ("unknown setting 'steps'; did you mean 'training.steps'",)),
        (("--set", "training.steps=many"), ("training.steps", "many")),
        (("--set", "training.steps=0"), ("training.steps", "0")),
        (("--set", "training.steps=[1"), ("'[1' is no YAML value",)),
        (("--set", "training.learning_rate=nan"), ("training.learning_rate",)),
        (("--set", "loss=dise"), ("unknown loss 'dise'; did you mean 'dice'",)),
        (("--set", "training.schedule=cosinus"), ("cosinus", "cosine")),
        (("--set", "plan.normalisation.kind=zscor"), ("zscor", "zscore")),
        (("--set", "plan.options.depth=[1]"), ("'depth'", "'depths'")),
        (("--set", "plan.patch_size=[4, 4, 4]"), ("4",)),
        (("--set", "plan.patch_size=[16, 16]"), ("plan.patch_size",)),
        (("--set", "plan.axes=[0, 0, 1]"), ("axes must be an order of 0, 1, 2",)),
        (("--set", "plan.channels=[T2]"), ("the recipe is for the channels ['T2']", "T1")),
        (("--set", "plan.labels={background: 0, organ: 5}"), ("ids [5]",)),
        (("--set", "training.batch_size=1"), ("cannot be trained on 1 patch of 1 x 16 x 16 x 16",)),
        (("--model", "segformer4d"), ("unknown model 'segformer4d'; did you mean 'segformer3d'",)),
        (("--device", "gpu"), ("device 'gpu'", "allowed are auto, cpu, cuda and cuda:N")),
        (("--precision", "fp64"), ("fp64",)),
        (("--batch-size", "0"), ("'--batch-size'", "greater than or equal to 1")),
        (("--fold", "9", "--folds", "2"), ("fold must lie between 0 and 1; got 9",)),
        (("--fold", "0", "--folds", "3"), ("folds must lie between 2 and the number of cases, 2; got 3",)),
        (("--split", "none.json"), ("none.json",)),
        (("--sett", "a=b"), ("--set",)),
        (("extra",), ("extra",)),
    ],
)
def test_training(arguments, parts, train, tmp_path):
    train(*arguments).refused(*parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{name: a, training: {stepz: 3}}", ("unknown setting 'training.stepz'; did you mean 'training.steps'",)),
        ("{name: a, training: {steps: 3}, augmentation: {rotaton: [0, 0, 0]}}", ("augmentation.rotaton", "augmentation.rotation")),
        ("{name: a, trainig: {steps: 3}}", ("'trainig'", "'training'")),
        ("{name: a, training: {steps: 3, epochs: 2}}", ("either steps or epochs",)),
        ("{name: a", ("is no YAML",)),
        ("- a\n- b", ("holds a list",)),
        ("!!python/object/apply:os.system ['touch proof']", ("is no YAML",)),
        ("", ("training",)),
    ],
)
@pytest.mark.parametrize("option", ["--recipe", "--config"])
def test_a_settings_file(option, content, parts, invoke, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text(content)
    invoke("train", "--data", dataset, option, path, "--out", tmp_path / "run").refused("own.yaml", *parts)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "proof").exists()


def test_names_of_recipes(invoke, dataset, tmp_path):
    command = ("train", "--data", dataset, "--out", tmp_path / "run")
    invoke(*command, "--recipe", "hipocampus").refused("unknown recipe", "did you mean 'hippocampus'")
    invoke(*command, "--recipe", tmp_path / "none.yaml").refused("none.yaml: cannot be read: No such file")
    invoke(*command, "--recipe", "generic", "--config", "x.yaml").refused("either a recipe or a settings file")
    invoke("train", "--out", tmp_path / "run").refused("no data set is named")
    invoke("train", "--resume", "--out", tmp_path / "run").refused("no data set is named")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"train": ["a"], "val": ["bb"]}, ("unknown case 'bb'",)),
        ({"train": ["a"], "val": ["a"]}, ("both train and val: a",)),
        ({"train": [], "val": ["a"]}, ("no training cases",)),
        ({"training": ["a"]}, ("a split is",)),
        ([], ("folds",)),
    ],
)
def test_a_split(content, parts, train, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(content))
    train("--split", tmp_path / "split.json").refused("split.json", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--overlap", "1"), ("overlap must be from 0 to below 1; got 1",)),
        (("--overlap", "nan"), ("overlap",)),
        (("--blend", "gauss"), ("gauss",)),
        (("--precision", "int8"), ("int8",)),
        (("--device", "cuda:99"), ("cuda:99",)),
        (("--batch-size", "-1"), ("'--batch-size'", "greater than or equal to 1")),
        (("--largest-component", "9"), ("9",)),
        (("--smallest-component", "-1"), ("'--smallest-component'", "greater than or equal to 0")),
        (("--miror",), ("--miror", "--mirror")),
    ],
)
def test_predicting(arguments, parts, invoke, weights, save, tmp_path):
    image = save(tmp_path / "in" / "x.nii.gz")
    options = () if "--device" in arguments else ("--device", "cpu")
    invoke("predict", image, "--weights", weights, "--out", tmp_path / "out", *options, *arguments).refused(*parts)
    assert not (tmp_path / "out").exists()


def test_exporting(invoke, weights, tmp_path):
    invoke("export", "--weights", weights, "--format", "onx", "--out", tmp_path / "x.onnx").refused("onx", "onnx")
    invoke("export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "x.txt").refused("must end in .onnx")
    invoke("export", "--weights", weights, "--format", "published", "--out", tmp_path / "x.onnx").refused("must end in")
    invoke("export", "--weights", weights, "--format", "torchscript", "--overlap", "2", "--out", tmp_path / "x.ts").refused("overlap")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    invoke("export", "--weights", weights, "--out", tmp_path / "full").refused("exists and is not empty")
    invoke("export", "--weights", weights, "--out", tmp_path / "full", "--overwrite").refused("is no bundle")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_command_that_does_not_exist(invoke):
    invoke("trian").refused("trian", "train")
    invoke("predict").refused("")
