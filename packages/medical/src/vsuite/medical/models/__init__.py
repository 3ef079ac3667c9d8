"""The systems of this package, one file each; importing this module registers them (torch only)."""

from vsuite.medical.models.duoformer import DuoFormer
from vsuite.medical.models.mae import MaskedAutoencoder
from vsuite.medical.models.segformer3d import SegFormer3D
from vsuite.medical.models.transunet import TransUNet

__all__ = ["DuoFormer", "MaskedAutoencoder", "SegFormer3D", "TransUNet"]
