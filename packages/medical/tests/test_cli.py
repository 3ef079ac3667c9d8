"""The commands and options of `vsuite-medical`, and what they hand on."""

from __future__ import annotations

from pathlib import Path

import pytest

import vsuite.medical.training as training
from vsuite.core.cli.app import run
from vsuite.core.training import TrainingResult
from vsuite.core.training.settings import write_settings
from vsuite.medical.cli import app
from vsuite.medical.training import resolve_settings


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        run(app, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_help_names_every_command(capsys) -> None:
    code, out, _ = invoke(capsys, "--help")
    assert code == 0
    assert all(f"  {name} " in out for name in ("train", "predict", "evaluate", "export", "demo"))
    assert invoke(capsys)[1] == out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", "data recipe out config model weights split fold folds device precision batch-size seed resume set"),
        (
            "predict",
            "weights out device precision batch-size overlap blend mirror probabilities nearest largest-component resume overwrite",
        ),
        ("evaluate", "data out labels convention nsd-tolerance images pictures no-pictures missing-as-empty"),
        ("export", "weights out format overlap blend dynamic-size overwrite"),
        ("demo", "out seed overwrite"),
    ],
)
def test_every_command_has_its_options(command: str, options: str, capsys) -> None:
    code, out, _ = invoke(capsys, command, "--help")
    assert code == 0
    missing = [name for name in options.split() if f"--{name}" not in out]
    assert not missing


def test_the_version_is_the_distributions(capsys) -> None:
    from vsuite.medical import __version__

    assert invoke(capsys, "--version")[:2] == (0, f"vsuite-medical {__version__}\n")


@pytest.fixture
def trained(monkeypatch):
    """Calls of `train`, instead of training."""
    calls = []

    def note(settings, out, **options):
        calls.append((settings, Path(out), options))
        return TrainingResult(Path(out), Path(out) / "best.safetensors", {"dice": 0.5}, best_step=3, steps_done=4, stopped_early=False)

    monkeypatch.setattr(training, "train", note)
    return calls


def test_train_hands_on_what_was_given(trained, capsys, tmp_path) -> None:
    code, out, err = invoke(
        capsys, "train", "--data", tmp_path / "Task04", "--recipe", "hippocampus", "--seed", 3, "--batch-size", 2,
        "--set", "training.seed=9", "--fold", 1, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    ((settings, folder, options),) = trained
    assert folder == Path("runs/Task04-hippocampus")
    assert options == {"device": "cpu", "resume": False}
    assert (settings.training.batch_size, settings.fold, settings.data) == (2, 1, str(tmp_path / "Task04"))
    assert settings.training.seed == 9, "--set comes last"
    assert "dice 0.5000 (step 3 of 4)" in out
    assert "vsuite-medical predict --weights runs/Task04-hippocampus/best.safetensors" in out


def test_resuming_needs_the_folder_alone(trained, capsys, tmp_path) -> None:
    settings = resolve_settings(data="somewhere", recipe="hippocampus", overrides=["training.seed=5"])
    write_settings(settings, tmp_path / "run" / "settings.yaml")
    assert invoke(capsys, "train", "--resume", "--out", tmp_path / "run")[0] == 0
    assert trained[0][0] == settings
    assert trained[0][1:] == (tmp_path / "run", {"device": "auto", "resume": True})


def test_usage_errors_are_one_line(capsys) -> None:
    for arguments in (("predict",), ("predict", "x.nii.gz"), ("evaluate", "x"), ("export",), ("trian",), ("train", "--fold", "x")):
        code, _, err = invoke(capsys, *arguments)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
