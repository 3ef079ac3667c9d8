"""Networks with plain convolutions -> the same with frequency dynamic ones, and their weights both ways."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.models.fdconv.layer import FrequencyDynamic, FrequencyDynamicConv2d, FrequencyDynamicLinear

MIN_CHANNELS = 17
KERNELS = (1, 3)
OWN = ("KSM_Global.", "KSM_Local.", "FBM.", "group_map")  # what only the dynamic layer has


def convert_to_fdconv(model: nn.Module, *, convolutions: Sequence[str] = ("*",), linears: Sequence[str] = (), **options: Any) -> list[str]:
    """Replaces convolutions and linear layers by frequency dynamic ones, in place.

    The published rule: convolutions of kernel 1 or 3 that are not grouped and have more than 16 input and output channels.
    Linear layers see their input (B, ..., channels) as a map with the channels last, so those on a pooled vector are no
    candidates. The network returns what it did, unless the options say otherwise (`official_start`).

    Args:
        model: any network.
        convolutions, linears: wildcards of the names of the layers to replace, such as "layer*.conv?" or "*.pwconv1".
        options: keywords of `FrequencyDynamicConv2d`.

    Returns:
        The names of the layers replaced.

    Raises:
        InputError: if no layer is replaced, or one cannot be (`kernel_num` does not divide its coefficients, say).
    """
    replaced = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        wanted = convolutions if isinstance(module, nn.Conv2d) else linears
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
            continue
        new = _converted(name, module, options)
        if new is not None:
            replaced[name] = new
    if not replaced:
        raise InputError(f"no layer of {type(model).__name__} can be replaced among {[*convolutions, *linears]}")
    for name, new in replaced.items():
        model.set_submodule(name, new)
    vars(model).pop("built_from", None)  # it is no longer what was built: its weights go into a network that is converted too
    return list(replaced)


def _converted(name: str, module: nn.Conv2d | nn.Linear, options: Mapping[str, Any]) -> FrequencyDynamic | None:
    """The layer in the place of this one, with its weight; None where the rule leaves it."""
    if min(module.weight.shape[:2]) < MIN_CHANNELS:
        return None
    bias = module.bias is not None
    try:
        new: FrequencyDynamic
        if isinstance(module, nn.Linear):
            only_maps = {"fbm", "k_list", "lowfreq_att", "fbm_act", "spatial_group"}
            rest = {key: value for key, value in options.items() if key not in only_maps}
            new = FrequencyDynamicLinear(module.in_features, module.out_features, bias, **rest)
        else:
            kernel = module.kernel_size
            if module.groups > 1 or kernel[0] != kernel[1] or kernel[0] not in KERNELS or module.padding_mode != "zeros":
                return None
            sizes = (module.in_channels, module.out_channels, kernel, module.stride, module.padding, module.dilation)
            new = FrequencyDynamicConv2d(*sizes, bias=bias, **options)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    new = new.to(module.weight.device, module.weight.dtype).train(module.training)
    state = new.weight_state(module.weight) | ({"bias": module.bias} if module.bias is not None else {})
    new.load_state_dict(state, strict=False)
    return new.requires_grad_(module.weight.requires_grad)


def from_plain_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a plain network -> one for the converted `model`, whose gates keep their present values."""
    layers = dict(_layers(model))
    own = {name: value for name, value in model.state_dict().items() if _is_own(name, layers)}
    result = dict(own)
    for name, value in state.items():
        layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is None:
            result[name] = value
            continue
        result |= {f"{name.removesuffix('.weight')}.{key}": new for key, new in layer.weight_state(value).items()}
    return result


def to_plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain network in which all gates of the converted `model` are one.

    Weights come as out, in, k, k; those of linear layers as out, in.
    """
    layers = dict(_layers(model))
    result = {}
    for name, value in model.state_dict().items():
        if _is_own(name, layers):
            continue
        owner, _, leaf = name.rpartition(".")
        if owner in layers and leaf in ("weight", "dft_weight"):
            name, value = f"{owner}.weight", layers[owner].plain_weight()
        result[name] = value
    return result


def _layers(model: nn.Module) -> Iterator[tuple[str, FrequencyDynamic]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FrequencyDynamic))


def _is_own(name: str, layers: Mapping[str, FrequencyDynamic]) -> bool:
    return any(name.startswith(f"{layer}.") and name[len(layer) + 1 :].startswith(OWN) for layer in layers)
