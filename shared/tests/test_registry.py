from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from vsuite.core import InputError, PublishedResult, create_model, list_models, model_info, register_model, registry, save_weights


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registry with three toy models and nothing else."""
    monkeypatch.setattr(registry, "_MODELS", {})
    monkeypatch.setattr(registry, "load_plugins", lambda: None)
    shipped = tmp_path / "shipped.safetensors"

    @register_model(
        system="toy",
        task="classification",
        paper="none",
        licence="none",
        published=[PublishedResult("digits", "accuracy", 99.0, "%")],
        weights={"digits": shipped},
    )
    def toy_tiny(*, in_channels: int = 3, num_classes: int = 10, hidden: int = 4) -> nn.Module:
        """The smallest toy.

        More words.
        """
        return nn.Sequential(nn.Linear(in_channels, hidden), nn.Linear(hidden, num_classes))

    @register_model(system="toy", task="classification", paper="none", licence="none")
    def toy_base(*, num_classes: int = 10) -> nn.Module:
        return nn.Linear(3, num_classes)

    @register_model(system="other", task="segmentation", paper="none", licence="none")
    def other(*, num_classes: int = 2) -> nn.Module:
        """Another."""
        return nn.Linear(3, num_classes)

    save_weights(create_model("toy_tiny", num_classes=7), shipped)


def test_list_models_by_wildcard_system_task_and_weights() -> None:
    assert list_models() == ["other", "toy_base", "toy_tiny"]
    assert list_models("toy_*") == ["toy_base", "toy_tiny"]
    assert list_models("*_t?ny") == ["toy_tiny"]
    assert list_models("nothing*") == []
    assert list_models(system="other") == ["other"]
    assert list_models(task="classification") == ["toy_base", "toy_tiny"]
    assert list_models("*", task="classification", with_weights=True) == ["toy_tiny"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [({"system": "toi"}, "'toy'"), ({"task": "segmentaton"}, "'segmentation'"), ({"task": "classify"}, "'classification'")],
)
def test_list_models_of_an_unknown_system_or_task(wrong: dict[str, str], near: str) -> None:
    with pytest.raises(InputError, match=near):
        list_models(**wrong)  # type: ignore[arg-type]


def test_model_info() -> None:
    info = model_info("toy_tiny")
    assert (info.name, info.system, info.task, info.summary) == ("toy_tiny", "toy", "classification", "The smallest toy.")
    assert info.options == {"in_channels": 3, "num_classes": 10, "hidden": 4}
    assert info.published == (PublishedResult("digits", "accuracy", 99.0, "%"),)
    assert list(info.weights) == ["digits"]
    assert model_info("toy_base").summary == ""


def test_a_name_is_registered_once() -> None:
    with pytest.raises(InputError, match=r"'other' is registered twice: by .*test_registry.* and by"):

        @register_model(system="x", task="x", paper="", licence="")
        def other(*, num_classes: int = 2) -> nn.Module:
            return nn.Identity()

    assert model_info("other").system == "other"


def test_options_of_a_builder_must_be_explicit_keywords() -> None:
    with pytest.raises(InputError, match="keyword-only"):

        @register_model(system="x", task="x", paper="", licence="")
        def positional(num_classes: int = 2) -> nn.Module:
            return nn.Identity()

    with pytest.raises(InputError, match="keyword-only"):

        @register_model(system="x", task="x", paper="", licence="")
        def anything(**options: int) -> nn.Module:
            return nn.Identity()

    assert "positional" not in list_models()


def test_the_decorated_builder_stays_usable() -> None:
    builder = model_info("other").builder
    assert builder(num_classes=5).out_features == 5


def test_create_model_passes_options() -> None:
    model = create_model("toy_tiny", num_classes=5, in_channels=2, hidden=6)
    assert [tuple(p.shape) for p in model.parameters()] == [(6, 2), (6,), (5, 6), (5,)]
    assert model.built_from == {"model": "toy_tiny", "options": {"num_classes": 5, "in_channels": 2, "hidden": 6}}
    assert create_model("toy_tiny")[1].out_features == 10


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("toy_tinny", {}, "unknown model 'toy_tinny'; did you mean 'toy_tiny'"),
        ("toy_tiny", {"hiden": 3}, "unknown option of toy_tiny 'hiden'; did you mean 'hidden'"),
        ("other", {"in_channels": 3}, "unknown option of other 'in_channels'"),
        ("toy_tiny", {"weights": "digit"}, r"unknown weights of toy_tiny \(and no such file\) 'digit'; did you mean 'digits'"),
        ("other", {"weights": "digits"}, "there is none"),
    ],
)
def test_unknown_names_and_options(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model(name, **options)


def test_a_folder_does_not_hide_shipped_weights_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert create_model("toy_tiny", weights="digits")[1].out_features == 7


def test_shipped_weights_bring_their_options() -> None:
    model = create_model("toy_tiny", weights="digits")
    assert model[1].out_features == 7
    saved = model_info("toy_tiny").weights["digits"]
    again = create_model("toy_tiny", weights=saved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match=r"1\.weight \[7, 4\] instead of \[8, 4\]"):
        create_model("toy_tiny", weights="digits", num_classes=8)


def test_weights_of_another_model() -> None:
    saved = model_info("toy_tiny").weights["digits"]
    with pytest.raises(InputError, match="holds weights of 'toy_tiny', not of 'other'"):
        create_model("other", weights=saved)


def test_weights_with_options_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(create_model("other"), path, metadata={"options": {"num_class": 2}})
    with pytest.raises(InputError, match="unknown option of other 'num_class'; did you mean 'num_classes'"):
        create_model("other", weights=path)


def test_weights_as_a_state_dict() -> None:
    state = create_model("other").state_dict()
    assert torch.equal(create_model("other", weights=state).weight, state["weight"])


def test_a_broken_plug_in_warns_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    entries = [
        importlib.metadata.EntryPoint("broken", "no_such_module_anywhere", "vsuite.models"),
        importlib.metadata.EntryPoint("sound", "json", "vsuite.models"),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    with pytest.warns(UserWarning, match=r"models of 'broken' \(no_such_module_anywhere\) could not be loaded"):
        registry.load_plugins.__wrapped__()
