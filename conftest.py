"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # the first example may import torch, on a machine that does other things as well
settings.load_profile("untimed")
