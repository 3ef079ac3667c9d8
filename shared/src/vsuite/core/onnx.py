"""What every export to ONNX needs around torch's exporter."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from vsuite.core.errors import InputError


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
