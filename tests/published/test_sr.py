"""The operators of super-resolution benchmarks and of Real-ESRGAN's degradations, against the published ones."""

from __future__ import annotations

import numpy as np
import torch

from vsuite.restoration import degradations, metrics
from vsuite.restoration.resize import imresize


def test_imresize(load_case):
    case = load_case("sr/imresize")
    image = case.inputs()["img"]
    factors = {"0.5": 0.5, "0.3333": 1 / 3, "0.25": 0.25, "0.37": 0.37, "2": 2, "3": 3, "4": 4, "1.7": 1.7}
    outputs = {f"scale_{name}": imresize(image, factor) for name, factor in factors.items()}
    case.check(outputs | {"half_no_antialias": imresize(image, 0.5, antialias=False)})
    in_double = imresize(image.astype(np.float64), 1.7)
    assert np.abs(in_double - outputs["scale_1.7"]).max() < 3e-6


def test_psnr_and_ssim(load_case):
    case = load_case("sr/psnr_ssim")
    inputs = case.inputs()
    a = inputs["hr"].astype(np.uint8)
    scores = []
    for amplitude in case.meta["config"]["amplitudes"]:
        b = np.clip(np.round(a + amplitude * inputs["noise"]), 0, 255).astype(np.uint8)
        for crop in (0, 2, 4):
            found = metrics.PsnrSsim(crop).measure(prediction=b, reference=a)
            scores += [(found[f"psnr_{kind}"], found[f"ssim_{kind}"]) for kind in ("rgb", "y")]
        grey = metrics.PsnrSsim(3, channels="y").measure(prediction=b[..., 0], reference=a[..., 0])
        scores.append((grey["psnr_y"], grey["ssim_y"]))
    case.check({"psnr": np.array(scores)[:, 0], "ssim": np.array(scores)[:, 1]}, rtol=1e-5)


def test_colours(load_case):
    case = load_case("sr/ycbcr")
    whole = case.inputs()["img"].astype(np.uint8)
    floats = whole.astype(np.float32) / 255
    ycbcr = metrics.rgb_to_ycbcr(floats)
    case.check(
        {
            "ycbcr_uint8": metrics.rgb_to_ycbcr(whole),
            "y_uint8": metrics.rgb_to_y(whole),
            "ycbcr_float": ycbcr,
            "y_float": metrics.rgb_to_y(floats),
            "rgb_back_float": metrics.ycbcr_to_rgb(ycbcr),
        }
    )


def test_kernels_filtering_and_sharpening(load_case):
    case = load_case("sr/kernels")
    x = case.tensors()["x"]
    kernel = degradations.blur_kernel
    kernels = {
        "iso": kernel(21, 2.1, 2.1),
        "aniso": kernel(21, 3.0, 0.8, 0.6),
        "generalized_iso": kernel(15, 1.7, 1.7, shape="generalized", beta=0.7),
        "generalized_aniso": kernel(15, 2.5, 1.1, -0.4, shape="generalized", beta=2.3),
        "plateau_iso": kernel(13, 1.5, 1.5, shape="plateau", beta=1.4),
        "plateau_aniso": kernel(13, 2.2, 0.9, 1.1, shape="plateau", beta=1.9),
        "sinc_21": degradations.sinc_kernel(1.2, 21),
        "sinc_9_padded": degradations.sinc_kernel(2.5, 9, 21),
    }
    pair = torch.from_numpy(np.stack([kernels["aniso"], kernels["sinc_21"]]))
    case.check(kernels | {"filtered": degradations.filter_pictures(x, pair), "usm": degradations.usm_sharpen(x)})


def test_jpeg(load_case):
    case = load_case("sr/jpeg")
    x = case.tensors()["x"]
    outputs = {f"q{quality}": degradations.simulate_jpeg(x, quality) for quality in (30, 50, 75, 95)}
    qualities = torch.tensor([40.0, 80.0])
    case.check(outputs | {"per_image": degradations.simulate_jpeg(x, qualities)})
    assert qualities.tolist() == [40, 80]  # the official function overwrites them
