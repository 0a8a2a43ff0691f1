"""Makes `tests/fakes.py` importable by its bare name, whatever the import mode of pytest."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# before torch starts its threads; see mmdd.cli.main
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# what a test caches must neither come from the user's cache nor fill it
os.environ["MMDD_CACHE"] = tempfile.mkdtemp(prefix="mmdd-tests-")
atexit.register(shutil.rmtree, os.environ["MMDD_CACHE"], ignore_errors=True)

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    # at the end: nothing that is installed may be hidden by a file of the tests
    sys.path.append(HERE)
