"""The loop: what a run leaves behind, that it resumes to the same bits, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vsuite.core.errors import InputError
from vsuite.core.training import TrainingResult, TrainingSettings, heap, load_settings, train
from vsuite.core.training.progress import read_records
from vsuite.core.weights import load_weights, read_metadata, read_state_dict

sys.path.insert(0, str(Path(__file__).parent))
import training_toy
from training_toy import ToyData, ToyTask

SCRIPT = Path(__file__).parent / "training_toy.py"
SMALL: dict[str, Any] = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "validate_every": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path, task: ToyTask | None = None, *, resume: bool = False, hooks: Any = (), **changes: Any) -> TrainingResult:
    return train(task or ToyTask(), TrainingSettings(**(SMALL | changes)), folder, device="cpu", resume=resume, hooks=hooks)


def records(folder: Path) -> list[dict[str, Any]]:
    """The log without the wall time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_leaves_its_folder_and_nothing_else(tmp_path: Path) -> None:
    result = run(tmp_path / "run", best_metric="accuracy", best_mode="max", ema_decay=0.9)
    files = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*"))
    assert files == [
        "checkpoints",
        "checkpoints/best.safetensors",
        "checkpoints/last.pth",
        "metrics.jsonl",
        "pictures",
        "pictures/case_0.png",
        "report.html",
        "settings.yaml",
    ]
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert set(lines[0]) == {"step", "epoch", "loss", "terms", "learning_rate"}
    assert lines[0]["loss"] == pytest.approx(sum(lines[0]["terms"].values()), rel=1e-6)
    assert lines[0]["epoch"] == pytest.approx(4 / 37, abs=1e-4)
    validations = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert list(validations) == [4, 8]
    assert result.steps_done == 8
    assert not result.stopped_early
    assert result.best_metrics == validations[result.best_step]
    assert result.best_metrics["accuracy"] == max(v["accuracy"] for v in validations.values())
    assert load_settings(tmp_path / "run" / "settings.yaml", TrainingSettings).steps == 8


