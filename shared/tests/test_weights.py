from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, PublishedLayout, create_model, load_published, load_weights, register_model, registry, save_weights
from vsuite.core.weights import CONTAINERS, PREFIXES, read_metadata, read_options, read_state_dict, rename

ALL = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")


class Tower(nn.Module):
    def __init__(self, *, width: int = 4, depth: int = 2, num_classes: int = 3, slope: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, num_classes)
        self.slope = slope


def infer(state: dict[str, Tensor]) -> dict[str, Any]:
    depth = sum(name.startswith("layers.") and name.endswith(".weight") for name in state)
    return {"width": state["head.weight"].shape[1], "depth": depth, "num_classes": state["head.weight"].shape[0]}


LAYOUT = PublishedLayout(
    build=Tower,
    infer=infer,
    keys=("layers.0.weight", "head.weight"),
    renames=(("blk", "layers."), ("fc_out.", "head.")),
    assumed={"slope": 0.5},
)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", {})
    monkeypatch.setattr(registry, "load_plugins", lambda: None)

    @register_model(system="tower", task="classification", paper="", licence="", layout=LAYOUT)
    def tower(*, width: int = 4, depth: int = 2, num_classes: int = 3, slope: float = 0.5) -> nn.Module:
        return Tower(width=width, depth=depth, num_classes=num_classes, slope=slope)


def tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0]), "count": torch.tensor(3)}


def write(state: dict[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(state, path)
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# Reading


@pytest.mark.parametrize("suffix", ALL)
def test_every_format_reads_back(tmp_path: Path, suffix: str) -> None:
    path = write(tensors(), tmp_path / f"w{suffix}")
    assert same(read_state_dict(path), tensors())
    assert same(read_state_dict(str(path)), tensors())


def test_the_old_format_of_torch_reads_back(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(tmp_path / "w.pth"), tensors())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_open_files_read_back(tmp_path: Path, suffix: str) -> None:
    path = write(tensors(), tmp_path / f"w{suffix}")
    with path.open("rb") as file:
        assert same(read_state_dict(file), tensors())
    assert same(read_state_dict(io.BytesIO(path.read_bytes())), tensors())


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_are_opened(tmp_path: Path, container: str) -> None:
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1, "state": {0: torch.zeros(2)}}, container: tensors()}, path)
    assert same(read_state_dict(path), tensors())


def test_nested_containers_and_prefixes() -> None:
    state = {"model": {"state_dict": {f"module._orig_mod.{name}": value for name, value in tensors().items()}}}
    assert same(read_state_dict(state), tensors())


def test_averaged_weights_come_before_the_raw_ones() -> None:
    assert same(read_state_dict({"params": {"a": torch.zeros(1)}, "params_ema": tensors()}), tensors())


