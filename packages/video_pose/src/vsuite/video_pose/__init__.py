"""Skeletons, poses, actions and video."""

__version__ = "0.1.0"
