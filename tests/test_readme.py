"""Every `memcalc` command and every Python block of the README and docs runs, with the output shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page.name, code)
        for page in PAGES
        for found, code in _BLOCK.findall(page.read_text())
        if found == language
    ]


def commands() -> list[tuple[str, str, str]]:
    """(page, command, output shown below it) of each `$ memcalc ...` line of console blocks."""
    found = []
    for page, code in blocks("console"):
        for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if command.startswith("memcalc"):
                found.append((page, command, shown))
    return found


def run(command: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    return subprocess.run(
        [sys.executable, "-m", "memcalc", *words[1:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={"COLUMNS": "80", "PATH": "", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )


def _steady(text: str) -> str:
    """Output without what differs from machine to machine: times and the device's own name."""
    text = re.sub(r"[\d,.]+ ms", "# ms", text)
    text = re.sub(r"^tokens/s .+$", "tokens/s #", text, flags=re.MULTILINE)
    text = re.sub(r", on .+$", ", on DEVICE", text, flags=re.MULTILINE)
    text = re.sub(r"^torch .+$", "torch RELEASE", text, flags=re.MULTILINE)
    return re.sub(r" {2,}|-{2,}", " ", text).rstrip()


@pytest.mark.parametrize(("page", "command", "shown"), commands())
def test_a_console_block_shows_what_the_command_prints(page: str, command: str, shown: str) -> None:
    done = run(command)
    assert done.returncode in (0, 3), f"{page}: {command}: {done.stderr}"
    assert _steady(done.stdout) == _steady(shown), f"{page}: {command}"


@pytest.mark.parametrize(("page", "code"), blocks("bash"))
def test_every_memcalc_word_of_a_bash_block_is_a_command(page: str, code: str) -> None:
    for line in re.findall(r"memcalc ([^&|\n]*)", code):
        done = run(f"memcalc {line}")
        assert done.returncode in (0, 3), f"{page}: memcalc {line}: {done.stderr}"


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_a_python_block_runs(page: str, code: str) -> None:
    exec(compile(code, page, "exec"), {})


def test_the_readme_has_commands_and_code() -> None:
    assert commands() and blocks("python") and blocks("bash")
