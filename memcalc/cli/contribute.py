"""memcalc calibrate --contribute DIR: what others need of this device, in one folder, without names.

    DIR/NAME.toml        the calibration, for profiles/calibrations/
    DIR/records.jsonl    a few models run and held against the estimate, for benchmarks/measured/
    DIR/environment.json the device and the software, and what was left out of each file
    DIR/README.md        how to hand it in

Runs of another depth than the calibration's own are what it is judged by, so they are in no fit.
Host, user and folder names are taken out of every text (`without_names`), the kernel's build string and
ids of boards too. Exit status as calibrate's. On a GPU not yet run. Checked by: cli/test_contribute.py.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from memcalc.cli.parse import Arguments
from memcalc.errors import ConfigError

#: Models that are run, small enough for any device; a GPU takes all of a model, a CPU few blocks.
RUNS: Final = {
    "cpu": (
        ("gpt2", "--layers", "3", "--seq", "64"),
        ("llama-3.2-1b", "--layers", "1", "--seq", "32", "--precision", "fp32"),
    ),
    "cuda": (
        ("gpt2",),
        ("llama-3.2-1b", "--recompute", "full"),
        ("llama-3.1-8b", "--layers", "4", "--seq", "4096", "--precision", "bf16"),
        ("qwen2.5-0.5b", "--micro-batch", "4", "--optimizer-impl", "fused"),
    ),
}
#: Names of fields that say which board or machine this is; they are left out.
_IDENTITY: Final = ("uuid", "serial", "pci_bus_id", "hostname", "executable", "index")
_SHORTEST = 3  # letters of a name that is looked for in texts
_README = """# A contribution of measurements: {name}

- `{name}.toml` goes to `profiles/calibrations/`, unchanged.
- `records.jsonl` goes to `benchmarks/measured/{name}.jsonl`; {ran} runs, {verified} inside their bands.
- `environment.json` says on what; put it into the pull request.

Say there whether anything else used the device, and whether its power or clocks were capped.
"""


def folder_of(arguments: Arguments) -> Path | None:
    """The folder of --contribute, made and empty; None without it. Raises ConfigError."""
    stated = arguments.text("contribute")
    if stated is None:
        return None
    if arguments.text("out") is not None:
        raise ConfigError("--contribute: got --out too; rule: one of them")
    from memcalc.inputs.files import user_path

    folder = user_path(stated)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"--contribute: cannot make '{folder}': {error.strerror}") from None
    except ValueError:  # a NUL inside the name
        raise ConfigError(f"--contribute: got {stated!r}; rule: a folder's name") from None
    if taken is not None:
        raise ConfigError(f"--contribute: got '{folder}', which has files; rule: an empty folder")
    return folder


def write_bundle(folder: Path, profile: Mapping[str, Any], device: str, threads: str | None) -> str:
    """Write the four files; returns what was done, in a line. Raises ConfigError."""
    from memcalc.inputs.calibrations import to_text
    from memcalc.output.files import write_text

    clean = without_names(profile)
    calibration = folder / f"{clean['name']}.toml"
    write_text(str(calibration), to_text(clean))
    records = _records(folder, calibration, device, threads)
    lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    write_text(str(folder / "records.jsonl"), lines)
    facts = {
        "schema": 1,
        **{
            key: clean[key]
            for key in ("memcalc", "torch", "cuda", "date", "device")
            if key in clean
        },
        "left_out": ["host, user and folder names", "ids of boards", "the kernel's build"],
    }
    write_text(str(folder / "environment.json"), json.dumps(facts, indent=2) + "\n")
    verified = sum((record.get("comparison") or {}).get("verified") is True for record in records)
    said = {"name": clean["name"], "ran": len(records), "verified": verified}
    write_text(str(folder / "README.md"), _README.format(**said))
    return f"{len(records)} runs, {verified} inside their bands; see {folder / 'README.md'}"


def _records(
    folder: Path, calibration: Path, device: str, threads: str | None
) -> list[dict[str, Any]]:
    """The records of the runs; one that does not fit or breaks is a record too."""
    from memcalc.__main__ import main
    from memcalc.harness.records import read

    raw = folder / "records.raw.jsonl"
    more = ["--threads", threads] if threads is not None else []
    common = ["--device", device, "--records", str(raw), "--calibration", str(calibration), *more]
    try:
        for words in RUNS["cpu" if device.startswith("cpu") else "cuda"]:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                main(["verify", *words, *common, "--quiet"])
        found = read(raw) if raw.is_file() else []
    finally:
        raw.unlink(missing_ok=True)
    return [without_names(record) for record in found]


def without_names(value: Any) -> Any:
    """The value without what says whose machine it was: fields of identity, names inside of texts."""
    return _cleaned(value, tuple(_names()))


def _cleaned(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: f"{platform.system()} {platform.machine()}"
            if key == "platform" and isinstance(entry, str)
            else _cleaned(entry, names)
            for key, entry in value.items()
            if key not in _IDENTITY
        }
    if isinstance(value, (list, tuple)):
        return [_cleaned(entry, names) for entry in value]
    if isinstance(value, str):
        for name in names:
            value = value.replace(name, "-")
    return value


def _names() -> Iterator[str]:
    """Folders, host and user as texts may hold them, longest first."""
    found = {str(Path.home()), os.getcwd(), str(Path(__file__).resolve().parents[2])}
    found |= {platform.node(), platform.node().partition(".")[0]}
    with contextlib.suppress(Exception):  # no name for this user id
        found.add(getpass.getuser())
    usual = {"root", "user", "ubuntu", "localhost"}  # nobody's name, and words of texts
    kept = {name for name in found if len(name) >= _SHORTEST and name not in usual}
    yield from sorted(kept, key=len, reverse=True)
