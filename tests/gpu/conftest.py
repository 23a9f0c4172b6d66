"""Puts this folder on the path: a bare machine may have another package named ``tests``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
