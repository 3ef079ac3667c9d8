"""Settings: what is wrong is named, and what was written comes back. Schedules: the right rate at every step."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from vsuite.core.errors import InputError
from vsuite.core.training import TrainingSettings, apply_overrides, load_settings, register_schedule, write_settings
from vsuite.core.training.schedules import get_schedule
from vsuite.core.training.settings import MAY_CHANGE, find_changes, keep_settings


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: str = Field("here", json_schema_extra=MAY_CHANGE)
    window: tuple[int, int] = (8, 8)
    training: TrainingSettings = TrainingSettings(steps=10)
    second: TrainingSettings | None = None


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windwo: [4, 4]", "unknown setting 'windwo'; did you mean 'window'?"),
        ("training: {steps: 5, learnig_rate: 1}", "unknown setting 'training.learnig_rate'; did you mean 'training.learning_rate'?"),
        ("second: {steps: 5, batchsize: 1}", "unknown setting 'second.batchsize'; did you mean 'second.batch_size'?"),
        ("weight_decay: 0.1", "unknown setting 'weight_decay'; did you mean 'training.weight_decay' or 'second.weight_decay'?"),
        ("training: {steps: 0}", "training.steps: Input should be greater than or equal to 1; got 0"),
        ("training: {steps: many}", "training.steps: "),
        ("training: {epochs: .inf}", "training.epochs: Input should be a finite number; got inf"),
        ("training: {steps: 5, epochs: 2}", "training: give either steps or epochs"),
        ("training: {steps: 5, schedule: cosin}", "training.schedule: unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("training: {steps: 5, betas: [0.9, 1.0]}", "training.betas: must lie in [0, 1)"),
        ("- 1", "must hold settings"),
        ("a: [", "is no YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_settings(path, Outer)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_settings(tmp_path / "none.yaml", Outer)


def test_yaml_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "{steps: 5, learning_rate: 1e-3}"), TrainingSettings).learning_rate == 1e-3


def test_overrides_reach_inside_and_leave_the_original() -> None:
    before = Outer()
    after = apply_overrides(before, ["training.steps=20", "window=[1, 2]", "second.epochs=1.5", "training.ema_decay=null"])
    assert (after.training.steps, after.window, after.training.ema_decay) == (20, (1, 2), None)
    assert after.second is not None
    assert after.second.epochs == 1.5
    assert before.training.steps == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", "did you mean 'training.learning_rate'?"),
        ("trainin.steps=1", "did you mean 'training'?"),
        ("training.steps", "written name=value"),
        ("data.x=1", "'data' holds a value"),
        ("window=[", "no YAML value"),
    ],
)
def test_wrong_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides(Outer(), [override])
    assert message in str(caught.value)


@settings(max_examples=25)
@given(
    learning_rate=st.floats(1e-12, 1e6),
    decay=st.none() | st.floats(0.5, 0.9999),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    data=st.text(max_size=20),
)
def test_written_settings_come_back(learning_rate: float, decay: float | None, betas: tuple[float, float], data: str) -> None:
    import tempfile

    training = TrainingSettings(epochs=3, learning_rate=learning_rate, ema_decay=decay, betas=betas)
    outer = Outer(training=training, data=data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        write_settings(outer, path)
        again = load_settings(path, Outer)
    assert again == outer
    assert list(find_changes(again, outer.model_dump(mode="json"))) == []


def test_a_run_resumes_with_its_own_settings_only(tmp_path: Path) -> None:
    keep_settings(Outer(), tmp_path, resume=False)
    with pytest.raises(InputError, match="holds a run already"):
        keep_settings(Outer(), tmp_path, resume=False)
    changed = apply_overrides(Outer(), ["training.learning_rate=1", "training.workers=3", "data=there"])
    with pytest.raises(InputError, match=r"but training.learning_rate was 0.001 and is 1.0$"):
        keep_settings(changed, tmp_path, resume=True)
    allowed = apply_overrides(Outer(), ["training.workers=3", "data=there"])
    keep_settings(allowed, tmp_path, resume=True)
    assert load_settings(tmp_path / "settings.yaml", Outer) == allowed


def test_epochs_become_steps() -> None:
    settings = TrainingSettings(epochs=2, batch_size=4, accumulate=2)
    assert settings.total_steps(37) == math.ceil(74 / 8)
    assert settings.total_steps(37, world_size=2) == math.ceil(74 / 16)


def test_cosine_rises_then_falls_to_the_minimum() -> None:
    settings = TrainingSettings(steps=101, learning_rate=1.0, warmup_steps=20, min_learning_rate=0.1)
    rates = [get_schedule("cosine")(step, 101, settings) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 21)
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half-way down
    assert rates[100] == pytest.approx(0.1)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_one_cycle_is_torchs() -> None:
    settings = TrainingSettings(steps=50, learning_rate=2e-3, schedule="one_cycle")
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=50, final_div_factor=1e12, cycle_momentum=False)
    for step in range(50):
        assert get_schedule("one_cycle")(step, 50, settings) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-14)
        optimiser.step()
        if step < 49:
            theirs.step()


def test_a_short_run_does_not_end_in_its_warm_up() -> None:
    short = TrainingSettings(steps=40, learning_rate=1.0, warmup_steps=500)
    for name in ("cosine", "constant", "one_cycle"):
        assert get_schedule(name)(19, 40, short) > 0.9


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "constant"])
@settings(max_examples=30)
@given(total=st.integers(1, 300), warmup=st.integers(0, 400))
def test_every_schedule_stays_in_range(name: str, total: int, warmup: int) -> None:
    chosen = TrainingSettings(steps=total, learning_rate=1.0, warmup_steps=warmup, min_learning_rate=0.01)
    assert all(0 < get_schedule(name)(step, total, chosen) <= 1.0 for step in range(total))


def test_a_schedule_registers_once() -> None:
    register_schedule("test_halves")(lambda step, total_steps, settings: settings.learning_rate * 0.5**step)
    settings = TrainingSettings(steps=5, schedule="test_halves", learning_rate=1.0)
    assert get_schedule(settings.schedule)(2, 5, settings) == 0.25
    with pytest.raises(InputError, match="registered twice"):
        register_schedule("test_halves")(lambda step, total_steps, settings: 1.0)


def test_importing_settings_is_light() -> None:
    code = (
        "import sys, vsuite.core.training as t; t.TrainingSettings(steps=1); "
        "print(sorted({'torch', 'mmengine', 'matplotlib', 'cv2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
