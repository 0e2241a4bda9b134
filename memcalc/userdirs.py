"""The user's own folders: calibrations under the config directory, records under the data directory.

XDG's variables where they are set, else what the platform does. Checked by: unit/test_userdirs.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def config_dir() -> Path:
    """Where the user's profiles are looked for: $XDG_CONFIG_HOME/memcalc or ~/.config/memcalc."""
    return _base("XDG_CONFIG_HOME", "APPDATA", ".config") / "memcalc"


def data_dir() -> Path:
    """Where records are kept: $XDG_DATA_HOME/memcalc or ~/.local/share/memcalc."""
    return _base("XDG_DATA_HOME", "LOCALAPPDATA", ".local/share") / "memcalc"


def _base(variable: str, windows: str, default: str) -> Path:
    """The folder all programs share; a relative value does not count, as XDG says."""
    names = (variable, windows) if sys.platform == "win32" else (variable,)
    for name in names:
        value = os.environ.get(name, "")
        if os.path.isabs(value):
            return Path(value)
    return Path.home() / default
