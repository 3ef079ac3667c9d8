"""LMUFormer against its published implementation, and facts about it that need none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vsuite.core import InputError, create_model, load_published, model_info
from vsuite.core.bench import forms
from vsuite.core.optimize import optimize_for_inference
from vsuite.video_pose.models.lmuformer import LIF, LMUCell, LMUFormer
from vsuite.video_pose.models.lmuformer.memory import impulse_response, state_space
from vsuite.video_pose.models.lmuformer.model import FORMS
from vsuite.video_pose.models.lmuformer.spiking import lif

WHOLE_MODELS = ("lmuformer_sc35", "lmuformer_sc35_allseq", "small_depth3", "spiking_small", "spiking_sc35", "spiking_nonms_sc35")
PARAMETERS = {
    "lmuformer_speech": 1_621_796,
    "lmuformer_speech_spiking": 1_689_894,
    "lmuformer_speech_spiking_post": 1_689_382,
    "lmuformer_speech_spiking_attention": 1_689_379,
    "lmuformer_psmnist": 166_798,
    "lmuformer_psmnist_spiking": 166_092,
}


def options_of(config: dict) -> dict:
    """A case's configuration under our names."""
    return {
        "form": next(form for form, published in FORMS.items() if published == config["model"]),
        "in_channels": config["in_channels"],
        "num_classes": config["num_classes"],
        "embed_dim": config["embed_dims"],
        "depth": config["depths"],
        "mlp_ratio": config["mlp_ratios"],
        "num_heads": config["num_heads"],
    }


def filled(case) -> LMUFormer:
    return case.fill(LMUFormer(**options_of(case.meta["config"])))


def outputs_of(model: LMUFormer, x: Tensor, case) -> dict[str, Tensor]:
    made = {
        "logits": model,
        "features": model.forward_features,
        "running_logits": lambda x: model.running_logits(x).transpose(0, 1),  # the published code has time first
    }
    with torch.no_grad():
        return {name: made[name](x) for name in case.meta["outputs"]}


@pytest.mark.parametrize("name", ["op_lmu_cell", "op_lmu_cell_theta"])
def test_lmu_cell(load_case, name: str) -> None:
    case = load_case(f"lmuformer/{name}")
    config, x = case.meta["config"], case.tensors()["x"].transpose(0, 1)
    cell = case.fill(LMUCell(config["input_size"], config["hidden_size"], config["memory_size"], config["theta"]))
    with torch.no_grad():
        h = cell(x).transpose(0, 1)
        m = cell.memory(torch.relu(cell.W_u(x)).squeeze(-1)).transpose(0, 1)
        impulse = cell.impulse(config["seq_len"])
        case.check({"h": h, "h_n": h[:, -1], "memory": m, "A": cell.A, "B": cell.B, "impulse": impulse})


@pytest.mark.parametrize("name", ["impulse_256_128", "impulse_512_128", "impulse_468_784"])
def test_state_space(load_case, name: str) -> None:
    case = load_case(f"lmuformer/{name}")
    config = case.meta["config"]
    a, b = state_space(config["memory_size"], float(config["theta"]))
    case.check({"impulse": impulse_response(a, b, config["seq_len"]), "A_row0": a[0], "A_col0": a[:, 0], "B": b})


@pytest.mark.parametrize("name", ["op_lif_1p0", "op_lif_0p5"])
def test_neurons(load_case, name: str) -> None:
    case = load_case(f"lmuformer/{name}")
    threshold, inputs = case.meta["config"]["v_threshold"], case.tensors()
    x = (2 * inputs["x"] + 0.3).requires_grad_()
    spikes = LIF(threshold)(x)
    (spikes * inputs["g"]).sum().backward()
    _, charged = lif(x.detach(), threshold, 2.0)
    after = charged.masked_fill(charged >= threshold, 0)
    case.check({"spikes": spikes.detach().long(), "v_after_reset": after, "grad_x": x.grad})


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_whole_model(load_case, name: str) -> None:
    case = load_case(f"lmuformer/{name}")
    case.check(outputs_of(filled(case), case.tensors()["x"], case))


@pytest.mark.parametrize("name", ["small_depth3", "spiking_small", "spiking_nonms_sc35"])
@pytest.mark.parametrize("change", ["optimized", "plain"])
def test_other_forms_give_the_same(load_case, name: str, change: str) -> None:
    case = load_case(f"lmuformer/{name}")
    model = filled(case)
    if change == "optimized":
        model = optimize_for_inference(model)
    else:
        plain = forms("lmuformer_speech", options_of(case.meta["config"]), plain=True)[0].build()
        plain.load_state_dict(model.state_dict())
        model = plain.eval()
    case.check(outputs_of(model, case.tensors()["x"], case))


@pytest.mark.parametrize("name", ["lmuformer_sc35", "small_depth3", "spiking_small", "spiking_sc35", "spiking_nonms_sc35"])
def test_stream_equals_the_parallel_form(load_case, name: str) -> None:
    """With the published weights no spike flips, so the answers are equal to rounding."""
    case = load_case(f"lmuformer/{name}")
    model, x = filled(case), case.tensors()["x"]
    with torch.no_grad():
        want = model.running_logits(x)
    stream = model.stream()
    assert stream.delay == 5
    late = [stream.push(frame) for frame in x.unbind(1)]
    assert all(answer is None for answer in late[:5])
    got = torch.cat([torch.stack(late[5:], 1), stream.finish()], 1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    case.check(outputs_of(model, x, case) | {"logits": got[:, -1]})


@pytest.mark.parametrize("name", ["small_depth3", "spiking_small", "spiking_nonms_sc35"])
@pytest.mark.parametrize("buffers", [True, False])
def test_published_layout(load_case, name: str, buffers: bool) -> None:
    case = load_case(f"lmuformer/{name}")
    config = case.meta["config"]
    state = {f"module.{key}": torch.from_numpy(value) for key, value in case.state_dict().items()}
    if buffers:  # they are in the authors' files, and tell the window
        spiking = config["model"] != "lmu_rnn_conv1d"
        a, b = state_space(config["embed_dims"] * (1 + spiking), 128.0)
        for i in range(config["depths"]):
            start = f"module.block.{i}.attn.lmu."
            state |= {start + "A": a, start + "B": b, start + "H": torch.zeros(len(a), 128)}
            state[start + "fft_H"] = torch.zeros(len(a), 129, dtype=torch.complex64)
    model = load_published(state).eval()
    assert model.built_from["options"]["theta"] == 128
    assert ("theta" in model.built_from["assumed"]) != buffers
    case.check(outputs_of(model, case.tensors()["x"], case))


def test_wrong_checkpoints(load_case) -> None:
    state = {key: torch.from_numpy(value) for key, value in load_case("lmuformer/small_depth3").state_dict().items()}
    del state["block.1.attn.proj_bn.bias"]
    with pytest.raises(InputError, match=r"missing: block\.1\.attn\.proj_bn\.bias"):
        load_published(state)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).system.startswith("lmuformer")


def test_skeletons_are_said_to_be_a_reconstruction() -> None:
    for name in ("lmuformer_pose", "lmuformer_pose_spiking"):
        assert "Reconstruction" in model_info(name).summary
        assert model_info(name).published == ()
