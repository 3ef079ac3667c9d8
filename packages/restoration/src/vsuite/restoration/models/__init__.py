"""The systems of this package, one file each; importing this module registers them (torch only)."""

from vsuite.restoration.models.drct import DRCT

__all__ = ["DRCT"]
