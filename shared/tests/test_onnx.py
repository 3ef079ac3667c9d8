"""Writing models as ONNX files that equal them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import InputError
from vsuite.core.onnx import write_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Scaled(nn.Module):
    """Two inputs, so that their order matters."""

    def forward(self, points: Tensor, by: Tensor) -> Tensor:
        return points.cumsum(dim=1) / by


class Branching(nn.Module):
    """Cannot be exported: what it computes depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_file_has_the_names_the_free_axes_and_the_metadata(tmp_path: Path) -> None:
    path, batch = tmp_path / "folder" / "a.onnx", torch.export.Dim("batch", min=1)
    inputs = {"points": torch.rand(2, 3), "by": torch.rand(2, 1) + 1}
    others = [[torch.rand(count, 3), torch.rand(count, 1) + 1] for count in (1, 5)]
    axes = {"points": {0: batch}, "by": {0: batch}}
    assert write_onnx(Scaled(), inputs, "found", path, tolerance=1e-5, axes=axes, metadata={"scale": "2"}, compared=others) < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in (*session.get_inputs(), *session.get_outputs())] == [
        ("points", ["batch", 3]),
        ("by", ["batch", 1]),
        ("found", ["batch", 3]),
    ]
    assert session.get_modelmeta().custom_metadata_map["scale"] == "2"


@pytest.mark.parametrize("wrong", [0.1, torch.nan])
def test_a_file_that_differs_for_one_set_of_inputs_does_not_appear(wrong: float, tmp_path: Path) -> None:
    sets = [[torch.zeros(1, 2)], [torch.ones(1, 2)], [torch.zeros(1, 2)]]
    with pytest.raises(InputError, match=r"a\.onnx: not written, as its output differs from the model's by (1\.0e-01|nan)"):
        write_onnx(
            nn.ReLU(),
            {"x": torch.ones(1, 2)},
            "y",
            tmp_path / "a.onnx",
            tolerance=1e-3,
            reference=lambda x: torch.where(x > 0, x + wrong, x),
            compared=sets,
        )
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported_is_told_from_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.onnx: torch could not turn Branching into ONNX: "):
        write_onnx(Branching(), {"x": torch.ones(2)}, "y", tmp_path / "a.onnx", tolerance=1e-3)
    assert not list(tmp_path.iterdir())
