"""Ctrl-C while training, and runs that are made longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vsuite.core.errors import InputError
from vsuite.core.training import TrainingResult, TrainingSettings, load_settings, train
from vsuite.core.training.schedules import cosine

sys.path.insert(0, str(Path(__file__).parent))
import training_toy
from training_toy import ToyTask

SCRIPT = Path(training_toy.__file__)
SMALL: dict[str, Any] = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "validate_every": 4, "checkpoint_every": 100}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path, task: ToyTask | None = None, *, resume: bool = False, **changes: Any) -> TrainingResult:
    return train(task or ToyTask(), TrainingSettings(**(SMALL | changes)), folder, device="cpu", resume=resume)


def records(folder: Path) -> list[dict[str, Any]]:
    """The log without the wall time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def saved_step(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "last.pth", weights_only=True)["step"]


# --- Ctrl-C ---


def test_an_interrupt_saves_the_step_and_the_run_continues_to_the_same_losses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {"accumulate": 2, "ema_decay": 0.9, "workers": 1}
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", ToyTask(interrupt_at=5), **changes)  # the first of step 3's two passes
    assert signal.getsignal(signal.SIGINT) is before
    assert saved_step(tmp_path / "run") == 3
    said = capfd.readouterr().err
    assert "step 3 of 8 is saved" in said
    assert "--resume" in said
    result = run(tmp_path / "run", resume=True, **changes)
    whole = run(tmp_path / "whole", **changes)
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert (result.best_metrics, result.best_step) == (whole.best_metrics, whole.best_step)
    assert not list((tmp_path / "run").rglob(".*"))


def test_an_interrupt_in_the_last_step_ends_a_run_that_is_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", ToyTask(interrupt_at=8))
    assert "step 8 of 8 is saved" in capfd.readouterr().err
    run(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_a_second_interrupt_stops_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", ToyTask(interrupt_at=7, again_at=8), accumulate=3, checkpoint_every=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert saved_step(tmp_path / "run") == 2
    assert "step 2 of 8 is saved" in capfd.readouterr().err
    assert not list((tmp_path / "run").rglob(".*"))


def test_an_interrupt_while_validating_saves_the_step_with_its_validation(tmp_path: Path) -> None:
    class Interrupted(ToyTask):
        def validate(self, *args: Any) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().validate(*args)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Interrupted())
    assert saved_step(tmp_path / "run") == 4
    run(tmp_path / "run", resume=True)
    run(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_an_interrupt_before_anything_is_saved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", ToyTask(interrupt_at=1, again_at=2), accumulate=2)
    said = capfd.readouterr().err
    assert "nothing is saved yet; --resume starts from the beginning" in said
    assert not (tmp_path / "run" / "checkpoints" / "last.pth").exists()
    run(tmp_path / "run", resume=True, accumulate=2)
    run(tmp_path / "whole", accumulate=2)
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_an_interrupt_of_a_process_with_a_loader(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the loader's processes as well."""
    arguments = [sys.executable, str(SCRIPT), str(tmp_path / "run"), json.dumps(SMALL | {"workers": 2, "steps": 10**6, "log_every": 1})]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("step ")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode in (-signal.SIGINT, 130), said
    assert "--resume" in said
    assert "DataLoader" not in said
    step = saved_step(tmp_path / "run")
    assert f"step {step:,} of 1,000,000 is saved" in said
    assert max(record["step"] for record in records(tmp_path / "run")) == step


def test_in_another_thread_training_works_as_ever(tmp_path: Path) -> None:
    """Only the main thread may say what a signal does."""
    thread = threading.Thread(target=run, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert saved_step(tmp_path / "run") == 8


def test_a_handler_of_the_caller_stays(tmp_path: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        result = run(tmp_path / "run", ToyTask(interrupt_at=3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (seen, result.steps_done) == ([1], 8)


# --- longer runs ---


def test_a_finished_run_is_lengthened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "run")
    before = records(tmp_path / "run")
    capfd.readouterr()
    result = run(tmp_path / "run", resume=True, steps=12)
    said = capfd.readouterr().err
    assert "lengthened from 8 to 12 steps" in said
    assert "learning rate" in said
    assert (result.steps_done, saved_step(tmp_path / "run")) == (12, 12)
    assert result.best_metrics["loss"] <= first.best_metrics["loss"]
    after = records(tmp_path / "run")
    assert after[: len(before)] == before
    settings = TrainingSettings(**(SMALL | {"steps": 12}))
    rates = {record["step"]: record["learning_rate"] for record in after if "loss" in record}
    assert [rates[step + 1] for step in range(8, 12)] == pytest.approx([cosine(step, 12, settings) for step in range(8, 12)])
    assert load_settings(tmp_path / "run" / "settings.yaml", TrainingSettings).steps == 12
    assert run(tmp_path / "run", resume=True, steps=12) == result


def test_a_run_that_is_under_way_is_lengthened(tmp_path: Path) -> None:
    """With a schedule that does not depend on the length, it is the run that was longer from the start."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", ToyTask(interrupt_at=3), schedule="constant")
    run(tmp_path / "run", resume=True, steps=12, schedule="constant")
    run(tmp_path / "whole", steps=12, schedule="constant")
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_epochs_may_grow_too(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=None, epochs=1)
    assert run(tmp_path / "run", resume=True, steps=None, epochs=1.5).steps_done == 14


@pytest.mark.parametrize("changes", [{"steps": 4}, {"steps": None, "epochs": 20}])
def test_a_run_is_not_shortened(changes: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = records(tmp_path / "run")
    with pytest.raises(InputError, match=r"steps was 8 and is (4 \(it may only grow\)|None)") as caught:
        run(tmp_path / "run", resume=True, **changes)
    assert "\n" not in str(caught.value)
    assert records(tmp_path / "run") == before
    assert load_settings(tmp_path / "run" / "settings.yaml", TrainingSettings).steps == 8


def test_resuming_what_has_ended_says_how_to_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run")
    capfd.readouterr()
    run(tmp_path / "run", resume=True)
    assert "all 8 steps are done; to go on, give more: --set training.steps=" in capfd.readouterr().err

    class Worsening(ToyTask):
        def validate(self, *args: Any) -> dict[str, float]:
            self.passed = getattr(self, "passed", 0) + 1
            return {"loss": float(self.passed)}

    early = {"steps": 50, "validate_every": 1, "early_stopping": 2}
    assert run(tmp_path / "early", Worsening(), **early).stopped_early
    capfd.readouterr()
    assert run(tmp_path / "early", Worsening(), resume=True, **early).steps_done == 3
    assert "stopped at step 3 of 50" in (said := capfd.readouterr().err)
    assert "--set training.early_stopping=" in said
    assert run(tmp_path / "early", Worsening(), resume=True, **(early | {"early_stopping": None})).steps_done == 50
