"""Checkpoints that resume exactly: written whole or not at all, and read without unpickling anything but plain values."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator of this process, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - others may use the global one
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """What runs inside leaves the random generators as they were, so that validating changes no loss."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Replaces the file atomically. The old one stays until the new one is safely on disk."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # an open file tells why it cannot be written; a path does not
        torch.save(content, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU; raises `InputError` for a damaged or foreign file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != 1:
            raise InputError(f"{path}: was written by a newer version of vsuite (format {content['format']})")
    except InputError:
        raise
    except Exception as error:  # the reader raises many kinds for damaged files
        raise InputError(
            f"{path}: is damaged or no checkpoint of a training run; remove the run folder, or train into a new one"
        ) from error
    return content
