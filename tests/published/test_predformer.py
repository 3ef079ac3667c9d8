"""PredFormer against its published implementation, and facts about it that need none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsuite.core import InputError, create_model, load_published, model_info
from vsuite.video_pose.models.predformer import REPEATED, WHOLE, GatedTransformer, PredFormer

ARRANGEMENTS = {
    "FullAttention": "full",
    "FacST": "fac_st",
    "FacTS": "fac_ts",
    "Binary_TS": "binary_ts",
    "Binary_ST": "binary_st",
    "Triplet_TST": "triplet_tst",
    "Triplet_STS": "triplet_sts",
    "Quadruplet_TSST": "quadruplet_tsst",
    "Quadruplet_STTS": "quadruplet_stts",
}
SMALL = ("binary_st", "binary_ts", "facst", "facts", "fullattention", "quadruplet_stts", "quadruplet_tsst", "triplet_sts", "triplet_tst")
WHOLE_MODELS = ("mmnist_tsst", "taxibj_sts", "weather_facts", "small_tsst_depth2", *(f"small_{name}" for name in SMALL))
PARAMETERS = {  # by arrangement, and by data set: Moving MNIST, TaxiBJ, WeatherBench, Human3.6M
    "full": (25_285_952, 8_434_976, 5_272_848, 12_725_696),
    "fac_st": (25_286_464, 8_435_488, 5_273_360, 12_726_208),
    "binary_ts": (25_297_728, 8_438_560, 5_276_432, 12_731_328),
    "triplet_tst": (25_297_728, 6_333_216, 3_959_568, 12_731_328),
    "quadruplet_stts": (25_297_728, 8_438_560, 5_276_432, 12_731_328),
}


def options_of(config: dict) -> dict:
    """A case's configuration under our names."""
    return {
        "arrangement": ARRANGEMENTS[config["variant"]],
        "num_frames": config["pre_seq"],
        "in_channels": config["num_channels"],
        "patch_size": config["patch_size"],
        "embed_dim": config["dim"],
        "num_layers": config["Ndepth"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "head_dim": config["dim_head"],
        "mlp_ratio": config["scale_dim"],
        "dropout": config["dropout"],
        "attention_dropout": config["attn_dropout"],
        "drop_path_rate": config["drop_path"],
    }


@pytest.mark.parametrize("name", ["op_gated_transformer", "op_gated_transformer_1head"])
def test_gated_transformer(load_case, name: str) -> None:
    case = load_case(f"predformer/{name}")
    config = case.meta["config"]
    module = case.fill(GatedTransformer(config["dim"], config["depth"], config["heads"], config["dim_head"], config["mlp_dim"]))
    with torch.no_grad():
        case.check({"out": module(case.tensors()["x"])})


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_whole_model(load_case, name: str) -> None:
    case = load_case(f"predformer/{name}")
    model = case.fill(PredFormer(**options_of(case.meta["config"])))
    with torch.no_grad():
        case.check({"out": model(case.tensors()["x"])})


@pytest.mark.parametrize("name", ["taxibj_sts", "weather_facts", "small_fullattention"])
def test_published_layout(load_case, name: str) -> None:
    case = load_case(f"predformer/{name}")
    config = case.meta["config"]
    state = {key: torch.from_numpy(value) for key, value in case.state_dict().items()}
    model = load_published({"epoch": 3, "state_dict": state}, num_heads=config["heads"], head_dim=config["dim_head"]).eval()
    with torch.no_grad():
        case.check({"out": model(case.tensors()["x"])})


@pytest.mark.parametrize("arrangement", PARAMETERS)
def test_parameter_counts(arrangement: str) -> None:
    for data, count in zip(("mnist", "taxibj", "weather", "human"), PARAMETERS[arrangement], strict=True):
        with torch.device("meta"):
            model = create_model(f"predformer_{data}_{arrangement}")
        assert sum(p.numel() for p in model.parameters()) == count
    assert model_info(f"predformer_mnist_{arrangement}").published


def small(arrangement: str, **options) -> PredFormer:
    torch.manual_seed(0)
    sizes = {"num_frames": 4, "patch_size": 4, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "head_dim": 8, "mlp_ratio": 2}
    return PredFormer(**(sizes | {"arrangement": arrangement} | options)).eval()


@pytest.mark.parametrize("arrangement", [*WHOLE, *REPEATED])
def test_other_numbers_of_frames(arrangement: str) -> None:
    model, x = small(arrangement), torch.rand(2, 4, 1, 8, 12)
    with torch.no_grad():
        first = model(x)
        second = model(first)
        third = model(second)
        torch.testing.assert_close(model.predict(x, 10), torch.cat([first, second, third[:, :2]], 1))
        torch.testing.assert_close(model.predict(x, 3), first[:, :3])
        torch.testing.assert_close(model(x[1:]), first[1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arrangement", [name for name in (*WHOLE, *REPEATED) if name != "fac_st"])
def test_frames_and_their_positions_can_be_permuted(arrangement: str, monkeypatch) -> None:
    from vsuite.video_pose.models import predformer

    model, x, order = small(arrangement), torch.rand(1, 4, 1, 8, 12), torch.tensor([2, 0, 3, 1])
    original = predformer.sinusoid
    with torch.no_grad():
        want = model(x)[:, order]
        monkeypatch.setattr(predformer, "sinusoid", lambda n, d, device: original(n, d, device).view(4, -1, d)[order].reshape(n, d))
        torch.testing.assert_close(model(x[:, order]), want, rtol=1e-4, atol=1e-6)


def test_the_corrected_order_differs_for_fac_st_alone() -> None:
    x = torch.rand(1, 4, 1, 8, 12)
    with torch.no_grad():
        assert not torch.allclose(small("fac_st", ordered=True)(x), small("fac_st")(x))
        assert torch.equal(small("fac_ts", ordered=True)(x), small("fac_ts")(x))


def test_wrong_inputs() -> None:
    model = small("fac_ts")
    for shape in ((1, 4, 1, 8), (1, 4, 2, 8, 8), (1, 4, 1, 9, 8), (1, 5, 1, 8, 8), (1, 4, 1, 0, 8)):
        with pytest.raises(InputError, match="PredFormer takes B, 4, 1, H, W"):
            model(torch.rand(shape))
    with pytest.raises(InputError, match="floating-point"):
        model(torch.zeros(1, 4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="did you mean 'fac_st'"):
        PredFormer(arrangement="facst")


@pytest.mark.parametrize("arrangement", ["fac_st", "quadruplet_tsst"])
def test_it_trains(arrangement: str) -> None:
    model = small(arrangement, drop_path_rate=0.1, dropout=0.1).train()
    x = torch.from_numpy(np.random.default_rng(0).random((2, 8, 1, 8, 8), dtype=np.float32))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = (model(x[:, :4]) - x[:, 4:]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_metrics(load_case) -> None:
    from vsuite.video_pose.metrics import forecast

    case = load_case("predformer/metrics_openstl")
    inputs, config = case.inputs(), case.meta["config"]
    truth = inputs["true"]
    predictions = [truth + scale * inputs["noise"] for scale in config["noise_scales"]]
    found = {name: [getattr(forecast, name)(p, truth) for p in predictions] for name in ("mse", "mae", "rmse", "ssim", "psnr")}
    found["snr"] = [forecast.snr(p, truth) for p in predictions]
    weather = [forecast.weather_metrics(p, truth, mean=config["weather_mean"], std=config["weather_std"]) for p in predictions]
    found |= {f"w_{name}": [row[name] for row in weather] for name in ("mse", "mae", "rmse")}
    case.check(found)
    assert forecast.ssim(truth, truth) == pytest.approx(1)
    assert forecast.ssim(predictions[1], truth, value_range=1.0) < forecast.ssim(predictions[1], truth)


def test_moving_mnist(load_case) -> None:
    from vsuite.video_pose.data.moving_mnist import make_clip, trajectory

    case = load_case("predformer/moving_mnist_trajectory")
    places = [trajectory(x, y, 2 * np.pi * u) for x, y, u in case.inputs()["start"]]
    case.check({"top": np.stack([top for top, _ in places]), "left": np.stack([left for _, left in places])})
    clip = make_clip(np.full((1, 28, 28), 200, np.uint8), np.random.default_rng(0), num_digits=1)
    assert clip.shape == (20, 64, 64)
    assert ((clip == 200).sum((1, 2)) == 28 * 28).all()