def test_training_learns_and_the_best_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    result = run(tmp_path / "run", steps=120, batch_size=8, ema_decay=0.9, validate_every=40, log_every=20)
    assert result.best_metrics["accuracy"] > 0.9
    losses = [line["loss"] for line in records(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    task = ToyTask()
    model = task.build_model().eval()
    load_weights(model, result.best_path)
    assert task.validate(model, torch.device("cpu"), 0, 1)["loss"] == pytest.approx(result.best_metrics["loss"], rel=1e-6)
    assert read_metadata(result.best_path)["plan"] == {"spacing": [1.0, 2.0]}
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    assert not torch.equal(last["model"]["0.weight"], last["model_ema"]["0.weight"])
    assert torch.equal(read_state_dict(tmp_path / "run" / "checkpoints" / "last.pth")["0.weight"], last["model_ema"]["0.weight"])


def broken_torchvision(tmp_path: Path) -> dict[str, str]:
    """An environment where torchvision is installed but cannot be imported, as beside another version of torch."""
    (tmp_path / "site" / "torchvision").mkdir(parents=True)
    (tmp_path / "site" / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    return os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_losses(tmp_path: Path) -> None:
    settings = SMALL | {"steps": 16, "accumulate": 2, "ema_decay": 0.9, "checkpoint_every": 5, "validate_every": 6, "log_every": 2}
    environment = broken_torchvision(tmp_path)
    whole = run(tmp_path / "whole", **settings)

    folder = tmp_path / "killed"
    arguments = [sys.executable, str(SCRIPT), str(folder), json.dumps(settings), "kill_at=26"]
    killed = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert max(record["step"] for record in records(folder)) == 12  # logged after the checkpoint of step 10
    assert torch.load(folder / "checkpoints" / "last.pth", weights_only=True)["step"] == 10
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # a torn line, as a full disk would leave it

    resumed = run(folder, resume=True, **(settings | {"workers": 2}))
    assert records(folder) == records(tmp_path / "whole")
    assert resumed.best_metrics == whole.best_metrics
    one, other = (torch.load(f / "checkpoints" / "last.pth", weights_only=True) for f in (folder, tmp_path / "whole"))
    for part in ("model", "model_ema"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in other[part])
    assert torch.equal(one["ranks"][0]["random"]["torch"], other["ranks"][0]["random"]["torch"])


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert run(tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_run_is_not_overwritten_nor_continued_as_another(tmp_path: Path) -> None:
    run(tmp_path / "run", resume=True)  # resuming nothing starts
    with pytest.raises(InputError, match="holds a run already"):
        run(tmp_path / "run")
    with pytest.raises(InputError, match=r"learning_rate was 0.01 and is 0.5"):
        run(tmp_path / "run", resume=True, learning_rate=0.5)
    (tmp_path / "run" / "checkpoints" / "last.pth").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match=r"last\.pth: is damaged"):
        run(tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_model_is_one_line(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pth"
    content = torch.load(path, weights_only=True)
    for wrong in ({"model": {"weight": torch.zeros(2, 2)}}, {"optimizer": {}}, {"best": None}):
        torch.save(content | wrong, path)
        with pytest.raises(InputError, match=r"last\.pth: is no checkpoint of this run: ") as caught:
            run(tmp_path / "run", resume=True)
        assert "\n" not in str(caught.value)


def test_a_resumed_run_removes_what_a_kill_left_of_a_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "run")
    half = [tmp_path / "run" / "checkpoints" / name for name in (".last.0123abcd.pth", ".best.0123abcd.safetensors")]
    for path in half:
        path.write_bytes(b"half")
    run(tmp_path / "run", resume=True)
    assert not [path for path in half if path.exists()]


def test_two_runs_in_one_process_do_not_meet(tmp_path: Path) -> None:
    run(tmp_path / "one", seed=3)
    run(tmp_path / "other", seed=4)
    run(tmp_path / "again", seed=3, workers=1)
    assert records(tmp_path / "one") == records(tmp_path / "again")
    assert records(tmp_path / "one") != records(tmp_path / "other")
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope

    assert not [name for kind in (MessageHub, MMLogger, DefaultScope) for name in kind._instance_dict if name.startswith("vsuite")]


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    run(tmp_path / "one", ToyTask(dropout=0), batch_size=8)
    run(tmp_path / "two", ToyTask(dropout=0), batch_size=4, accumulate=2)
    one, two = ([line["loss"] for line in records(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-4)


def test_validating_more_often_changes_no_loss(tmp_path: Path) -> None:
    run(tmp_path / "seldom", validate_every=100)
    run(tmp_path / "often", validate_every=1, checkpoint_every=1, compile=False)
    seldom, often = ([line for line in records(tmp_path / name) if "loss" in line] for name in ("seldom", "often"))
    assert seldom == often


def test_early_stopping_counts_validations_without_a_better_value(tmp_path: Path) -> None:
    class Worsening(ToyTask):
        def validate(self, *args: Any) -> dict[str, float]:
            self.passed = getattr(self, "passed", 0) + 1
            return {"loss": [2.0, 1.0, math.nan, 1.0, 3.0][self.passed - 1]}

    result = run(tmp_path / "run", Worsening(), steps=50, validate_every=2, early_stopping=3)
    assert (result.stopped_early, result.steps_done, result.best_step) == (True, 10, 4)
    assert result.best_metrics == {"loss": 1.0}
    assert [line["validation"]["loss"] for line in records(tmp_path / "run") if "validation" in line] == [2.0, 1.0, None, 1.0, 3.0]
    assert run(tmp_path / "run", Worsening(), steps=50, validate_every=2, early_stopping=3, resume=True) == result


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^step 6: the loss is not finite \(loss nan, cross_entropy nan, .*lower learning_rate"):
        run(tmp_path / "run", ToyTask(nan_at=6), checkpoint_every=5, log_every=8)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    assert content["step"] == 5
    assert all(bool(value.isfinite().all()) for value in content["model"].values())


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The next write beyond this size fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "name"), [(100, "settings.yaml"), (700, "metrics.jsonl"), (1500, "best.safetensors"), (9000, "last.pth")])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, size: int, name: str) -> None:
    often = {"metrics.jsonl": "log_every", "best.safetensors": "validate_every", "last.pth": "checkpoint_every"}.get(name, "log_every")
    intervals = {"log_every": 8, "validate_every": 8, "checkpoint_every": 8} | {often: 1}

    class Wide(ToyTask):  # so that the weights are larger than the log
        def metadata(self) -> dict[str, Any]:
            return {"notes": "x" * 1200} if name == "best.safetensors" else {}

        def pictures(self, *args: Any) -> list[Path]:
            return []

    with files_at_most(size), pytest.raises(InputError) as caught:
        run(tmp_path / "run", Wide(), **intervals)
    assert f"{name}: cannot be written: " in str(caught.value)
    assert "\n" not in str(caught.value)
    left = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "metrics.jsonl"]
    assert name not in left
    assert set(left) <= {"settings.yaml", "report.html", "best.safetensors"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"settings\.yaml: cannot be written"):
        run(tmp_path / "file" / "run")


def test_precision(tmp_path: Path) -> None:
    seen = []

    class Watching(ToyTask):
        def loss(self, model: Any, batch: Any) -> Any:
            seen.append(model(batch["point"]).dtype)
            return super().loss(model, batch)

    run(tmp_path / "bf16", Watching(), precision="bf16", clip_gradients=1.0)
    assert set(seen) == {torch.bfloat16}
    with pytest.raises(InputError, match="fp16 needs a CUDA device"):
        run(tmp_path / "fp16", precision="fp16")
    assert not (tmp_path / "fp16").exists()


def test_half_precision_scales_the_loss_and_leaves_out_steps_that_overflow() -> None:
    """The scaler as CUDA uses it, on the CPU; `train` itself refuses fp16 there."""
    from vsuite.core.training.runner import AutocastOptimiser

    weight = torch.nn.Parameter(torch.tensor([2.0]))
    sgd = torch.optim.SGD([weight], lr=0.1)
    optimiser = AutocastOptimiser(sgd, TrainingSettings(steps=4, precision="fp16", accumulate=2, clip_gradients=1.0), torch.device("cpu"))
    for _ in range(2):
        optimiser.update_params((3 * weight).sum())
    assert weight.item() == pytest.approx(1.9)  # a gradient of 3, clipped to 1 after the scale is taken off
    scale = optimiser.scaler.get_scale()
    for factor in (1.0, float("inf")):
        optimiser.update_params((factor * weight).sum())
    assert weight.item() == pytest.approx(1.9)
    assert optimiser.scaler.get_scale() == scale / 2
    again = AutocastOptimiser(sgd, TrainingSettings(steps=4, precision="fp16"), torch.device("cpu"))
    again.scaler.load_state_dict(optimiser.scaler.state_dict())
    assert again.scaler.get_scale() == scale / 2


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    from mmengine.hooks import Hook

    norms = []

    class Watch(Hook):
        def before_train(self, runner: Any) -> None:
            optimiser = runner.optim_wrapper.optimizer
            optimiser.register_step_pre_hook(
                lambda o, *_: norms.append(torch.stack([p.grad.norm() for g in o.param_groups for p in g["params"]]).norm().item())
            )

    run(tmp_path / "run", clip_gradients=1e-3, hooks=[Watch()])
    assert norms == pytest.approx([1e-3] * 8, rel=1e-3)


def test_mmengine_hooks_are_called_and_may_stop_the_run(tmp_path: Path) -> None:
    from mmengine.hooks import EarlyStoppingHook, Hook

    calls: list[str] = []

    class Watch(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            calls.append(f"pass {batch_idx} of {runner.max_iters} with {runner.optim_wrapper.get_lr()['lr'][0]:.3f}")

        def after_train_epoch(self, runner: Any) -> None:
            calls.append("epoch")

        def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
            calls.append(f"{sorted(metrics)}")

    stop = EarlyStoppingHook(monitor="loss", rule="less", min_delta=100, patience=1)
    result = run(tmp_path / "run", accumulate=3, validate_every=2, schedule="constant", hooks=[Watch(), stop])
    assert (result.steps_done, result.stopped_early) == (4, True)
    assert calls[0] == "pass 0 of 24 with 0.010"
    assert sum(call.startswith("pass") for call in calls) == 12
    assert calls.count("epoch") == 2  # 48 samples of 37, and the end
    assert calls.count("['accuracy', 'accuracy/one', 'loss']") == 2


def test_an_unknown_best_metric_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown validation metric \(best_metric\) 'accurracy'; did you mean 'accuracy'"):
        run(tmp_path / "run", best_metric="accurracy")


def test_without_anything_to_validate_on_the_newest_weights_are_kept(tmp_path: Path) -> None:
    class Unvalidated(ToyTask):
        def validate(self, *args: Any) -> dict[str, float]:
            raise AssertionError("there is nothing to validate on")

    result = run(tmp_path / "run", Unvalidated(), best_metric=None)
    assert (result.best_step, result.best_metrics) == (8, {})
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    assert torch.equal(read_state_dict(result.best_path)["0.weight"], last["model"]["0.weight"])
    assert not [line for line in records(tmp_path / "run") if "validation" in line]


def test_a_bad_sample_in_a_worker_is_one_line(tmp_path: Path) -> None:
    class Broken(ToyData):
        def sample(self, index: int, rng: Any) -> Any:
            raise InputError("case.nii.gz: is truncated")

    class Task(ToyTask):
        def training_data(self) -> Broken:
            return Broken()

    for workers in (0, 1):
        with pytest.raises(InputError, match=r"^case\.nii\.gz: is truncated$"):
            run(tmp_path / f"run{workers}", Task(), workers=workers)


def test_progress_is_told_in_plain_lines_off_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", log_every=4)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 4/8", "step 4/8", "step 8/8", "step 8/8"]
    assert all(word in lines[0] for word in ("loss", "lr", "steps/s", "left"))
    assert "validation: loss" in lines[1]


def test_torn_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    path.write_text('{"step": 1, "loss": 2.0}\nnonsense\n[1]\n{"step": 2, "loss": 1.0}\n{"step": 3')
    assert [record["step"] for record in read_records(path)] == [1, 2]


def _train_forked(rank: int, port: int, arguments: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    sys.argv = [str(SCRIPT), *arguments]
    training_toy.main()


@pytest.mark.parametrize("launcher", ["environment", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_one_model_on_the_whole_set(tmp_path: Path, launcher: str) -> None:
    settings = SMALL | {"steps": 10, "accumulate": 2, "validate_every": 5, "checkpoint_every": 5}
    arguments = [str(tmp_path / "run"), json.dumps(settings | {"batch_size": 2}), "dropout=0"]
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT), *arguments]
        done = subprocess.run(command, env=broken_torchvision(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.start_processes(_train_forked, (port, arguments), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]) for name in ranks[0]["weights"])
    seen = torch.cat([rank["seen"] for rank in ranks])
    assert len(seen) == 80
    assert (torch.bincount(seen, minlength=37) >= 2).all()  # 80 samples are two epochs of 37, and six

    task = ToyTask(dropout=0)
    run(tmp_path / "alone", task, **settings)
    assert sorted(task.seen) == sorted(seen.tolist())
    together, alone = ([line["loss"] for line in records(tmp_path / name) if "loss" in line] for name in ("run", "alone"))
    assert together == pytest.approx(alone, rel=1e-3)
    assert len(torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)["ranks"]) == 2
    with pytest.raises(InputError, match="was trained by 2 processes"):
        run(tmp_path / "run", resume=True, **(settings | {"batch_size": 2}))


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_losses(tmp_path: Path) -> None:
    run(tmp_path / "plain", ToyTask(dropout=0))
    run(tmp_path / "compiled", ToyTask(dropout=0), compile=True)
    plain, compiled = ([line["loss"] for line in records(tmp_path / name) if "loss" in line] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Blocks freed between blocks in use stay with the process until it trims its heap."""
    try:
        ctypes.CDLL(None).malloc_trim  # noqa: B018
    except AttributeError:
        pytest.skip("this C library keeps what is freed")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [bytearray(b"x" * 60_000) for _ in range(4000)]  # small enough to come from the heap
    kept = blocks[::50]
    del blocks
    before = resident()
    heap.trim()
    assert before - resident() > 100e6
    assert all(block[0] == ord("x") for block in kept)


PAGES_MAPPED = """
import json, resource, torch
from vsuite.core.training import heap

def pages_mapped(mebibytes):
    tries = []
    for _ in range(9):  # where a block lies settles in the first ones
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(mebibytes << 18).fill_(1)  # freed at once
        tries.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(tries)

found = [pages_mapped(64)]
with heap.reused():
    found.append(pages_mapped(64))
print(json.dumps([*found, pages_mapped(4)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_large_tensors_is_used_again_within_a_training() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES_MAPPED], capture_output=True, text=True, check=True)  # with a heap of its own
    before, meanwhile, small_after = json.loads(done.stdout)
    if before < 100:
        pytest.skip("the memory of tensors is not mapped page by page here")
    assert meanwhile < before / 10
    assert small_after < 100  # small ones are no slower after than before
