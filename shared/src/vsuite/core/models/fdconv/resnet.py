"""ResNet with frequency dynamic convolutions in its blocks, as published for detection and segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vsuite.core.models.fdconv.convert import convert_to_fdconv
from vsuite.core.models.resnet import ResNet, infer_sizes
from vsuite.core.registry import OtherNames, PublishedLayout, PublishedResult, Variant, register_variants


class FDConvResNet(ResNet):
    """A ResNet whose blocks have frequency dynamic convolutions; the stem and the shortcuts stay plain. Sides are free.

    Args:
        in_channels, num_classes, depths, embed_dim, bottleneck: see `ResNet`.
        kernel_num, reduction, param_ratio, use_ksm_local, ksm_only_kernel_att, ksm_global_act, ksm_local_act, k_list, official_start:
            see `FrequencyDynamicConv2d`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 64,
        bottleneck: bool = True,
        kernel_num: int | None = 64,
        reduction: float = 1 / 16,
        param_ratio: int = 1,
        use_ksm_local: bool = True,
        ksm_only_kernel_att: bool = False,
        ksm_global_act: str = "sigmoid",
        ksm_local_act: str = "sigmoid",
        k_list: Sequence[float] = (2, 4, 8),
        official_start: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, depths=depths, embed_dim=embed_dim, bottleneck=bottleneck)
        convert_to_fdconv(
            self,
            convolutions=["layer*.conv?"],
            kernel_num=kernel_num,
            reduction=reduction,
            param_ratio=param_ratio,
            use_ksm_local=use_ksm_local,
            ksm_only_kernel_att=ksm_only_kernel_att,
            ksm_global_act=ksm_global_act,
            ksm_local_act=ksm_local_act,
            k_list=tuple(k_list),
            official_start=official_start,
        )


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    last = max(name.split(".")[1] for name in state if name.startswith("layer4."))
    widest = f"layer4.{last}.conv1"  # of the most input channels, where the least width of the gates does not hide the ratio
    hidden, channels = state[f"{widest}.KSM_Global.fc.weight"].shape[:2]
    copies = len(state[f"{widest}.dft_weight"])
    return {
        **infer_sizes(state),
        "kernel_num": len(state[f"{widest}.KSM_Global.kernel_fc.weight"]) // copies,
        "reduction": hidden / channels if hidden > 16 else 1 / 16,
        "param_ratio": copies,
        "use_ksm_local": f"{widest}.KSM_Local.conv.weight" in state,
        "ksm_only_kernel_att": f"{widest}.KSM_Global.channel_fc.weight" not in state,
    }


def _without_prefix(name: str) -> str:
    return name.removeprefix("backbone.")


LAYOUT = PublishedLayout(
    build=FDConvResNet,
    infer=_infer,
    keys=("conv1.weight", "layer1.0.conv2.dft_weight", "layer4.0.conv2.dft_weight"),
    assumed={"ksm_global_act": "sigmoid", "ksm_local_act": "sigmoid", "k_list": (2, 4, 8)},
    others=(OtherNames("mmdetection", ("backbone.conv1.weight", "backbone.layer1.0.conv2.dft_weight"), _without_prefix),),
    ignored=("neck.*", "*_head.*"),  # the rest of a detector or segmenter
    fresh=("*.group_map",),  # follows from the sizes
    head="fc.",
    stem="conv1.weight",
)

register_variants(
    FDConvResNet,
    {
        "fdconv_resnet50": Variant(
            {},
            "29.2 M parameters, 27.2 M without classifier",
            (
                PublishedResult("COCO val2017, Faster R-CNN 1x", "box AP", 39.4, "%"),
                PublishedResult("COCO val2017, Mask R-CNN 1x", "box AP", 42.4, "%"),
                PublishedResult("COCO val2017, Mask R-CNN 1x", "mask AP", 38.6, "%"),
            ),
        ),
    },
    system="fdconv",
    task="classification",
    paper="Frequency Dynamic Convolution for Dense Image Prediction, Chen et al., CVPR 2025, arXiv 2503.18783",
    licence="MIT (official code and weights)",
    layout=LAYOUT,
)
