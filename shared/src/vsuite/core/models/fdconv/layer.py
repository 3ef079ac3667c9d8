"""The frequency dynamic convolution: a weight that is made anew for each image."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError, unknown
from vsuite.core.models.fdconv.bands import FrequencyBandModulation
from vsuite.core.models.fdconv.modulation import GlobalModulation, LocalModulation
from vsuite.core.models.fdconv.spectrum import frequency_groups, from_spectrum, to_spectrum


class FrequencyDynamic(nn.Module):
    """What the convolution and the linear layer share: the parameters, and the weight that they make for each image."""

    group_map: Tensor
    weight: Tensor  # as the convolution's, with convert_param=False
    dft_weight: Tensor  # as `to_spectrum` makes it, else

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int,
        bias: bool,
        *,
        kernel_num: int | None = 64,
        reduction: float = 1 / 16,
        kernel_temp: float = 1.0,
        temp: float | None = None,
        att_multi: float = 2.0,
        param_ratio: int = 1,
        use_ksm_local: bool = True,
        ksm_local_act: str = "sigmoid",
        ksm_global_act: str = "sigmoid",
        ksm_only_kernel_att: bool = False,
        convert_param: bool = True,
        official_start: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.taps = in_channels, out_channels, taps
        self.rows, self.columns = out_channels * taps, in_channels * taps
        self.param_ratio = param_ratio
        self.kernel_num = out_channels // 2 if kernel_num is None else kernel_num
        self.kernel_temp = math.sqrt(self.kernel_num * param_ratio) if kernel_num is None else kernel_temp
        self.temp = self.kernel_temp if temp is None else temp
        self.att_multi = att_multi
        self.ksm_global_act, self.ksm_local_act, self.ksm_only_kernel_att = ksm_global_act, ksm_local_act, ksm_only_kernel_att
        self._check()
        self.convert_param, self.official_start = convert_param, official_start
        weight = torch.empty(out_channels, in_channels, taps, taps)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        for name, value in self.weight_state(weight).items():
            self.register_parameter(name, nn.Parameter(value))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("group_map", frequency_groups(self.rows, self.columns, self.kernel_num, weight.device).clone())
        self.KSM_Global = GlobalModulation(
            in_channels,
            out_channels,
            taps,
            self.kernel_num * param_ratio,
            reduction=reduction,
            only_groups=ksm_only_kernel_att,
            official_start=official_start,
        )
        self.KSM_Local = LocalModulation(in_channels, out_channels, taps) if use_ksm_local else None
        self.factor = self._constant_factor() * (att_multi if use_ksm_local and ksm_local_act == "sigmoid" else 1)

    def _check(self) -> None:
        if min(self.in_channels, self.out_channels) < 2 or self.kernel_num < 1 or self.param_ratio < 1:
            raise InputError("a frequency dynamic convolution takes 2 or more channels, kernel_num and param_ratio of 1 or more")
        if self.columns % 2:
            raise InputError(f"in_channels * kernel_size must be even, as the transform is real; got {self.in_channels} * {self.taps}")
        numbers = self.rows * (self.columns // 2 + 1)
        if numbers % self.kernel_num:
            near = next(n for n in range(self.kernel_num, 0, -1) if numbers % n == 0)
            raise InputError(
                f"kernel_num must divide the {numbers} coefficients of the weight; got {self.kernel_num}, nearest below is {near}"
            )
        if self.ksm_global_act not in ("sigmoid", "tanh", "softmax"):
            raise unknown("ksm_global_act", self.ksm_global_act, ("sigmoid", "tanh", "softmax"))
        if self.ksm_local_act not in ("sigmoid", "tanh"):
            raise unknown("ksm_local_act", self.ksm_local_act, ("sigmoid", "tanh"))
        if self.ksm_global_act == "softmax" and not self.ksm_only_kernel_att:
            raise InputError("ksm_global_act='softmax' goes with ksm_only_kernel_att=True only: the other gates have no softmax")

    def weight_state(self, weight: Tensor) -> dict[str, Tensor]:
        """The weight of a convolution (out, in, k, k) or linear layer (out, in) as entry of this layer's state dict."""
        weight = weight.detach().reshape(self.out_channels, self.in_channels, self.taps, self.taps)
        weight = weight if self.official_start else weight / self.param_ratio
        return {"dft_weight": to_spectrum(weight, self.param_ratio)} if self.convert_param else {"weight": weight}

    @torch.no_grad()
    def plain_weight(self) -> Tensor:
        """The weight with all gates at one: out, in, k, k (a linear layer's: out, in)."""
        return from_spectrum(self.dft_weight, self.taps) if self.convert_param else self.weight * self.param_ratio

    def is_small(self, inputs: int, outputs: int) -> bool:
        """Whether the weight has fewer numbers than the map before and after it, of so many positions.

        Then the gates on channels and filters cost less on the weight than on the maps. (An exported graph serves any size.)
        """
        return not torch.compiler.is_exporting() and self.rows * self.columns < self.in_channels * inputs + self.out_channels * outputs

    def modulated(self, mean: Tensor, *, merge: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The weight of each image, and the gates that are not in it.

        Args:
            mean: of each input channel; B, in_channels.
            merge: multiply all gates into the weight.

        Returns:
            The weight (B, out * k, in * k), the gates on its inputs (B, k, in, k) and on its filters (B, out), in float32; None
            for gates that are in the weight already or that there are none of.
        """
        with _in_float32(mean.device):
            mean = mean.to(self.KSM_Global.fc.weight.dtype)
            hidden = self.KSM_Global(mean)
            weight = self._weight(mean, hidden)
            inputs, filters, positions = (self._gate(name, hidden) for name in ("channel_fc", "filter_fc", "spatial_fc"))
            if inputs is not None:
                inputs = inputs[:, None, :, None]
            if inputs is not None and positions is not None:
                inputs = inputs * positions.view(-1, self.taps, 1, self.taps)
            if not merge:
                return weight, inputs, filters
            weight = weight.unflatten(1, (-1, self.taps))  # B, out, k, in * k
            if inputs is not None:
                weight = weight * inputs.flatten(2)[:, None]
            if filters is not None:
                weight = weight * filters[:, :, None, None]
            return weight.flatten(1, 2), None, None

    def _weight(self, mean: Tensor, hidden: Tensor) -> Tensor:
        """The weight but for the gates on channels, filters and positions: B, out * k, in * k in float32."""
        spectrum = self.dft_weight if self.convert_param else to_spectrum(self.weight, self.param_ratio)
        attention = self._group_attention(hidden) * self.factor
        attention, groups = attention.unflatten(1, (self.param_ratio, self.kernel_num)), self.group_map.int().flatten()
        if torch.compiler.is_exporting():  # ONNX looks up no complex numbers
            factors = attention.index_select(2, groups)[..., None]
        else:  # each factor twice, for the real and the imaginary part: one look-up of pairs, one product of reals
            factors = torch.view_as_real(torch.complex(attention, attention).index_select(2, groups))
        scaled = factors.unflatten(2, (self.rows, -1)) * spectrum.float()
        scaled = scaled.squeeze(1) if self.param_ratio == 1 else scaled.sum(1)
        weight = torch.fft.irfft2(torch.view_as_complex(scaled), s=(self.rows, self.columns))
        if self.KSM_Local is None:
            return weight
        logits = self.KSM_Local(mean).float()
        return weight.mul_(logits.sigmoid_() if self.ksm_local_act == "sigmoid" else logits.tanh_() + 1)

    def _group_attention(self, hidden: Tensor) -> Tensor:
        """B, param_ratio * kernel_num in float32, but for constant factors."""
        logits = self.KSM_Global.logits("kernel_fc", hidden, self.kernel_temp)
        assert logits is not None
        if self.ksm_global_act == "softmax":
            return logits.softmax(1)
        return logits.sigmoid() if self.ksm_global_act == "sigmoid" else 1 + logits.tanh()

    def _gate(self, name: str, hidden: Tensor) -> Tensor | None:
        """One kind of gates, B and their number, in float32, but for constant factors; None where there are none."""
        logits = self.KSM_Global.logits(name, hidden, self.temp)
        if logits is None:
            return None
        return logits.sigmoid() if self.ksm_global_act == "sigmoid" else 1 + logits.tanh()

    def _constant_factor(self) -> float:
        """All constants that the weight is multiplied with: the scale of its transform, and those of the gates."""
        factor: float = min(self.in_channels, self.out_channels) // 2
        if self.ksm_global_act == "softmax":
            return factor * self.kernel_num * self.param_ratio
        if self.ksm_global_act == "sigmoid":
            kinds = 0 if self.ksm_only_kernel_att else 2 + (self.taps > 1)
            factor *= 2 * self.att_multi**kinds
        return factor

    def finish(self, tokens: Tensor, filters: Tensor | None) -> Tensor:
        """Gates on the outputs, and the bias: B, N, out -> the same."""
        if filters is not None:
            tokens = tokens * filters[:, None].to(tokens.dtype)
        return tokens if self.bias is None else tokens + self.bias.to(tokens.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_num={self.kernel_num}, param_ratio={self.param_ratio}"


class FrequencyDynamicConv2d(FrequencyDynamic):
    """A convolution whose weight is made anew for each image. B, in_channels, H, W -> B, out_channels, H', W'.

    The Fourier coefficients of the weight are scaled by an attention over groups of frequencies; gates that depend on the
    image scale the weight by position, input channel and filter; the map is scaled by frequency bands at each pixel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as of `torch.nn.Conv2d`; square kernels only.
        kernel_num: groups of frequencies; None is out_channels // 2, with a temperature of the root of their number.
        reduction: hidden width of the global gates over in_channels (at least 16).
        kernel_temp, temp: temperatures of the attention over groups and of the other gates (None: the same).
        att_multi: sigmoid gates lie between 0 and this.
        param_ratio: copies of the weight, each with an attention of its own.
        use_ksm_local: a gate for each number of the weight.
        ksm_local_act: "sigmoid" or "tanh" (1 + tanh). ksm_global_act: also "softmax", with `ksm_only_kernel_att`.
        ksm_only_kernel_att: of the global gates only the attention over groups.
        convert_param: keep the weight as its transform `dft_weight`; else as `weight`, transformed at each call.
        official_start: initialise the gates on filters as the official code does, which changes the initial outputs by
            more than their spread, and do not divide copies of the weight by their number. Else the layer starts as the
            plain convolution.
        fbm: modulate the frequency bands of the input; None does so for kernels of 3.
        k_list, lowfreq_att, fbm_act, spatial_group: see `FrequencyBandModulation`.

    Raises:
        InputError: for grouped convolutions, kernels that are not square, an odd in_channels * kernel_size, or a
            kernel_num that does not divide the number of coefficients.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        fbm: bool | None = None,
        k_list: Sequence[float] = (2, 4, 8),
        lowfreq_att: bool = False,
        fbm_act: str = "sigmoid",
        spatial_group: int = 1,
        **options: Any,
    ) -> None:
        kernel = _pair(kernel_size)
        if groups != 1 or kernel[0] != kernel[1] or isinstance(padding, str):
            raise InputError(
                "a frequency dynamic convolution has one group, a square kernel and padding in pixels; "
                f"got groups {groups}, kernel {kernel[0]} x {kernel[1]}, padding {padding}"
            )
        super().__init__(in_channels, out_channels, kernel[0], bias, **options)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel, _pair(stride), _pair(padding), _pair(dilation)
        self.FBM: FrequencyBandModulation | None = None
        if kernel[0] == 3 if fbm is None else fbm:
            self.FBM = FrequencyBandModulation(in_channels, k_list, lowfreq_att=lowfreq_att, act=fbm_act, spatial_group=spatial_group)

    def forward(self, x: Tensor) -> Tensor:
        dtype, batch, k, (height, width) = x.dtype, x.shape[0], self.taps, self._size(x)
        small = self.is_small(x.shape[2] * x.shape[3], height * width)
        mean = x.mean((2, 3))
        if self.FBM is not None:
            with _in_float32(x.device):
                x = self.FBM(x).to(dtype)
        weight, inputs, filters = self.modulated(mean, merge=small)
        weight = weight.to(dtype)
        if small and k > 1:
            weight = weight.unflatten(1, (-1, k)).unflatten(3, (-1, k)).transpose(2, 3).reshape(-1, self.in_channels, k, k)
            images = x if batch == 1 else x.reshape(1, -1, *x.shape[2:])
            out = F.conv2d(images, weight, None, self.stride, self.padding, self.dilation, groups=batch).view(batch, -1, height, width)
            return out if self.bias is None else out + self.bias[:, None, None]
        columns = self._columns(x, height, width)  # B, k, in, k, H' W'
        if inputs is not None:
            columns = columns * inputs.to(dtype)[..., None]
        weight = weight.reshape(batch, self.out_channels, -1)
        tokens = self.finish(torch.bmm(columns.flatten(1, 3).transpose(1, 2), weight.transpose(1, 2)), filters)
        return tokens.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def _size(self, x: Tensor) -> tuple[int, int]:
        settings = zip(x.shape[2:], self.padding, self.dilation, self.stride, strict=True)
        height, width = (
            (side + 2 * padding - dilation * (self.taps - 1) - 1) // stride + 1 for side, padding, dilation, stride in settings
        )
        return height, width

    def _columns(self, x: Tensor, height: int, width: int) -> Tensor:
        """The inputs of each output position, in the order of the weight: B, k, in, k, H' W'."""
        k = self.taps
        if k == 1 and not any(self.padding):
            return x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)[:, None, :, None]
        columns = F.unfold(x, k, self.dilation, self.padding, self.stride)
        return columns.view(-1, self.in_channels, k, k, height * width).transpose(1, 2)


class FrequencyDynamicLinear(FrequencyDynamic):
    """A linear layer on maps with the channels last, seen as a 1x1 convolution. B, ..., in_features -> B, ..., out_features.

    Args:
        in_features, out_features, bias: as of `torch.nn.Linear`.
        options: keywords of the modulation; see `FrequencyDynamicConv2d`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        super().__init__(in_features, out_features, 1, bias, **options)

    @torch.no_grad()
    def plain_weight(self) -> Tensor:
        return super().plain_weight().flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], -1, self.in_channels)
        weight, inputs, filters = self.modulated(tokens.mean(1), merge=self.is_small(tokens.shape[1], tokens.shape[1]))
        if inputs is not None:
            tokens = tokens * inputs.view(x.shape[0], 1, -1).to(x.dtype)
        tokens = self.finish(torch.bmm(tokens, weight.to(x.dtype).transpose(1, 2)), filters)
        return tokens.view(*x.shape[:-1], self.out_channels)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


def _in_float32(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Weights are made in float32 under autocast as well: there is no transform in bfloat16."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