def test_a_container_of_any_name_is_opened_where_it_stands_alone() -> None:
    state = {"weight": torch.ones(2)}
    assert read_state_dict({"my model": state}).keys() == {"weight"}
    assert read_state_dict({"params": {"mine": state}}).keys() == {"weight"}
    assert read_state_dict({"weight": torch.ones(2)}).keys() == {"weight"}
    with pytest.raises(InputError, match="holds no tensors"):
        read_state_dict({"optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}})
    with pytest.raises(InputError, match="holds no tensors"):
        read_state_dict({"one": state, "two": state})


def test_empty_containers_are_passed_over() -> None:
    assert same(read_state_dict({"model_ema": {}, "model": tensors()}), tensors())


def test_mmengine_keeps_the_averaged_weights_under_state_dict() -> None:
    raw = {"steps": torch.tensor(3), "module.a": torch.zeros(1)}
    assert same(read_state_dict({"state_dict": tensors(), "ema_state_dict": raw}), tensors())


def test_a_container_within_itself() -> None:
    state: dict[str, Any] = dict(tensors())
    state["state_dict"] = state
    assert same(read_state_dict(state), tensors())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_goes_where_all_names_share_it(prefix: str) -> None:
    assert same(read_state_dict({prefix + name: value for name, value in tensors().items()}), tensors())
    mixed = {prefix + "a": torch.zeros(1), "b": torch.zeros(1)}
    assert same(read_state_dict(mixed), mixed)


def test_a_prefix_stays_where_the_model_has_it() -> None:
    for prefix in PREFIXES:
        model = nn.Module()
        model.add_module(prefix.rstrip("."), Tower(depth=1))
        state = {name: torch.full_like(value, 3) for name, value in model.state_dict().items()}
        assert all(name.startswith(prefix) for name in state)
        for extra in ("", "module.", "model._orig_mod."):
            nn.init.zeros_(next(model.parameters()))
            assert load_weights(model, {extra + name: value for name, value in state.items()}).problems() == ""
            assert same(dict(model.state_dict()), state | {k: v for k, v in model.state_dict().items() if k.endswith("tracked")})


def test_arrays_and_parameters_are_tensors_too() -> None:
    state = read_state_dict({"a": np.ones(3, np.float32), "b": nn.Parameter(torch.ones(2)), "note": "text", "epoch": 4})
    assert list(state) == ["a", "b"]
    assert state["a"].dtype == torch.float32


# Refusing


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_pickled_objects_are_never_executed(tmp_path: Path, suffix: str, legacy: bool) -> None:
    path, proof = tmp_path / f"w{suffix}", tmp_path / "executed"
    torch.save({"state_dict": tensors(), "extra": Payload(proof)}, path, _use_new_zipfile_serialization=not legacy)
    state = read_state_dict(path)
    assert all(torch.equal(state[name], value) for name, value in tensors().items())
    assert len(state) == len(tensors())
    with path.open("rb") as file, pytest.raises(InputError, match="never unpickled"):
        read_state_dict(file)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the payload must work for this test to mean anything"


def test_a_bare_pickle_is_never_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    for suffix in ALL:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(pickle.dumps(Payload(proof)))
        with pytest.raises(InputError):
            read_state_dict(path)
    assert not proof.exists()


def test_pickled_arrays_in_npz_are_never_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    np.savez(tmp_path / "w.npz", a=np.array([Payload(proof)], dtype=object))
    with pytest.raises(InputError, match=r"w\.npz: cannot be read as weights"):
        read_state_dict(tmp_path / "w.npz")
    assert not proof.exists()


@pytest.mark.parametrize("suffix", ALL)
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, a file is refused in one line; nothing but InputError comes out."""
    whole = write(tensors(), tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in sorted({0, 1, 7, 8, 9, *range(16, len(whole), max(1, len(whole) // 40)), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            read_state_dict(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ALL)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """With bytes changed anywhere, a file is read or refused; nothing else happens."""
    content = bytearray(write(tensors(), tmp_path / f"whole{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        read_state_dict(path)
        read_metadata(path)


@pytest.mark.parametrize("suffix", ALL)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_foreign_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_state_dict(path)


def test_foreign_archives(tmp_path: Path) -> None:
    for suffix in (".pth", ".npz"):
        with zipfile.ZipFile(tmp_path / f"w{suffix}", "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(InputError):
            read_state_dict(tmp_path / f"w{suffix}")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(InputError, match="no such file"):
        read_state_dict(tmp_path)
    (tmp_path / "w.h5").write_text("")
    with pytest.raises(InputError, match=r"w\.h5: weights must end in one of \.safetensors, \.pth"):
        read_state_dict(tmp_path / "w.h5")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth: holds a list, not a state dict"):
        read_state_dict(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(InputError, match=r"empty\.pth: holds no tensors"):
        read_state_dict(tmp_path / "empty.pth")
    np.savez(tmp_path / "text.npz", names=np.array(["a", "b"]))
    with pytest.raises(InputError, match=r"text\.npz: holds an array that is no tensor"):
        read_state_dict(tmp_path / "text.npz")


# Loading


def test_the_report_says_what_happened() -> None:
    model = Tower(depth=1)
    state = model.state_dict() | {"extra": torch.zeros(1), "head.weight": torch.zeros(5, 4)}
    del state["layers.0.bias"]
    report = load_weights(model, state, strict=False)
    assert report.unexpected == ["extra"]
    assert report.missing == ["layers.0.bias"]
    assert report.mismatched == {"head.weight": ((5, 4), (3, 4))}
    assert report.ignored == ["norm.num_batches_tracked"]
    assert set(report.loaded) == {"layers.0.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "head.bias"}
    assert report.renamed == {}
    assert report.resized == {}


def test_a_strict_error_names_everything_and_leaves_the_model() -> None:
    model = Tower(depth=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: torch.full_like(value, 7) for name, value in before.items()} | {
        "extra": torch.zeros(1),
        "head.weight": torch.zeros(5, 4),
    }
    del state["layers.0.bias"]
    with pytest.raises(InputError) as caught:
        load_weights(model, state)
    assert str(caught.value) == (
        "the given weights: does not fit Tower: 1 missing: layers.0.bias; 1 left over: extra; "
        "1 of another shape: head.weight [5, 4] instead of [3, 4]"
    )
    assert same(dict(model.state_dict()), before)


def test_many_names_are_shortened() -> None:
    with pytest.raises(InputError, match=r"16 missing: .*, and 12 more; 1 left over: x$"):
        load_weights(Tower(depth=5), {"x": torch.zeros(1)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float) -> None:
    model = Tower()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["head.bias"][1] = value
    with pytest.raises(InputError, match=r"NaN or infinite values in head\.bias"):
        load_weights(model, state)
    assert torch.isfinite(model.head.bias).all()


def test_weights_take_the_precision_of_the_model() -> None:
    model = Tower()
    load_weights(model, {name: torch.full_like(value, 0.5).half() for name, value in Tower().state_dict().items()})
    assert model.head.weight.dtype == torch.float32
    assert (model.head.weight == 0.5).all()


# Saving


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_saved_weights_load_into_an_equal_model(tmp_path: Path, models: None, suffix: str) -> None:
    model, path = create_model("tower", width=6, num_classes=5), tmp_path / f"w{suffix}"
    save_weights(model, path)
    again = create_model("tower", width=6, num_classes=5, weights=path)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    found = load_published(path)
    assert same(dict(found.state_dict()), dict(model.state_dict()))
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_carry_the_options_and_the_callers_facts(tmp_path: Path, models: None) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(create_model("tower", depth=1, slope=0.1), path, metadata={"plan": {"spacing": [1, 2.5]}})
    assert read_metadata(path) == {"model": "tower", "options": {"depth": 1, "slope": 0.1}, "plan": {"spacing": [1, 2.5]}}
    assert read_options(path, "tower") == {"depth": 1, "slope": 0.1}
    assert load_published(path).slope == 0.1
    assert read_metadata(write(tensors(), tmp_path / "foreign.safetensors")) == {}
    assert read_metadata(write(tensors(), tmp_path / "w.pth")) == {}


@pytest.mark.parametrize(
    "note",
    [
        "[]",
        "3",
        '{"options": 3}',
        "{",
        '{"model": "tower", "options": {"dept": 1}}',
        '{"model": 3}',
        '{"system": []}',
        '{"system": "tower", "options": {"width": "x"}}',
        '{"system": "tower", "options": {"width": -1}}',
        '{"model": "tower", "options": {"width": "x"}}',
    ],
)
def test_damaged_notes(tmp_path: Path, models: None, note: str) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(dict(Tower().state_dict()), path, metadata={"vsuite": note})
    with pytest.raises(InputError) as caught:
        load_published(path)
    assert "\n" not in str(caught.value)


def test_half_precision_files(tmp_path: Path) -> None:
    model, path = Tower(), tmp_path / "w.safetensors"
    save_weights(model, path, dtype=torch.float16)
    state = read_state_dict(path)
    assert state["head.weight"].dtype == torch.float16
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    torch.testing.assert_close(state["head.weight"].float(), model.head.weight.detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_type_that_cannot_hold_the_values_is_refused(tmp_path: Path, suffix: str) -> None:
    model = nn.Linear(2, 2)
    model.bias.data = torch.tensor([1.0, 7e4])
    with pytest.raises(InputError, match=r"bias holds values up to 7e\+04, more than torch\.float16 can hold"):
        save_weights(model, tmp_path / f"w{suffix}", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    save_weights(model, tmp_path / f"w{suffix}", dtype=torch.bfloat16)
    model.bias.data[1] = float("inf")  # what was infinite before stays so: reading says it
    save_weights(model, tmp_path / f"w{suffix}", dtype=torch.float16)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["1.weight"], model[0].weight)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.npz: weights are saved as \.safetensors"):
        save_weights(Tower(), tmp_path / "w.npz")
    assert not list(tmp_path.iterdir())


# Published checkpoints


@pytest.mark.parametrize("suffix", ALL)
def test_published_names_and_sizes_are_understood(tmp_path: Path, models: None, suffix: str) -> None:
    model = Tower(width=5, depth=3, num_classes=2)
    published = rename({k: v.contiguous() for k, v in model.state_dict().items()}, LAYOUT, to_published=True)
    assert {"blk0.weight", "fc_out.bias", "norm.weight"} < set(published)
    found = load_published(write(published, tmp_path / f"w{suffix}"))
    assert same(dict(found.state_dict()), dict(model.state_dict()))
    assert found.built_from["system"] == "tower"
    assert found.built_from["assumed"] == {"slope": 0.5}
    target = create_model("tower", width=5, depth=3, num_classes=2)
    assert load_weights(target, published).renamed["blk2.bias"] == "layers.2.bias"
    assert same(dict(target.state_dict()), dict(model.state_dict()))


def test_published_saves_read_back_with_the_authors_names(tmp_path: Path, models: None) -> None:
    path = tmp_path / "w.pth"
    for model in (create_model("tower"), load_published(Tower().state_dict())):
        save_weights(model, path, published=True)
        assert "fc_out.weight" in torch.load(path, weights_only=True)
        assert same(dict(load_published(path).state_dict()), dict(model.state_dict()))


def test_options_given_to_load_published_are_kept_with_the_weights(tmp_path: Path, models: None) -> None:
    model = load_published(Tower(depth=3).state_dict(), slope=0.25)
    assert model.slope == 0.25
    assert model.built_from["assumed"] == {}
    save_weights(model, tmp_path / "w.safetensors")
    assert load_published(tmp_path / "w.safetensors").slope == 0.25
    assert create_model("tower", weights=tmp_path / "w.safetensors").slope == 0.25
    with pytest.raises(InputError, match="unknown option of tower 'slop'; did you mean 'slope'"):
        load_published(Tower().state_dict(), slop=0.25)


def test_published_checkpoints_that_do_not_fit(models: None) -> None:
    with pytest.raises(InputError, match=r"the given weights: is not a checkpoint of any of tower; it holds a\.weight, a\.bias, count"):
        load_published(tensors())
    state = dict(Tower().state_dict())
    del state["norm.weight"]
    with pytest.raises(InputError, match=r"1 missing: norm\.weight"):
        load_published(state)
    with pytest.raises(InputError, match=r"1 left over: other"):
        load_published(Tower().state_dict() | {"other": torch.zeros(1)})
    with pytest.raises(InputError, match="did you mean 'tower'"):
        load_published(Tower().state_dict(), system="towr")


def test_a_checkpoint_that_fits_two_systems(models: None) -> None:
    def twin(*, width: int = 4, depth: int = 2, num_classes: int = 3, slope: float = 0.5) -> nn.Module:
        return Tower(width=width, depth=depth, num_classes=num_classes, slope=slope)

    register_model(system="twin", task="classification", paper="", licence="", layout=replace(LAYOUT, assumed={}))(twin)
    with pytest.raises(InputError, match="fits tower and twin; name one as `system`"):
        load_published(Tower().state_dict())
    assert load_published(Tower().state_dict(), system="twin").built_from["system"] == "twin"


def test_a_published_system_whose_names_share_a_prefix(models: None) -> None:
    class Wrapped(nn.Module):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.backbone = nn.Linear(width, 2)

    def wrapped(*, width: int = 4) -> nn.Module:
        return Wrapped(width)

    layout = PublishedLayout(build=Wrapped, infer=lambda state: {"width": state["backbone.weight"].shape[1]}, keys=("backbone.weight",))
    register_model(system="wrapped", task="classification", paper="", licence="", layout=layout)(wrapped)
    state = dict(Wrapped(6).state_dict())
    for extra in ("", "module."):
        found = load_published({extra + name: value for name, value in state.items()})
        assert same(dict(found.state_dict()), state)


def test_names_that_collide_for_one_system_leave_the_others(models: None) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blk0 = nn.Linear(2, 2)
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    def both() -> nn.Module:
        return Both()

    layout = PublishedLayout(build=Both, infer=lambda state: {}, keys=("blk0.weight",))
    register_model(system="both", task="classification", paper="", licence="", layout=layout)(both)
    assert isinstance(load_published(Both().state_dict()), Both)


def test_a_file_of_ours_is_of_its_own_system_only(tmp_path: Path, models: None) -> None:
    save_weights(create_model("tower"), tmp_path / "named.safetensors")
    save_weights(load_published(Tower().state_dict()), tmp_path / "found.safetensors")
    for path in tmp_path.iterdir():
        assert isinstance(load_published(path, system="tower"), Tower)
        with pytest.raises(InputError, match=f"{path.name}: holds weights of 'tower', not of 'swin'"):
            load_published(path, system="swin")


def test_names_that_collide_are_refused(models: None) -> None:
    with pytest.raises(InputError, match=r"two tensors of the checkpoint map onto 'layers\.0\.weight'"):
        load_published(Tower().state_dict() | {"blk0.weight": torch.zeros(4, 4)})


@given(
    st.lists(
        st.tuples(st.sampled_from(["blk", "norm", "fc_out", "stem"]), st.integers(0, 99), st.sampled_from(["weight", "bias"])), unique=True
    )
)
def test_renaming_goes_both_ways(parts: list[tuple[str, int, str]]) -> None:
    published = {f"{part}{i}.{leaf}" if part == "blk" else f"{part}.{i}.{leaf}": i for part, i, leaf in parts}
    ours = rename(published, LAYOUT)
    assert not any("blk" in name or "fc_out" in name for name in ours)
    assert rename(ours, LAYOUT, to_published=True) == published
