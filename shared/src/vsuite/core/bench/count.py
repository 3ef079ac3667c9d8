"""Parameters and multiply-accumulates (MAC). One MAC is two floating-point operations (FLOP)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_parameters(model: nn.Module) -> int:
    """Learnable numbers of the model; a parameter used in several places counts once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def _attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _linear_flop(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


# Operators that torch's own counter does not know: fused attention, and the products of `PackedLinear`.
MORE_OPERATORS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention_flop,
}
if torch.backends.mkldnn.is_available():
    MORE_OPERATORS[torch.ops.mkldnn._linear_pointwise] = _linear_flop


def count_macs(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of one forward pass by operator, largest first; their sum is the model's cost.

    Counted are convolutions, matrix products (linear layers among them) and both products of attention; not counted are
    norms, activations, softmax, pooling, interpolation kernels and Fourier transforms, as is usual. The model must not
    be compiled: the operators of a compiled one are not seen.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's fused transformer layer is one operator that is not counted
    try:
        with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=MORE_OPERATORS) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    flops = counter.get_flop_counts().get("Global", {})  # no entry for a model without any counted operator
    counts = {str(operator).removeprefix("aten."): flop // 2 for operator, flop in flops.items()}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
