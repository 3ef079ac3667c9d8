"""The demo: its folders, its refusal to overwrite, and (slow) what it reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

import vsuite.medical.demo as demo
from vsuite.core.errors import InputError
from vsuite.medical.demo import run_demo

SHORT = ["training.steps=2", "training.validate_every=2", "plan.patch_size=[16, 16, 16]", "validation.overlap=0"]


@pytest.fixture
def short(monkeypatch) -> None:
    """Fewer and smaller cases, two steps."""
    make, resolve = demo.make_demo_dataset, demo.resolve_settings
    monkeypatch.setattr(
        demo, "make_demo_dataset", lambda folder, *, seed, **_: make(folder, cases=3, test_cases=2, size=(24, 28, 16), seed=seed)
    )
    monkeypatch.setattr(demo, "resolve_settings", lambda overrides=(), **given: resolve(overrides=[*overrides, *SHORT], **given))


def test_it_goes_the_whole_way(short, tmp_path: Path) -> None:
    said: list[str] = []
    found = run_demo(tmp_path / "demo", seed=3, say=said.append)
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["data", "evaluation", "predictions", "run"]
    assert [case.name for case in found.cases] == ["phantom_9000", "phantom_9001"]
    assert not found.failed
    assert 0 <= found.mean_dice <= 1
    assert f"mean Dice on cases not trained on: {found.mean_dice:.3f}" in said[-2]
    for report in (tmp_path / "demo" / "evaluation" / "report.html", tmp_path / "demo" / "run" / "report.html"):
        assert str(report) in said[-1]
        assert report.stat().st_size > 1000
    assert "seed: 3" in (tmp_path / "demo" / "run" / "settings.yaml").read_text()
    with pytest.raises(InputError, match="holds an earlier demo; --overwrite starts anew"):
        run_demo(tmp_path / "demo")
    again = run_demo(tmp_path / "demo", seed=3, overwrite=True, say=lambda line: None)
    assert again.mean_dice == found.mean_dice, "the same seed gives the same result"


def test_overwriting_leaves_other_files_alone(short, tmp_path: Path) -> None:
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="earlier demo"):
        run_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "demo" / "data").exists()


@pytest.mark.slow
def test_it_reaches_a_mean_dice_above_085(tmp_path: Path) -> None:
    assert run_demo(tmp_path / "demo", say=lambda line: None).mean_dice > 0.85
