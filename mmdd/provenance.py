"""Where a result comes from: versions of what made it, and the commit of the source."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tomllib
from pathlib import Path

import torch

import mmdd


def versions() -> dict[str, str]:
    """Versions of what decides a result: this package, Python, libraries, platform."""
    return {
        "mmdd": mmdd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "datasets": importlib.metadata.version("datasets"),
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(),
    }


def commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed package."""
    package = Path(mmdd.__file__).resolve().parent
    # inside a git hook these point to another repository
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        project = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf8"))
        if project["project"]["name"] != "mmdd":
            return None
        asked = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=environment,
        )
        top, head = asked.stdout.splitlines()
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return None
    return head if Path(top).resolve() == package.parent else None
