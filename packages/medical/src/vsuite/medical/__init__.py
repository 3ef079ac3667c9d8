"""3D medical image segmentation: from NIfTI files to trained, evaluated and exported models."""

__version__ = "0.1.0"
