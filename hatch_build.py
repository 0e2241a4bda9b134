"""Puts the man pages into the wheel: `man memcalc-estimate` works where it is installed.

They are written from the option table when the wheel is built (memcalc/cli/pages/files.py), so no copy of
them is kept. Checked by: tests/cli/test_packaging.py.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):  # type: ignore[type-arg]
    """A build hook of hatchling."""

    folder: Path

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages to a folder and name them as files of the wheel."""
        self.folder = Path(tempfile.mkdtemp(prefix="memcalc-man-"))
        for name, text in _pages(self.root).items():
            path = self.folder / name
            path.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(path)] = f"share/man/man1/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _pages(root: str) -> dict[str, str]:
    sys.path.insert(0, root)
    try:
        from memcalc.cli.options import COMMANDS
        from memcalc.cli.pages.files import man_page, man_start
        from memcalc.cli.pages.page import page_of
    finally:
        sys.path.remove(root)
    pages = {f"memcalc-{command}.1": man_page(page_of(command)) for command in COMMANDS}
    return {"memcalc.1": man_start(), **pages}
