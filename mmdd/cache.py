"""Where costly things that depend on data and recipe alone are kept for the next run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``MMDD_CACHE``, or the user's cache folder."""
    base = os.environ.get("MMDD_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmdd"
