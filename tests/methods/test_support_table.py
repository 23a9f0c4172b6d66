"""The support table of the README is the matrix that the tests run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.matrix import CELLS

ROOT = Path(__file__).resolve().parents[2]


def test_readme_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts/support_table.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_cell_has_a_line() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for cell in CELLS:
        assert f"| {cell.family} | {cell.variant} |" in readme
