"""The systems of this package, one file each; importing this module registers them (torch only)."""

from vsuite.pointcloud.models.centerpoint import SparseEncoder
from vsuite.pointcloud.models.flatformer import FlatFormer
from vsuite.pointcloud.models.gpsformer import GPSFormer
from vsuite.pointcloud.models.gpsformer_parts import GPSFormerParts
from vsuite.pointcloud.models.pointnet2 import PointNet2

__all__ = ["FlatFormer", "GPSFormer", "GPSFormerParts", "PointNet2", "SparseEncoder"]
