"""For all tests: worker processes of pytest are told the width of its terminal, which our commands would heed."""

from __future__ import annotations

import os

os.environ.pop("COLUMNS", None)
