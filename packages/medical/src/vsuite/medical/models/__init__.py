"""The systems of this package, one file each; importing this module registers them (torch only)."""

from vsuite.medical.models.segformer3d import SegFormer3D

__all__ = ["SegFormer3D"]
