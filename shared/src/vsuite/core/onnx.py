"""Models as ONNX files, compared with onnxruntime before they appear."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path


def require_onnx(distribution: str) -> None:
    """Raises `InputError`, which says how to get them, where the packages of a distribution's extra "export" are missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'ONNX needs {", ".join(missing)}: pip install "{distribution}[export]"')


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporters warn of packages that we do not use and of checks on sizes that are meant to be constant."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def onnx_file(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    path: str | Path,
    *,
    axes: Mapping[str, Mapping[int, Any]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[Callable[..., Tensor]]:
    """Writes a model of one output as a graph, and gives a function that runs it with onnxruntime as the model is called.

    The file appears under its name when the block ends without an error.

    Args:
        inputs: examples by name, in the order that the model takes them.
        output: name.
        axes: the free ones of each input, as `torch.export` takes them; all others are as in the examples.
        metadata: to lie in the file.

    Raises:
        InputError: where torch cannot export the model, and where the file cannot be written.
    """
    path = Path(path)
    shapes = tuple(dict(axes.get(name, {})) for name in inputs) if axes else None
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                model,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"{path}: torch could not turn {type(model).__name__} into ONNX: {str(error).splitlines()[0]}") from error
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    with atomic_path(path) as temporary:
        import onnxruntime

        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])

        def run(*values: Tensor) -> Tensor:
            (found,) = session.run(None, {name: value.numpy() for name, value in zip(inputs, values, strict=True)})
            return torch.from_numpy(found)

        yield run


def write_onnx(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    path: str | Path,
    *,
    tolerance: float,
    axes: Mapping[str, Mapping[int, Any]] | None = None,
    metadata: Mapping[str, str] | None = None,
    reference: Callable[..., Tensor] | None = None,
    compared: Sequence[Sequence[Tensor]] = (),
) -> float:
    """Writes a model of one output as a graph. The file appears only once onnxruntime has given the reference's output.

    Args:
        inputs, output, axes, metadata: see `onnx_file`.
        tolerance: largest difference allowed between the file and the reference.
        reference: what the file has to equal; None takes the model.
        compared: sets of inputs to compare on; none takes the examples.

    Returns:
        The largest difference.

    Raises:
        InputError: where it is larger than `tolerance` or not a number, and as `onnx_file` does; nothing is written then.
    """
    differences = []
    with onnx_file(model, inputs, output, path, axes=axes, metadata=metadata) as run:
        for values in compared or [tuple(inputs.values())]:
            with torch.inference_mode():
                differences.append((run(*values) - (reference or model)(*values)).abs().max())
        difference = float(torch.stack(differences).max())
        if not difference <= tolerance:
            raise InputError(f"{path}: not written, as its output differs from the model's by {difference:.1e}")
    return difference
