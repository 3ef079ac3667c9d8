"""Filling the backbone of a larger model from weights of its own."""

from __future__ import annotations

from vsuite.core import InputError, create_model, load_weights
from vsuite.core.models.resnet import ResNet
from vsuite.core.weights import Source
from vsuite.medical.models.duoformer import Backbone, DuoFormer


def load_backbone(model: DuoFormer, source: Source) -> None:
    """Fills DuoFormer's backbone from weights of a whole ResNet under torchvision's or mmpretrain's names.

    Heads (a classifier, those of self-supervised pre-training) are left out.

    Raises:
        InputError: where the weights lack something of the backbone or are of another size.
    """
    resnet = create_model(model.backbone, num_classes=0, in_channels=model.in_channels)
    assert isinstance(resnet, ResNet)
    report = load_weights(resnet, source, strict=False)
    report.unexpected.clear()
    if report.problems():
        raise InputError(f"{source if isinstance(source, str) else 'the weights'}: no {model.backbone}: {report.problems()}")
    model.resnet_projector.load_state_dict(Backbone(resnet).state_dict())
