"""Records: one JSON line for every run, appended so that a killed writer loses at most its own line.

A record is written with one write call under a file lock and synced before `append` returns, so what
was appended stays. A writer killed in the middle leaves a tail without a newline: readers pass over
it, the next `append` cuts it off. Numbers are in base units (bytes, seconds, FLOPs); a number that is
not finite is written as null. Nothing here needs torch.

Checked by: harness/test_records.py (a writer killed at random moments, two writers at once).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.files import is_deeper, user_path
from memcalc.userdirs import data_dir

try:
    import fcntl
except ImportError:  # a platform without it: appends of one process stay whole
    fcntl = None  # type: ignore[assignment]

#: Version of a record's layout; readers refuse newer ones.
SCHEMA = 1
#: Larger files are not read: no one's runs fill them.
MAX_BYTES = 1 << 29
_TAIL_BLOCK = 1 << 16


class Line(NamedTuple):
    """A line that holds no record: its number, from 1, and why."""

    number: int
    reason: str


class RecordFile(NamedTuple):
    """What a file holds: its records in order, and the lines that are none."""

    records: list[dict[str, Any]]
    broken: list[Line]


def user_records() -> Path:
    """The user's own file of records, its folder made. Raises ConfigError where that cannot be."""
    folder = data_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = error.strerror or error
        raise ConfigError(
            f"records: cannot make '{folder}': {said}; rule: --records FILE, or --no-record"
        ) from None
    return folder / "records.jsonl"


def append(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one record and sync it to disk; when this returns, the record is there to stay.

    Raises ConfigError in one line where the file cannot be written; nothing is left half written.
    """
    append_all(path, [record])


def append_all(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append several records, a line each, with one write: all of them, or none on an error."""
    line = b"".join(_encoded(record) for record in records)
    with _opened(path) as handle:
        _mend_tail(handle)
        before = os.fstat(handle).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
        except BaseException:
            if written < len(line):
                os.ftruncate(handle, before)
            raise
        os.fsync(handle)
        if not before:
            _sync_folder(Path(path).expanduser())


def prepare(path: str | Path) -> None:
    """Raise ConfigError now if `append` could not write there later; makes an empty file."""
    with _opened(path) as handle:
        _mend_tail(handle)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file, oldest first; lines that hold none are passed over. See `read_file`."""
    return read_file(path).records


def read_file(path: str | Path) -> RecordFile:
    """The records of a file, and the lines that are broken, by number.

    A last line without a newline counts when it is whole: a record cut short is never valid JSON.
    Raises ConfigError when the file cannot be read, or holds a record of a newer schema.
    """
    records: list[dict[str, Any]] = []
    broken: list[Line] = []
    try:
        place = user_path(str(path))
        if place.exists() and not place.is_file():
            raise ConfigError(f"records: cannot read '{path}': no regular file; rule: a file")
        if (size := place.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"records: '{path}' has {size} bytes; rule: at most {MAX_BYTES}")
        with place.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                record, reason = _decoded(raw)
                if record is not None:
                    _check_schema(record, number, path)
                    records.append(record)
                elif raw.endswith(b"\n"):
                    broken.append(Line(number, reason))
    except OSError as error:
        raise ConfigError(f"records: cannot read '{path}': {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"records: got {str(path)!r}; rule: a file name ({error})") from None
    return RecordFile(records, broken)


def finite(value: Any) -> Any:
    """The value as plain JSON: numbers that are not finite become None, tuples lists.

    Raises TypeError for what JSON has no form for: a tensor in a record is our mistake.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(name): finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    raise TypeError(f"record: got a {type(value).__name__}; rule: numbers, text, lists, mappings")


def _encoded(record: Mapping[str, Any]) -> bytes:
    plain = finite(record)
    if not isinstance(plain.get("schema"), int):
        raise ValueError("record: got no schema; rule: made by record_head.new_record")
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _decoded(raw: bytes) -> tuple[dict[str, Any] | None, str]:
    """A line's record, or why it is none."""
    try:
        record = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None, "not JSON"
    if not isinstance(record, dict):
        return None, "not an object"
    if is_deeper(record):
        return None, "nested too deeply"
    if isinstance(record.get("schema"), bool) or not isinstance(record.get("schema"), int):
        return None, "without a schema number"
    return record, ""


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _check_schema(record: Mapping[str, Any], number: int, path: str | Path) -> None:
    if record["schema"] > SCHEMA:
        raise ConfigError(
            f"records: got schema {record['schema']} in line {number} of '{path}'; "
            f"rule: at most {SCHEMA}, written by this memcalc or an older one"
        )


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    """The file, open for reading and appending and locked against other writers."""
    try:
        handle = _open(Path(path).expanduser(), path)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"records: cannot write '{path}': {error.strerror or error}") from None
    except (ValueError, RuntimeError) as error:  # a NUL in the name, an unknown ~user
        raise ConfigError(f"records: got {str(path)!r}; rule: a file name ({error})") from None
    try:
        _lock(handle)
        yield handle
    except OSError as error:
        raise ConfigError(f"records: cannot write '{path}': {error.strerror or error}") from None
    finally:
        os.close(handle)  # which lets go of the lock


def _open(file: Path, said: str | Path) -> int:
    if file.is_dir():
        raise ConfigError(f"records: got directory '{said}'; rule: a file")
    if file.exists() and not file.is_file():
        raise ConfigError(f"records: got '{said}', no regular file; rule: a file, or --no-record")
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(file, flags | getattr(os, "O_BINARY", 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ConfigError(f"records: got '{said}', no regular file; rule: a file")
    return handle


def _lock(handle: int) -> None:
    """Wait for the file's lock; a file system without locks goes without."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)


def _mend_tail(handle: int) -> None:
    """Cut off what a killed writer left after the last newline; a whole record gets its newline."""
    size = end = os.fstat(handle).st_size
    tail = b""
    while end > 0:
        start = max(0, end - _TAIL_BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        block = os.read(handle, end - start)
        newline = block.rfind(b"\n")
        tail = block[newline + 1 :] + tail
        end = start
        if newline >= 0:
            break
    if not tail:
        return
    if _decoded(tail)[0] is not None:
        os.write(handle, b"\n")
    else:
        os.ftruncate(handle, size - len(tail))


def _sync_folder(file: Path) -> None:
    """Sync the folder's entry of a new file, where the platform can."""
    with contextlib.suppress(OSError):
        folder = os.open(file.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
