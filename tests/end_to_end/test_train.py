"""`vsuite-medical train`: what a run leaves, and that it continues, starts from weights and runs on several processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import yaml

from vsuite.core.weights import read_metadata, save_weights
from vsuite.medical.data.planning import load_plan
from vsuite.medical.plan import Plan


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(folder) if "loss" in record}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in safetensors.torch.load_file(path).items()}


def test_a_run_folder_holds_all_that_was_promised(trained, data):
    folder = trained.folder
    for name in ("settings.yaml", "plan.yaml", "dataset_fingerprint.json", "split.json", "metrics.jsonl", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.safetensors", "last.pth"]
    split = json.loads((folder / "split.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (3, 1)
    assert sorted(split["train"] + split["val"]) == [f"phantom_{n:04d}" for n in range(1, 5)]
    assert [p.name for p in (folder / "pictures").iterdir()] == [f"{split['val'][0]}.png"]
    report = (folder / "report.html").read_text()
    assert "<svg" in report or "data:image" in report
    assert "http://" not in report.replace("http://www.w3.org", ""), "opens from the file system, with nothing to fetch"
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    assert (settings["data"], settings["name"], settings["training"]["steps"]) == (str(data), "tiny", 4)
    assert not list(folder.rglob(".*")), "no temporary files"


def test_the_weights_hold_the_plan(trained):
    note = read_metadata(trained.weights)
    plan = Plan.model_validate(note["plan"])
    assert plan == load_plan(trained.folder / "plan.yaml")
    assert plan.labels == {"background": 0, "lobes": 1, "ventricle": 2, "stem": 3, "lesion": 4}
    assert (plan.patch_size, plan.options["num_classes"], plan.options["in_channels"]) == ((16, 16, 16), 5, 1)
    assert (note["recipe"], note["model"]) == ("tiny", "segformer3d")


def test_losses_and_validations_are_recorded(trained):
    found = losses(trained.folder)
    assert sorted(found) == [1, 2, 3, 4]
    assert all(0 < value < 10 for value in found.values())
    validations = {r["step"]: r["validation"] for r in records(trained.folder) if "validation" in r}
    assert sorted(validations) == [2, 4]
    assert all(0 <= metrics["dice"] <= 1 for metrics in validations.values())
    best = max(validations.values(), key=lambda metrics: metrics["dice"])["dice"]
    assert f"dice {best:.4f}" in trained.finished.out
    assert f"--weights {trained.weights}" in trained.finished.out, "says how to go on"


def test_worker_processes_change_no_loss(trained, data, recipe, invoke, tmp_path):
    finished = invoke(
        "train", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu", "--set", "training.workers=1"
    )
    assert finished.code == 0, finished.err
    assert losses(tmp_path / "run") == losses(trained.folder)
    ours, theirs = tensors(trained.weights), tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_killed_run_continues_to_the_same_losses(data, recipe, start, invoke, tmp_path):
    lengths = (f"--set=training.{name}" for name in ("steps=40", "validate_every=1000", "checkpoint_every=5"))
    more = ("--device", "cpu", *lengths)
    killed = tmp_path / "killed"
    process = start("train", "--data", data, "--recipe", recipe, "--out", killed, *more)
    until = time.monotonic() + 300
    while not (killed / "checkpoints" / "last.pth").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert max(losses(killed)) < 40, "it was killed on the way"
    finished = invoke("train", "--out", killed, "--resume", "--device", "cpu")
    assert finished.code == 0, finished.err
    whole = tmp_path / "whole"
    assert invoke("train", "--data", data, "--recipe", recipe, "--out", whole, *more).code == 0
    assert losses(killed) == losses(whole)
    assert sorted(losses(whole)) == list(range(1, 41))
    ours, theirs = (tensors(folder / "checkpoints" / "best.safetensors") for folder in (killed, whole))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Ctrl-C is sent to a group of processes")
def test_ctrl_c_saves_the_step_and_says_how_to_go_on(data, recipe, start, invoke, tmp_path):
    folder = tmp_path / "run"
    long = [f"--set=training.{name}" for name in ("steps=100000", "validate_every=100000", "checkpoint_every=100000", "workers=1")]
    process = start("train", "--data", data, "--recipe", recipe, "--out", folder, "--device", "cpu", *long, start_new_session=True)
    lines = folder / "metrics.jsonl"  # there and empty before the first step
    until = time.monotonic() + 300
    while not (lines.exists() and lines.stat().st_size) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    step = max(losses(folder))
    assert f"step {step} of 100,000 is saved; --resume continues" in said
    assert said.splitlines()[-1] == "error: interrupted"
    assert not list(folder.rglob(".*"))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last.pth"]
    shorter = invoke("train", "--out", folder, "--resume", "--device", "cpu", f"--set=training.steps={step + 1}")
    shorter.refused("training.steps was 100000 and is", "may only grow")


def test_a_finished_run_is_lengthened(data, recipe, invoke, tmp_path):
    folder = tmp_path / "run"
    command = ("train", "--data", data, "--recipe", recipe, "--out", folder, "--device", "cpu", "--set=training.steps=2")
    assert invoke(*command).code == 0
    finished = invoke("train", "--out", folder, "--resume", "--device", "cpu", "--set", "training.steps=4")
    assert finished.code == 0, finished.err
    assert "lengthened from 2 to 4 steps, of which 2 are done" in finished.err
    assert "of 4)" in finished.out
    assert sorted(losses(folder)) == [1, 2, 3, 4]
    again = invoke("train", "--out", folder, "--resume", "--device", "cpu")
    assert again.code == 0
    assert "--set training.steps=" in again.err
    report = (folder / "report.html").read_text()
    assert "<h1>segformer3d trained by the recipe tiny</h1>" in report


def test_a_finished_run_is_neither_overwritten_nor_repeated(trained, data, recipe, invoke):
    before = (trained.folder / "metrics.jsonl").read_text()
    again = invoke("train", "--data", data, "--recipe", recipe, "--out", trained.folder, "--device", "cpu")
    assert again.code == 2
    assert "holds a run already" in again.err
    assert invoke("train", "--out", trained.folder, "--resume", "--device", "cpu").code == 0
    other = invoke("train", "--out", trained.folder, "--resume", "--seed", 5, "--device", "cpu")
    assert other.code == 2
    assert "training.seed was 0 and is 5" in other.err
    assert (trained.folder / "metrics.jsonl").read_text() == before


def test_training_on_all_cases_keeps_the_last_weights(data, recipe, invoke, tmp_path):
    finished = invoke(
        "train", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu", "--set", "validation.fraction=0"
    )
    assert finished.code == 0, finished.err
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (len(split["train"]), split["val"]) == (4, [])
    assert not any("validation" in record for record in records(tmp_path / "run"))
    assert "step 4 of 4" in finished.out
    import torch

    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)["model_ema"]
    kept = tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert all(np.array_equal(kept[name], value.numpy()) for name, value in last.items())


def test_weights_of_another_class_count_start_a_run(trained, data, recipe, invoke, tmp_path):
    """All but the classifier is taken over: with a learning rate of nearly 0 it is still there after training."""
    frozen = ("--set", "training.steps=1", "--set", "training.learning_rate=1e-12", "--set", "training.weight_decay=0")
    labels = "plan.labels={background: 0, lobes: 1, rest: 3}"
    finished = invoke(
        "train", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu",
        "--weights", trained.weights, "--set", labels, *frozen,
    )  # fmt: skip
    assert finished.code == 0, finished.err
    source, result = tensors(trained.weights), tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert source.keys() == result.keys()
    others = sorted(name for name in source if source[name].shape != result[name].shape)
    assert [result[name].shape[0] for name in others] == [3, 3], others
    assert all(name in finished.out for name in others)
    learnt = [name for name in source if name not in others and "running_" not in name and "num_batches" not in name]
    assert len(learnt) > 50
    assert all(np.allclose(source[name], result[name], rtol=0, atol=1e-6) for name in learnt)


def test_weights_of_another_model_are_refused_before_anything_is_written(data, recipe, invoke, tmp_path):
    import torch

    save_weights(torch.nn.Conv3d(1, 2, 3), tmp_path / "other.safetensors")
    finished = invoke(
        "train",
        "--data",
        data,
        "--recipe",
        recipe,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--weights",
        tmp_path / "other.safetensors",
    )
    assert finished.code == 2
    assert "other.safetensors: does not fit" in finished.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_together(data, recipe, shell, tmp_path):
    port = str(20000 + os.getpid() % 20000)
    program = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, "--no-python")
    command = str(Path(sys.executable).with_name("vsuite-medical"))
    finished = shell(
        command, "train", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu", program=program
    )  # fmt: skip
    assert finished.code == 0, finished.err
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert finished.out.count("phantoms") >= 1
    assert finished.out.count("split: 3 cases to train on") == 1, "one process speaks"
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
