"""Making a trained model as fast as it gets without changing what it returns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.devices import Precision
from vsuite.core.nn.packed_linear import pack_linear

LARGE = 2**17  # numbers of a weight; below, a new number of rows, which takes a new kernel, costs more than few calls save


def optimize_for_inference(
    model: nn.Module, example: Tensor | tuple[Any, ...] | None = None, *, compile: bool = False, precision: Precision = "fp32"
) -> nn.Module:
    """A frozen copy of the model, in eval mode, with everything folded that does not depend on the input.

    Each module that has a method `fold()` is asked to fold (a batch norm into its convolution, say), and the weights of linear
    layers are stored as a CPU multiplies with them fastest. Outputs stay equal to rounding. The copy can no longer be trained,
    and its state dict is not the model's any more. To compile or export it yourself once it has run, take a `copy.deepcopy` of it.

    Args:
        model: left as it is.
        example: an input (or a tuple of them) to run once under `torch.inference_mode()`, so that the first real call there pays
            no warm-up.
        compile: also compile with `torch.compile`, weights frozen into the graph, which has no gradients (needs a C++ compiler
            on CPU; takes up to minutes on the first call of each size and each precision). A copy of the result is not frozen.
        precision: what calls will compute in: "fp32", or "bf16" or "fp16" under autocast.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fast.modules()):
        fold = getattr(module, "fold", None)
        if callable(fold):
            fold()
    vars(fast).pop("built_from", None)  # weights saved from it could not be loaded again
    if precision == "fp32":
        _turn_weights(fast)
        if not compile:  # compiling packs the weights itself
            _pack_large_weights(fast)
    if compile:
        from torch._inductor import config  # takes a second

        # One graph a size: graphs of free sizes are slower, and torch 2.13 fails to make that of CvT.
        fast = torch.compile(fast, dynamic=False)  # type: ignore[assignment]
        # Whether weights freeze is read while a call traces a graph, and not from the options of `torch.compile`; and they do
        # only while gradients are off.
        fast.forward = torch.no_grad()(config.patch(freezing=True)(fast.forward))
    if example is not None:
        with torch.inference_mode():
            fast(*example) if isinstance(example, tuple) else fast(example)
    return fast


def _turn_weights(model: nn.Module) -> None:
    """Stores the weights of linear layers column by column, in place, as products of few rows take them without packing them anew.

    On a CPU those in bf16 and fp16 would take several times as long.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.t().contiguous().t()


def _pack_large_weights(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= LARGE:
            pack_linear(module)
