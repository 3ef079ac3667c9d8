"""Tables that depend only on sizes (masks, index tables, position grids) are made once a size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Arguments = ParamSpec("Arguments")
Table = TypeVar("Table")


def memoise(make: Callable[Arguments, Table]) -> Callable[Arguments, Table]:
    """Keeps the results of a pure function of hashable arguments (sizes, device, dtype).

    The cache is passed by while compiling or exporting: a fake tensor must not end up in it, and a graph must see how
    a table follows from the sizes. Cached tensors serve training too, also if first asked for in inference mode.
    """

    @functools.lru_cache(maxsize=256)
    def cached(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Table:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    @functools.wraps(make)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Table:
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return make(*args, **kwargs)
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    return call
