"""Image super-resolution and restoration: from any picture to a better one."""

__version__ = "0.1.0"
