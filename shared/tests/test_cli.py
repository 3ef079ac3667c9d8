"""The command `vsuite` as a user meets it: what it prints, where errors go, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from packaging.specifiers import SpecifierSet

from vsuite.core import InputError
from vsuite.core.cli import doctor, options
from vsuite.core.cli.app import new_app, run
from vsuite.core.cli.commands import app, input_and_options
from vsuite.core.devices import pick_device
from vsuite.core.registry import ModelInfo


def vsuite(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        run(app, arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


def failing_app(error: BaseException) -> typer.Typer:
    failing = new_app("vsuite-core", "For the tests.")

    @failing.command()
    def fail(count: Annotated[int, typer.Option("--count")] = 1) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bnch"], "did you mean 'bench'"),
        (["models", "--tsk", "segmentation"], "did you mean --task"),
        (["models", "no-such-model"], "no model matches 'no-such-model'"),
        (["models", "--task", "cooking"], "unknown task 'cooking'"),
        (["info", "no-such-model"], "unknown model 'no-such-model'"),
        (["info"], "missing argument 'name'"),
        (["bench", "no-such-*"], "no model matches 'no-such-*'"),
        (["bench", "x", "--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
        (["bench", "x", "--size", "3xx"], "size '3xx' is not of the form"),
        (["bench", "x", "--batch-size", "0"], "--batch-size"),
        (["bench", "x", "--baseline", "quick"], "allowed is plain"),
        (["bench", "x", "--device", "tpu"], "allowed are auto, cpu, cuda"),
    ],
)
def test_what_the_user_gave_wrongly_is_one_line_and_exit_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if arguments[:2] == ["bench", "x"]:
        pytest.importorskip("vsuite.medical")
        arguments[1] = "segformer3d"
    assert vsuite(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err.lower()


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "fail"], ["fail", "--debug"]):
        with pytest.raises(SystemExit) as left:
            run(failing_app(InputError("scan.nii: no\nsuch file")), arguments)
        assert left.value.code == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.endswith("error: scan.nii: no such file\n")


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(failing_app(KeyboardInterrupt()), ["fail"])
    assert left.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing_app(ZeroDivisionError()), ["fail"])


def test_help_without_arguments_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert vsuite() == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("models", "info", "bench", "doctor", "--debug"))
    assert vsuite("--version") == 0
    assert capsys.readouterr().out.startswith("vsuite-core ")


def test_help_needs_neither_torch_nor_anything_heavy() -> None:
    code = "import sys\nsys.argv = ['vsuite', 'bench', '--help']\nfrom vsuite.core.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'numpy', 'mmengine', 'monai', 'matplotlib', 'cv2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_closed_pipe_is_quiet() -> None:
    code = "from vsuite.core.cli.app import new_app, run\napp = new_app('vsuite-core', '')\n"
    code += "@app.command()\ndef count():\n    for number in range(100000): print(number)\n\nrun(app, ['count'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_models_and_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vsuite.medical")
    monkeypatch.delenv("COLUMNS", raising=False)
    assert vsuite("models", "segformer3d") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "system", "task", "params", "M", "published"]
    assert line.split()[:4] == ["segformer3d", "segformer3d", "segmentation", "4.53"]
    assert "82.1 % mean Dice" in line  # piped: nothing is cut or broken
    assert vsuite("models", "--json", "segformer3d") == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 4_525_251
    assert facts["input_size"] == [4, 128, 128, 128]
    assert vsuite("info", "segformer3d") == 0
    out = capsys.readouterr().out
    for expected in (
        "4,525,251",
        "4 x 128 x 128 x 128",
        "published by the authors, not measured here",
        "attention_scale='num_heads'",
        "num_classes",
    ):
        assert expected in out


def test_bench_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vsuite.medical")
    file = tmp_path / "bench.json"
    given = ["--size", "1x16x16x16", "--seconds", "0", "--threads", "1", "--set", "num_classes=2", "--device", "cpu", "--json", str(file)]
    assert vsuite("bench", "segformer3*", *given) == 0
    (entry,) = json.loads(file.read_text())
    assert entry["options"] == {"in_channels": 1, "num_classes": 2}
    assert "input 1x1x16x16x16, fp32" in capsys.readouterr().out
    assert vsuite("bench", "segformer3d", "--size", "1x8x8x8", "--device", "cpu") == 2
    assert "sides from 13 voxels up" in capsys.readouterr().err


def model_with(**facts: Any) -> ModelInfo:
    defaults: dict[str, Any] = dict.fromkeys(("system", "task", "paper", "licence", "summary"), "") | {
        "published": (),
        "builder": None,
        "layout": None,
        "weights": {},
    }
    return ModelInfo(**{"name": "model", "options": {"in_channels": 3}, **defaults, **facts})


def test_channels_of_input_and_model_agree() -> None:
    model = model_with(input_size=(3, 8, 8))
    assert input_and_options(model, None, {}) == ((3, 8, 8), {})
    assert input_and_options(model, None, {"in_channels": 1}) == ((1, 8, 8), {"in_channels": 1})
    assert input_and_options(model, (2, 4, 4), {}) == ((2, 4, 4), {"in_channels": 2})
    assert input_and_options(model_with(input_size=(3, 8, 8), options={}), (2, 4), {}) == ((2, 4), {})
    with pytest.raises(InputError, match="no input size of its own"):
        input_and_options(model_with(), None, {})
    with pytest.raises(InputError, match=r"--size 4x4: .* takes sizes such as 3x8x8, channels first"):
        input_and_options(model, (4, 4), {})


def test_parse_set_and_size() -> None:
    assert options.parse_set(["a=1", "depths=[2, 2]", "name=x=y", "rate=1e-3"]) == {"a": 1, "depths": [2, 2], "name": "x=y", "rate": "1e-3"}
    for wrong in ("a", "=1", "a=[1"):
        with pytest.raises(InputError, match="--set"):
            options.parse_set([wrong])
    assert options.parse_size("4x128X96x1") == (4, 128, 96, 1)
    for wrong in ("", "4x", "4x-1", "axb", "0x3", "4,3"):
        with pytest.raises(InputError, match="size"):
            options.parse_size(wrong)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for wrong in ("gpu", "cuda:01", "cuda:300", "cuda:-1", "mps", torch.device("meta")):
        with pytest.raises(InputError, match="allowed are auto, cpu, cuda"):
            pick_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device(None) == pick_device(torch.device("cpu")) == torch.device("cpu")
    for given in ("cuda", torch.device("cuda")):
        with pytest.raises(InputError, match="'cuda' is not available"):
            pick_device(given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="there is cuda:0, cuda:1"):
        pick_device("cuda:2")


def test_doctor_finds_this_installation_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert vsuite("doctor") == 0
    out = capsys.readouterr().out
    assert ["ok", "torch", torch.__version__] in [line.split() for line in out.splitlines()]
    assert "broken" not in out


def test_doctor_fails_for_what_is_required_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("safetensors", "onnx") else real(name))
    assert vsuite("doctor") == 1
    out = capsys.readouterr().out
    assert '  pip install "vsuite-core[export]"\n' in out
    assert '  pip install "safetensors>=0.4"\n' in out
    states = {line.split()[1]: line.split()[0] for line in out.splitlines() if line.split()[1:]}
    assert states["safetensors"] == "broken"
    assert states["onnx"] == "missing"


def test_doctor_takes_a_vendors_build_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "2.9.0a0+145a3a7bda.nv25.10")
    assert doctor._requirement("vsuite-core", None, "torch", SpecifierSet(">=2.8")).state == "ok"
    assert doctor._requirement("vsuite-core", None, "torch", SpecifierSet(">=2.9.1")).state == "broken"


def test_doctor_notices_a_torchvision_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (finding,) = doctor._torchvision()
    assert (finding.state, finding.remedy) == ("broken", "pip uninstall -y torchvision")
    assert "nms does not exist" in finding.detail
