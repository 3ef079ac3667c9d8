"""The published systems of this package, one file each; importing them registers their models."""

from __future__ import annotations

from vsuite.restoration.models import drct

__all__ = ["drct"]
