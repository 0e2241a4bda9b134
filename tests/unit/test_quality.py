"""Lint, format and types, as the tools themselves judge them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy", "--strict", "memcalc"],
}


@pytest.mark.parametrize("what", TOOLS)
def test_the_tools_find_nothing(what):
    tool, *words = TOOLS[what]
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; pip install memcalc[test]")
    done = subprocess.run(
        [sys.executable, "-m", tool, *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
