"""A linear layer for inference on a CPU, whose weight is laid out for the kernel that multiplies with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_WORK = 2**24  # multiply-adds of a call


class PackedLinear(nn.Linear):
    """An `nn.Linear` that oneDNN computes, with a weight that was laid out for it once instead of in every call.

    The first call of `LEAST_WORK` or more lays the weight out, in place of the usual form: it is in memory once. Whoever reads
    `weight`, and calls that oneDNN does not serve (with gradients, in another precision, on another device, while a model is
    traced), copies, moves and state dicts have the usual form again. `parameters()` does not; and a layer that has run must be
    copied before it is compiled or exported, as torch looks past `weight` then.

    On two cores of a CPU with AVX-512 such products are 1.1 to 1.5 times as fast as torch's own, which on processors of AMD does
    not use it; with AVX2 alone 1.0 to 1.8 times, most for weights that do not fit the cache. Calls of less work gain nothing. Each
    number of rows takes a kernel of its own, made at the first call: this is no layer for rows whose number always changes.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """out_features, in_features: as `nn.Linear` has it."""
        self.unpack()
        return self._stored()

    def _stored(self) -> nn.Parameter:
        """The weight in the form it has now."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """x: ..., in_features -> ..., out_features."""
        if not self._serves(x):
            return F.linear(x, self.weight, self.bias)
        weight = self._stored()  # read once: another thread may lay it out meanwhile
        if not weight.is_mkldnn:
            if x.numel() * self.out_features < LEAST_WORK:
                return F.linear(x, weight, self.bias)
            with torch.inference_mode(False):
                weight = nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), requires_grad=False)
            self._parameters["weight"] = weight
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        return out

    def unpack(self) -> None:
        """Puts the weight back as `nn.Linear` has it."""
        weight = self._stored()
        if weight.is_mkldnn:
            with torch.inference_mode(False):
                self._parameters["weight"] = nn.Parameter(weight.to_dense(), requires_grad=False)

    def _serves(self, x: Tensor) -> bool:
        weight = self._stored()
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.requires_grad or weight.requires_grad:
            return False
        if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
            return False
        ours = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in (x, weight))
        return ours and x.shape[-1] == self.in_features

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        self.unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.unpack()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)


def pack_linear(layer: nn.Linear) -> None:
    """Makes a layer a `PackedLinear`, in place: it keeps its name, hooks and parameters; only how it is computed changes."""
    layer.__class__ = PackedLinear
