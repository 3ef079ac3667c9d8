"""`vsuite-restore` from end to end, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vsuite.core import InputError, create_model, load_published, save_weights
from vsuite.core.weights import read_state_dict
from vsuite.restoration import cli, demo
from vsuite.restoration.cli import app

TINY = {"embed_dim": 8, "growth": 4, "depths": (1,), "num_heads": 2, "window_size": 4, "upsample_dim": 8}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(create_model("drct_lite_x2", **TINY), path)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_predict_and_its_page(tmp_path: Path, weights: Path) -> None:
    picture = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(picture)
    output = run(
        "predict", picture, "--weights", weights, "--out", tmp_path / "out", "--compare", tmp_path / "page.html", "--device", "cpu"
    )
    assert "tiny: DRCT x2, 3 channels, window 4" in output
    assert f"{picture} -> {tmp_path / 'out' / 'cat_x2.png'}" in output
    assert Image.open(tmp_path / "out" / "cat_x2.png").size == (14, 18)
    assert (tmp_path / "page.html").read_text().count("data:image/png;base64,") == 2


def test_a_long_list_of_results_says_how_many_more(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(23):
        Image.new("RGB", (2, 2)).save(tmp_path / "in" / f"{number:02}.png")
    lines = run("predict", tmp_path / "in", "--weights", weights, "--out", tmp_path / "out", "--device", "cpu").splitlines()
    assert [line for line in lines if " -> " in line][-1].startswith(f"{tmp_path / 'in' / '19.png'} -> ")
    assert lines[-2:] == ["and 3 more", "23 written"]


def test_missing_inputs_end_with_an_error_after_the_others(tmp_path: Path, weights: Path, capsys) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    given = ["predict", tmp_path / "a.png", tmp_path / "b.png", "--weights", weights, "--out", tmp_path / "out", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        cli.run(cli.app, [str(argument) for argument in given])
    assert left.value.code == 2
    assert f"1 of 2 files failed; first: {tmp_path / 'b.png'}: no such file" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x2.png"]


def test_the_result_is_the_models(tmp_path: Path, weights: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    run("predict", tmp_path / "a.png", "--weights", weights, "--out", tmp_path / "b.png", "--device", "cpu")
    with torch.inference_mode():
        found = load_published(weights).eval()(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    expected = (found[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(Image.open(tmp_path / "b.png")) - expected).max() <= 1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_export_published_loads_as_the_authors_file(tmp_path: Path, weights: Path, suffix: str) -> None:
    out = tmp_path / f"theirs{suffix}"
    run("export", "--weights", weights, "--published", "--out", out)
    if suffix == ".pth":
        assert list(torch.load(out, weights_only=True)) == ["params_ema"]
    again, own = read_state_dict(out), load_published(weights).state_dict()
    assert again.keys() == own.keys()
    assert all(torch.equal(again[name], own[name]) for name in own)
    x = torch.rand(1, 3, 5, 6)
    with torch.inference_mode():
        torch.testing.assert_close(load_published(out).eval()(x), load_published(weights).eval()(x))


def test_weights_of_another_scale_are_not_exported(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(InputError, match=r"tiny\.safetensors: enlarges 2 times, not 4 times"):
        run("export", "--weights", weights, "--scale", 4, "--published", "--out", tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_onnx_takes_any_size(tmp_path: Path, weights: Path) -> None:
    import onnxruntime

    assert "differs from the model by at most" in run("export", "--weights", weights, "--out", tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["scale"] == "2"
    x = torch.rand(1, 3, 11, 6)
    (found,) = session.run(None, {"picture": x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), load_published(weights).eval()(x), rtol=1e-3, atol=1e-4)


def test_drawings_are_pictures_with_detail() -> None:
    for name, draw in demo.DRAWINGS.items():
        picture = draw(64)
        assert picture.shape == (64, 64, 3), name
        assert picture.std() > 0.05, name
        np.testing.assert_array_equal(picture, draw(64))


def test_demo(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "SIDE", 48)
    monkeypatch.setattr(demo, "DRAWINGS", {name: demo.DRAWINGS[name] for name in ("discs", "letters")})
    output = run("demo", "--out", tmp_path / "demo", "--scale", 2)
    assert "PSNR-Y" in output
    assert "lanczos" in output
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<figure>") == 2
    assert "<h1>24 x 24 pixels enlarged 2 times: bicubic and drct_lite_x2</h1>" in page
    assert page.count('<span class="tag left">bicubic</span><span class="tag right">drct_lite_x2</span>') == 2
    assert sorted(path.name for path in (tmp_path / "demo" / "restored").iterdir()) == ["discs.png", "letters.png"]


def test_nothing_to_compare_writes_no_table(tmp_path: Path) -> None:
    for name, side in (("high", 16), ("larger", 32)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / name / "a.png")
    arguments = ["evaluate", str(tmp_path / "larger"), "--data", str(tmp_path / "high"), "--scale", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"no picture could be compared; first: .*sizes differ"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_a_share_beyond_one_is_refused() -> None:
    result = CliRunner().invoke(app, ["predict", "a.png", "--blend", "2"])
    assert result.exit_code == 2
    assert "less than or equal to 1" in result.output


def test_bench_refuses_a_size_of_other_rank() -> None:
    with pytest.raises(InputError, match="--size 64: drct_lite_x2 takes sizes such as 3x64x64, channels first"):
        run("bench", "drct_lite_x2", "--size", "64")
