"""Files of weights that are none, are another model's, or would run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vsuite.core import save_weights
from vsuite.core.weights import read_metadata


class Code:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def resaved(weights: Path, path: Path, **changes) -> None:
    """The same tensors with another note beside them."""
    import json

    note = read_metadata(weights) | changes
    safetensors.torch.save_file(safetensors.torch.load_file(weights), path, metadata={"vsuite": json.dumps(note)})


MAKE = {
    "missing.safetensors": (lambda good, path: None, "no such file"),
    "empty.safetensors": (lambda good, path: path.write_bytes(b""), "cannot be read as weights"),
    "text.safetensors": (lambda good, path: path.write_text("hello"), "cannot be read as weights"),
    "cut.safetensors": (lambda good, path: path.write_bytes(good.read_bytes()[:5000]), "cannot be read as weights"),
    "other.safetensors": (lambda good, path: save_weights(torch.nn.Conv3d(1, 2, 3), path), "holds no plan"),
    "foreign.pth": (lambda good, path: torch.save({"state_dict": torch.nn.Conv3d(1, 2, 3).state_dict()}, path), "holds no plan"),
    "damaged-plan.safetensors": (lambda good, path: resaved(good, path, plan={"channels": []}), "its plan is damaged"),
    "unknown-model.safetensors": (
        lambda good, path: resaved(good, path, model="segformer4d"),
        "unknown model 'segformer4d'; did you mean 'segformer3d'",
    ),
    "other-size.safetensors": (lambda good, path: resaved(good, path, options={"in_channels": 9, "num_classes": 3}), "does not fit"),
    "no-ending": (lambda good, path: path.write_bytes(good.read_bytes()), ""),
    "a-folder": (lambda good, path: path.mkdir(), ""),
}


@pytest.mark.parametrize("name", MAKE)
def test_predicting_with_bad_weights(name, predict, save, weights, tmp_path):
    make, message = MAKE[name]
    make(weights, tmp_path / name)
    predict(save(tmp_path / "in" / "x.nii.gz"), weights=tmp_path / name).refused(*([] if name.startswith("unknown") else [name]), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["empty.safetensors", "cut.safetensors", "other.safetensors", "foreign.pth"])
def test_starting_from_bad_weights(name, train, weights, tmp_path):
    MAKE[name][0](weights, tmp_path / name)
    train("--weights", tmp_path / name).refused(name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["empty.safetensors", "cut.safetensors", "other.safetensors", "a-folder"])
def test_exporting_bad_weights(name, invoke, weights, tmp_path):
    MAKE[name][0](weights, tmp_path / name)
    invoke("export", "--weights", tmp_path / name, "--out", tmp_path / "bundle").refused(name)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("protocol", ["plain", "torch"])
def test_code_in_a_pickle_is_never_run(protocol, predict, train, save, tmp_path):
    path, proof = tmp_path / "code.pth", tmp_path / "proof"
    if protocol == "plain":
        path.write_bytes(pickle.dumps(Code(proof)))
    else:
        torch.save({"state_dict": Code(proof)}, path)
    predict(save(tmp_path / "in" / "x.nii.gz"), weights=path).refused("code.pth")
    train("--weights", path).refused("code.pth")
    assert not proof.exists()
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_go_together(predict, save, weights, tmp_path):
    plan = read_metadata(weights)["plan"]
    resaved(weights, tmp_path / "ct.safetensors", plan=plan | {"spacing": [3, 3, 3]})
    finished = predict("--weights", tmp_path / "ct.safetensors", save(tmp_path / "in" / "x.nii.gz"))
    finished.refused("ct.safetensors: does not go with the first model of the ensemble: spacing differ")


def test_a_wrong_name_of_shipped_weights(predict, save, tmp_path):
    predict(save(tmp_path / "in" / "x.nii.gz"), weights=Path("hipocampus")).refused("unknown weights", "'hipocampus'")


def test_a_damaged_checkpoint_is_told_on_resuming(train, tmp_path):
    assert train().code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pth"
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p != checkpoint}
    checkpoint.write_bytes(pickle.dumps(Code(tmp_path / "proof")))
    train("--resume").refused("last.pth: is damaged or no checkpoint of a training run")
    assert not (tmp_path / "proof").exists()
    assert {p: p.read_bytes() for p in before} == before
