"""The user's folders follow XDG's variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.userdirs import config_dir, data_dir


def test_the_variables_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert config_dir() == tmp_path / "c" / "memcalc"
    assert data_dir() == tmp_path / "d" / "memcalc"


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_else_the_home_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", value)
    monkeypatch.setenv("XDG_DATA_HOME", value)
    assert config_dir() == tmp_path / ".config" / "memcalc"
    assert data_dir() == tmp_path / ".local" / "share" / "memcalc"
