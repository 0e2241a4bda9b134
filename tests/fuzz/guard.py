"""Where a case may write, and what it must not do at all: audit hooks of the interpreter.

A hook cannot be removed again, so there is one for all cases; between them it lets everything pass.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_DEVICES = ("/dev/null", "/dev/full", "/dev/stdout", "/dev/stdin", "/dev/tty", "/dev/zero")
_MOVES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod",
          "os.truncate", "shutil.rmtree")  # fmt: skip
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect",
          "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "marshal.loads")  # fmt: skip


class Stop(BaseException):
    """A case took too long, or reached outside its folder."""


class _Guard:
    """Watches what the interpreter opens while a case runs; there is one, as hooks cannot be removed."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        self.hooked = False

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(flags, int) and flags & _WRITES) or (
                isinstance(mode, str) and set(mode) & set("wax+")
            )
            if writes and not isinstance(path, int):
                self._check(event, path)
        elif event in _MOVES:
            self._check(event, args[0])
        elif event in _NEVER and not (event == "marshal.loads" and _importing()):
            self._told(f"{event} {args[0]!r:.80}")

    def _check(self, event: str, path: Any) -> None:
        text = os.path.abspath(os.fsdecode(path))
        assert self.folder is not None
        if not text.startswith(self.folder) and text not in _DEVICES:
            self._told(f"{event} {text[:80]}")

    def _told(self, what: str) -> None:
        self.seen.append(what)
        raise Stop(what)


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


GUARD = _Guard()


@contextlib.contextmanager
def sandbox(root: Path) -> Iterator[Path]:
    """Everything of the user's lies in a folder, home, settings, caches; yields the one for cases."""
    names = (
        "HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "MPLCONFIGDIR",
    )
    before, place = {name: os.environ.get(name) for name in names}, os.getcwd()
    home, work = root / "home", root / "work"
    home.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    os.environ |= {name: str(home if name == "HOME" else home / name.lower()) for name in names}
    os.environ |= {"MPLCONFIGDIR": before["MPLCONFIGDIR"] or str(home / "matplotlib")}
    os.chdir(work)
    try:
        yield work
    finally:
        os.chdir(place)
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Stop what reaches outside the folder while this lasts; `GUARD.seen` has it."""
    if not GUARD.hooked:
        sys.addaudithook(GUARD.hook)
        GUARD.hooked = True
    GUARD.seen.clear()
    GUARD.folder = str(folder.resolve())
    try:
        yield
    finally:
        GUARD.folder = None
