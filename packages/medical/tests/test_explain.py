"""Attention roll-out and occlusion maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import create_model, save_weights
from vsuite.core.errors import InputError
from vsuite.core.images.classifier import ClassifierNote
from vsuite.core.images.predictor import Predictor, predict_files
from vsuite.core.images.preprocessing import PreprocessingSettings
from vsuite.medical.explain import attention_rollout, explain_files, occlusion_map, overlay, rollout_map

VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 4), tokens=st.integers(1, 6), residual=st.booleans(), seed=st.integers(0, 1000))
def test_rows_of_a_rollout_sum_to_one(blocks: int, tokens: int, residual: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, tokens, tokens, generator=generator).softmax(-1) for _ in range(blocks)]
    total = attention_rollout(maps, residual=residual)
    torch.testing.assert_close(total.sum(-1), torch.ones(2, tokens))
    assert (total >= 0).all()


def test_a_rollout_follows_the_path_through_the_blocks() -> None:
    first, second = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    first[0, 0, [0, 1, 2], [0, 2, 1]] = 1  # token 1 takes from 2
    second[0, 0, [0, 1, 2], [1, 1, 2]] = 1  # token 0 takes from 1
    assert attention_rollout([first, second], residual=False)[0, 0].tolist() == [0, 0, 1]
    half = attention_rollout([first, second])[0, 0].tolist()
    assert half == [0.5, 0.25, 0.25]
    with pytest.raises(InputError):
        attention_rollout([])


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_a_vit_has_a_map_of_its_patches(pool: str) -> None:
    model = create_model("vit_small_patch16", num_classes=2, pool=pool, **VIT).eval()
    image = torch.randn(3, 32, 48)
    heat = rollout_map(model, image)
    assert heat.shape == (4, 6)
    assert heat.min() == 0
    assert heat.max() == 1
    with pytest.raises(InputError, match="gives no attention maps"):
        rollout_map(nn.Linear(2, 2), image)


def test_duoformer_has_a_map_of_its_regions() -> None:
    options: dict[str, Any] = {"backbone": "resnet18", "num_scales": 2, "embed_dim": 32, "depth": 1, "num_heads": 2, "image_size": 64}
    model = create_model("duoformer_r18_4scale", num_classes=2, **options).eval()
    heat = rollout_map(model, torch.randn(3, 64, 64))
    assert heat.shape == (2, 2)
    (weights,) = model.attention_maps(torch.zeros(1, 3, 64, 64))  # type: ignore[operator]
    assert weights.shape == (1, 2, 5, 5)


class Bright(nn.Module):
    """Says that a picture shows class 1 where a certain square is bright."""

    def forward(self, x: Tensor) -> Tensor:
        spot = x[:, 0, 8:16, 16:24].mean((1, 2))
        return torch.stack([-spot, spot], 1)


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    torch.manual_seed(0)
    image = PreprocessingSettings(size=(32, 32), channels=1, mean=(0.0,), std=(1.0,))
    note = ClassifierNote(classes=["no", "yes"], image=image)
    save_weights(
        create_model("vit_small_patch16", num_classes=2, in_channels=1, **VIT),
        tmp_path / "w.safetensors",
        metadata={"classifier": note.model_dump(mode="json")},
    )
    return Predictor(tmp_path / "w.safetensors", device="cpu", batch_size=7)


def test_occlusion_finds_the_square_that_counts(predictor: Predictor) -> None:
    predictor.model = Bright()
    image = torch.zeros(1, 32, 32)
    image[:, 8:16, 16:24] = 1
    drops = occlusion_map(predictor, image, 1, size=8)
    assert drops.shape == (7, 7)  # by half a square
    assert np.unravel_index(drops.argmax(), drops.shape) == (2, 4)
    assert drops[6, 0] == 0
    with pytest.raises(InputError, match="1 to 32 pixels; got 40"):
        occlusion_map(predictor, image, 1, size=40)


def test_an_overlay_is_reddest_where_the_map_is_highest() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    laid = overlay(np.full((32, 32, 3), 128, np.uint8), heat).astype(int)
    assert laid.shape == (32, 32, 3)
    redness = laid[..., 0] - laid[..., 2]
    row, column = np.unravel_index(redness.argmax(), redness.shape)
    assert row < 8
    assert column >= 24


@pytest.mark.parametrize("method", ["rollout", "occlusion"])
def test_explanations_are_pictures_beside_the_input(method: str, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a b.png", "c.png"):
        cv2.imwrite(str(tmp_path / "in" / name), np.random.default_rng(0).integers(0, 65536, (40, 40), np.uint16))
    found, failed = predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert not failed
    paths = explain_files(predictor, [tmp_path / "in"], found, tmp_path / "out" / "explanations", method)
    ends = [f"_{one.label}" if method == "occlusion" else "" for one in found]
    assert [path.name for path in paths] == [f"0000_a_b_{method}{ends[0]}.png", f"0001_c_{method}{ends[1]}.png"]
    assert cv2.imread(str(paths[0])).shape == (32, 64, 3)
    with pytest.raises(InputError, match="unknown way to explain"):
        explain_files(predictor, [tmp_path / "in"], found, tmp_path, "gradients")
