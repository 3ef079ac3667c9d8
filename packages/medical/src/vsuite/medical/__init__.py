"""Medical images: segmentation, classification and training without labels, from files to exported models."""

__version__ = "0.1.0"
