"""Makes `tests/fakes.py` importable by its bare name, whatever the import mode of pytest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# before torch starts its threads; see mmdd.cli.main
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    # at the end: nothing that is installed may be hidden by a file of the tests
    sys.path.append(HERE)
