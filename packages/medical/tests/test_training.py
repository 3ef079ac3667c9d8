"""From a recipe to the settings of a run, and the task that the training loop is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from vsuite.core import create_model, save_weights
from vsuite.core.errors import InputError
from vsuite.core.training.settings import write_settings
from vsuite.medical.data.datasets import read_dataset
from vsuite.medical.data.planning import fingerprint, make_plan
from vsuite.medical.data.splits import Split
from vsuite.medical.data.training_data import IGNORE_INDEX
from vsuite.medical.demo_data import make_demo_dataset
from vsuite.medical.plan import Normalisation, Plan
from vsuite.medical.training import RunSettings, SegmentationTask, check_network, resolve_settings, start_from


@pytest.fixture
def settings_of(tiny_segformer3d):
    def make(**changes) -> RunSettings:
        plan = {"options": tiny_segformer3d, "patch_size": [16, 16, 16]}
        given = {"name": "tiny", "data": "none", "plan": plan, "training": {"steps": 1, "batch_size": 2}}
        return RunSettings.model_validate(given | changes)

    return make


@pytest.fixture
def plan_of(tiny_segformer3d):
    def make(options=(), **changes) -> Plan:
        facts = {"channels": ["T1"], "normalisation": [Normalisation()], "labels": {"background": 0, "a": 1, "b": 2}}
        given = {"patch_size": (16, 16, 16), "options": tiny_segformer3d | {"in_channels": 1, "num_classes": 3} | dict(options)}
        return Plan.model_validate(facts | given | changes)

    return make


# --- settings ---


def test_a_recipe_by_name_is_the_beginning() -> None:
    settings = resolve_settings(data="somewhere", overrides=["training.steps=7", "validation.mirror=true"])
    assert (settings.name, settings.data) == ("generic", "somewhere")
    assert (settings.training.steps, settings.validation.mirror) == (7, True)
    assert (settings.split, settings.fold, settings.folds, settings.weights) == (None, None, 5, None)
    given = resolve_settings(data=Path("x"), recipe="hippocampus", fold=2, folds=4, weights="w.safetensors")
    assert (given.name, given.fold, given.folds, given.weights) == ("hippocampus", 2, 4, "w.safetensors")


def test_a_run_settings_file_gives_the_same_run(tmp_path: Path) -> None:
    settings = resolve_settings(data="somewhere", recipe="hippocampus", fold=1, overrides=["training.seed=5"])
    write_settings(settings, tmp_path / "settings.yaml")
    assert resolve_settings(config=tmp_path / "settings.yaml") == settings
    moved = resolve_settings(config=tmp_path / "settings.yaml", data="elsewhere", overrides=["training.workers=2"])
    assert (moved.data, moved.fold, moved.training.workers) == ("elsewhere", 1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no data set is named"),
        ({"data": "x", "recipe": "generik"}, "did you mean 'generic'"),
        ({"data": "x", "recipe": "generic", "config": "y.yaml"}, "either a recipe or a settings file"),
        ({"data": "x", "config": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
        ({"data": "x", "overrides": ["training.stepz=3"]}, r"did you mean 'training\.steps'"),
        ({"data": "x", "overrides": ["training.steps"]}, "name=value"),
        ({"data": "x", "overrides": ["name.inner=3"]}, "'name' holds a value"),
        ({"data": "x", "overrides": ["training.epochs=3"]}, "either steps or epochs"),
        ({"data": "x", "folds": 1}, "folds"),
        ({"data": ""}, "data"),
        ({"data": "x", "fould": 1}, "'fould'.*did you mean 'fold"),
    ],
)
def test_what_is_wrong_is_one_line(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve_settings(**given)
    assert "\n" not in str(caught.value)


def test_a_settings_file_may_leave_the_data_set_open(tmp_path: Path, settings_of) -> None:
    content = settings_of().model_dump(mode="json")
    del content["data"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    assert resolve_settings(config=tmp_path / "own.yaml", data="here").data == "here"
    with pytest.raises(InputError, match=r"own\.yaml: data"):
        resolve_settings(config=tmp_path / "own.yaml")


# --- before a run ---


def test_a_network_that_fits_is_let_through(plan_of, settings_of) -> None:
    check_network(plan_of(), settings_of())


@pytest.mark.parametrize(
    ("changes", "batch_size", "message"),
    [
        ({}, 1, "cannot be trained on 1 patch of 1 x 16 x 16 x 16"),
        ({"options": {"in_channels": 2}}, 2, "cannot be trained on 2 patches"),
        ({"options": {"num_classes": 4}}, 2, "has 4 outputs, the labels need 3"),
        ({"options": {"depthz": [1]}}, 2, "'depthz'"),
        ({"model": "segformer5d"}, 2, "did you mean 'segformer3d'"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(changes: dict, batch_size: int, message: str, plan_of, settings_of) -> None:
    with pytest.raises(InputError, match=message):
        check_network(plan_of(**changes), settings_of(training={"steps": 1, "batch_size": batch_size}))


def test_advice_on_sizes_is_given_for_sizes_alone(plan_of, settings_of) -> None:
    with pytest.raises(InputError, match="try larger patches or batches"):
        check_network(plan_of(), settings_of(training={"steps": 1, "batch_size": 1}))
    with pytest.raises(InputError) as wrong:
        check_network(plan_of({"attention_scale": "other"}), settings_of(training={"steps": 1, "batch_size": 2}))
    assert "try larger" not in str(wrong.value)


def test_starting_from_weights_keeps_all_but_the_classifier(tmp_path: Path, tiny_segformer3d) -> None:
    torch.manual_seed(0)
    source = create_model("segformer3d", in_channels=1, num_classes=3, **tiny_segformer3d)
    save_weights(source, tmp_path / "w.safetensors")
    target, said = create_model("segformer3d", in_channels=1, num_classes=5, **tiny_segformer3d), []
    before = {name: value.clone() for name, value in target.state_dict().items()}
    start_from(target, tmp_path / "w.safetensors", say=said.append)
    for name, value in target.state_dict().items():
        other = source.state_dict()[name]
        wanted = other if other.shape == value.shape else before[name]
        assert torch.equal(value, wanted), name
    assert len(said) == 1
    assert "left as initialised" in said[0]
    same, said = create_model("segformer3d", in_channels=1, num_classes=3, **tiny_segformer3d), []
    start_from(same, tmp_path / "w.safetensors", say=said.append)
    assert said == []


def test_starting_from_another_model_is_refused(tmp_path: Path, tiny_segformer3d) -> None:
    target = create_model("segformer3d", in_channels=1, num_classes=3, **tiny_segformer3d)
    save_weights(torch.nn.Conv3d(1, 3, 3), tmp_path / "conv.pth")
    with pytest.raises(InputError, match=r"conv\.pth: does not fit"):
        start_from(target, tmp_path / "conv.pth")


# --- the task ---


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory):
    folder = make_demo_dataset(tmp_path_factory.mktemp("data") / "d", cases=3, test_cases=0, size=(24, 28, 16))
    return read_dataset(folder)


@pytest.fixture
def task(description, settings_of, tmp_path_factory: pytest.TempPathFactory) -> SegmentationTask:
    settings = settings_of(validation={"overlap": 0})
    plan = make_plan(description, fingerprint(description, progress=False), settings.plan)
    names = [case.name for case in description.training]
    return SegmentationTask(settings, plan, description, Split(names[:2], names[2:]), tmp_path_factory.mktemp("prepared"))


def test_a_perfect_network_has_nearly_no_loss(task: SegmentationTask) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (2, 1, 16, 16, 16), generator=generator)
    perfect = torch.nn.functional.one_hot(label[:, 0], 5).movedim(-1, 1).float() * 50
    batch = {"image": torch.zeros(2, 1, 16, 16, 16), "label": label}

    def loss(logits: torch.Tensor) -> float:
        return float(sum(task.loss(lambda image: logits, batch).values()))  # type: ignore[arg-type]

    assert loss(perfect) < 1e-3 < 0.5 < loss(torch.zeros_like(perfect)) < loss(-perfect)


def test_validation_scores_in_the_grid_of_the_file(task: SegmentationTask) -> None:
    model = task.build_model().eval()
    with torch.no_grad():
        found = task.validate(model, torch.device("cpu"), 0, 1)
    assert set(found) == {"dice", *(f"dice/{name}" for name in ("lobes", "ventricle", "stem", "lesion"))}
    assert all(0 <= value <= 1 for value in found.values())
    item = task.validation[0]
    assert item.label.array.shape[1:] == item.image.array.shape[1:]


def test_the_task_notes_the_plan_beside_the_weights(task: SegmentationTask) -> None:
    note = json.loads(json.dumps(task.metadata()))
    assert Plan.model_validate(note["plan"]) == task.plan
    assert note["recipe"] == "tiny"
    assert IGNORE_INDEX < 0
