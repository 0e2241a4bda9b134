"""Writing results: whole files or nothing, stdout for the result, stderr for notes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memcalc.errors import ConfigError


def write_text(path: str, text: str) -> None:
    """Write a text file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text)


def write_bytes(path: str, data: bytes | str) -> None:
    """Write a file atomically: a neighbour is written and renamed. Raises ConfigError.

    What is not a regular file (/dev/stdout, a pipe) is written directly; text to /dev/stdout in what its
    encoding can show. Checked by: cli/test_errors.py, cli/test_chart.py.
    """
    try:
        target = Path(path).expanduser()
        if target.is_dir():
            raise ConfigError(f"output: got directory '{path}'; rule: a file")
        if path == "/dev/stdout" and isinstance(data, str):
            put_stdout(data)
            return
        plain = data.encode("utf-8") if isinstance(data, str) else data
        if (target.exists() and not target.is_file()) or path.startswith(("/dev/", "/proc/")):
            with target.open("ab") as file:
                file.write(plain)
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise ConfigError(f"output: cannot write '{path}': Permission denied")
        _replace(target.resolve(), plain)
    except ConfigError:
        raise
    except OSError as error:
        detail = error.strerror or str(error)
        raise ConfigError(f"output: cannot write '{path}': {detail}") from None
    except (ValueError, RuntimeError) as error:  # a NUL in the name, an unknown ~user
        raise ConfigError(f"output: got {path!r}; rule: a file name ({error})") from None


def check_writable(path: str) -> None:
    """Raise ConfigError where `write_bytes` could not write: said before work that would be lost."""
    is_folder, reason = False, ""
    try:
        target = Path(path).expanduser()
        is_folder = target.is_dir()
        regular = not target.exists() or target.is_file()
        folder = target.resolve().parent  # where the neighbour is written that takes its place
        if not folder.is_dir():
            reason = "Not a directory" if folder.exists() else "No such file or directory"
        elif target.exists() and not os.access(target, os.W_OK):
            reason = "Permission denied"
        else:
            free = not regular or os.access(folder, os.W_OK | os.X_OK)
            reason = "" if free else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"output: got {path!r}; rule: a file name ({error})") from None
    if is_folder:
        raise ConfigError(f"output: got directory '{path}'; rule: a file")
    if reason:
        raise ConfigError(f"output: cannot write '{path}': {reason}")


def _replace(target: Path, data: bytes) -> None:
    import tempfile

    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:32]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_json(value: Any) -> str:
    """JSON text; infinities are our bug and raise."""
    import json

    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def put_stdout(text: str) -> None:
    """Write text to stdout whatever its encoding can show; a write error is seen here."""
    stream = sys.stdout
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def put_notes(lines: Iterable[str], label: str = "note") -> None:
    """Notes on stderr, a line each."""
    for line in lines:
        text = "".join(c if c.isprintable() else "?" for c in f"{label}: {line}")
        print(text.encode("ascii", "replace").decode(), file=sys.stderr)
