"""The sweep's folder: which file a record goes to, what earlier calls already have, size limits.

At most eight files of at most 16 MiB, so that all can be carried from a machine one has for ten
minutes. A record is appended, synced and never rewritten. No torch.
Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memcalc.errors import ConfigError
from memcalc.harness import records

#: kind of record -> its file. Beside them: calibration.toml, trace.json.gz, log.txt, summary.json.
FILES = {
    "measure": "records.jsonl", "question": "questions.jsonl", "calibration-run": "questions.jsonl",
    "mfu": "mfu.jsonl", "residual": "mfu.jsonl", "timing": "timing.jsonl",
    "verify-decode": "timing.jsonl",
}  # fmt: skip
MOST_BYTES = 15 << 20
_FINAL = ("ok", "oom", "refused")


class Kept:
    """Records of this folder and of the files and folders in `have`, by what they answer."""

    def __init__(self, folder: Path, have: Iterable[Path]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out: cannot make '{folder}': {error.strerror or error}") from None
        self.records: list[dict[str, Any]] = []
        self.dropped = 0
        for path in [folder, *have]:
            self._load(path)

    def _load(self, path: Path) -> None:
        if not path.exists():
            raise ConfigError(f"--have: got '{path}', not there; rule: a .jsonl file or a folder")
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        for file in files:
            self.records += [r for r in records.read(file) if r.get("kind") in FILES]

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record to its file, unless the file is full."""
        path = self.folder / FILES[record["kind"]]
        size = path.stat().st_size if path.exists() else 0
        if size + len(json.dumps(records.finite(record))) > MOST_BYTES:
            self.dropped += 1
            return
        records.append(path, record)
        self.records.append(dict(record))

    def of(self, kind: str, device: str) -> list[dict[str, Any]]:
        """Records of a kind taken on a device of this name."""
        return [
            record
            for record in self.records
            if record["kind"] == kind and (record.get("device") or {}).get("name") == device
        ]

    def measured(self, device: str) -> set[tuple[str, str]]:
        """(setup key, role) of the setups with a final result on the device."""
        return {
            (record["sweep"]["key"], record["sweep"]["role"])
            for record in self.of("measure", device)
            if record.get("status") in _FINAL and "sweep" in record
        }

    def timed(self, device: str) -> set[str]:
        """Keys of the setups whose steps were timed on the device."""
        final = [r for r in self.of("timing", device) if r.get("status") in _FINAL]
        return {record["sweep"]["key"] for record in final}

    def answered(self, device: str) -> set[str]:
        """Ids of questions with an answer, or that the device cannot be asked."""
        done = ("ok", "skipped")
        return {r["id"] for r in self.of("question", device) if r.get("status") in done}

    def modes_run(self, case: str, device: str) -> set[str]:
        """Modes ("eager", "compiled") an MFU case has our runner's steps of."""
        return {
            row["name"].rpartition(" ")[2]
            for record in self.of("mfu", device)
            if record["case"] == case
            for row in record["runners"]
            if row["status"] == "ok" and row["name"].startswith("memcalc")
        }

    def settings_of(self, case: str, device: str) -> dict[str, Any] | None:
        """The settings an earlier MFU record of the case chose for our decoder."""
        found = [r["settings"] for r in self.of("mfu", device)
                 if r["case"] == case and r.get("settings") and r.get("status") == "ok"]  # fmt: skip
        return found[-1] if found else None

    def is_done(self, kind: str, device: str) -> bool:
        """Whether a stage of one record has ended well."""
        return any(r.get("status") == "ok" and not r.get("late") for r in self.of(kind, device))
