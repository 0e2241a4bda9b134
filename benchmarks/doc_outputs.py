"""The commands that README.md and docs/ show: found, run where a reader would, written anew.

    python -m benchmarks.doc_outputs              run every console block, rewrite outputs that moved
    python -m benchmarks.doc_outputs PAGE ...     of these pages alone, as docs/solve.md

Blocks ```console hold `$ memcalc ...` and its output; a block ```LANGUAGE NAME is a file that the page's
commands read. Times and device names differ from machine to machine (`steady`) and are not rewritten
for themselves. Checked by: tests/test_readme.py, which holds every page against this.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```\w+ ([\w.-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Shown(NamedTuple):
    """A command of a page and the output below it."""

    page: Path
    command: str
    output: str


def blocks(language: str) -> list[tuple[Path, str]]:
    """(page, content) of every block of a language."""
    return [
        (page, code)
        for page in PAGES
        for found, code in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def commands() -> list[Shown]:
    """Each `$ memcalc ...` line of console blocks with what is shown below it."""
    found = []
    for page, code in blocks("console"):
        for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if command.startswith("memcalc"):
                found.append(Shown(page, command, shown))
    return found


def furnish(place: Path) -> Path:
    """Put the repository's files, by links, and the files that pages show into an empty folder."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (place / entry.name).symlink_to(entry)
    for page in PAGES:
        for name, content in _FILE.findall(page.read_text(encoding="utf-8")):
            if (place / name).exists():
                raise ValueError(f"{page.name}: {name} is shown twice")
            (place / name).write_text(content, encoding="utf-8")
    return place


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line of memcalc there, at 80 columns, without colour and without any tool."""
    words = shlex.split(command)
    return subprocess.run(
        [sys.executable, "-m", "memcalc", *words[1:]],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=300,
        check=False,
        env={"COLUMNS": "80", "PATH": "", "NO_COLOR": "1", "PYTHONPATH": str(ROOT),
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def steady(text: str) -> str:
    """Output without what differs from machine to machine: times and the device's own name."""
    text = re.sub(r"[\d,.]+ ms", "# ms", text)
    text = re.sub(r"^tokens/s .+$", "tokens/s #", text, flags=re.MULTILINE)
    text = re.sub(r", on .+$", ", on DEVICE", text, flags=re.MULTILINE)
    text = re.sub(r"^torch .+$", "torch RELEASE", text, flags=re.MULTILINE)
    return re.sub(r" {2,}|-{2,}", " ", text).rstrip()


def main(words: list[str]) -> int:
    """Rewrite the outputs that moved; 1 where a command failed."""
    wanted = {(ROOT / word).resolve() for word in words}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        place = furnish(Path(folder))
        for shown in commands():
            if wanted and shown.page not in wanted:
                continue
            done = run(shown.command, place)
            if done.returncode not in (0, 3):
                print(f"{shown.page.name}: {shown.command}: {done.stderr.strip()}", file=sys.stderr)
                failed = 1
            elif steady(done.stdout) != steady(shown.output):
                _rewrite(shown, done.stdout)
                print(f"{shown.page.name}: {shown.command}")
    return failed


def _rewrite(shown: Shown, output: str) -> None:
    """Put the new output in the place of the old one, keeping the blank line before a next command."""
    text = shown.page.read_text(encoding="utf-8")
    old, new = f"$ {shown.command}\n{shown.output}", f"$ {shown.command}\n{output}"
    if shown.output.endswith("\n\n") and not output.endswith("\n\n"):
        new += "\n"
    if text.count(old) != 1:
        raise ValueError(f"{shown.page.name}: '$ {shown.command}' stands {text.count(old)} times")
    shown.page.write_text(text.replace(old, new), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
