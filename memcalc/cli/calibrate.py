"""memcalc calibrate: micro-benchmarks of this device, into a calibration profile.

The profile goes to the user's calibrations, or to `--out FILE` where that ends in .toml or .json.
Exit status: 0 measured (what the device cannot do is listed in the profile), 2 bad input, 130
interrupted, with nothing written. Under torchrun every rank measures and rank 0 writes.
--contribute DIR also runs a few models and makes a bundle of all that (cli/contribute.py).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.cli.request import need_torch, typed
from memcalc.errors import ConfigError

if TYPE_CHECKING:
    from memcalc.output.console import Page

_INTERRUPTED = 130


def run(arguments: Arguments) -> int:
    """Measure, write the profile, show it; returns the exit status."""
    check_positionals(arguments)
    need_torch()
    from memcalc.cli.contribute import folder_of
    from memcalc.harness.ranks.layout import world

    stated = _stated_file(arguments)
    bundle = folder_of(arguments) if world().rank == 0 else None
    _prove_writable(stated)
    profile = _measured(arguments)
    if profile is None:
        from memcalc.output.files import put_notes

        put_notes(["interrupted; nothing was written"], "error")
        return _INTERRUPTED
    if world().rank == 0:
        _keep_and_show(arguments, profile, stated)
    if bundle is not None:
        _contribute(arguments, profile, bundle)
    return 0


def _contribute(arguments: Arguments, profile: dict[str, Any], folder: Path) -> None:
    """Run a few models beside the calibration and put all of it into a folder without names."""
    from memcalc.cli.contribute import write_bundle
    from memcalc.output.files import put_notes

    device = arguments.text("device") or str(profile["device"]["type"])
    said = write_bundle(folder, profile, device, arguments.text("threads"))
    put_notes([] if arguments.has("quiet") else [f"contribution written to {folder}: {said}"])


def _stated_file(arguments: Arguments) -> Path | None:
    """The file --out names for the profile itself; None for the user's folder."""
    out = arguments.text("out") or ""
    if not out.lower().endswith((".toml", ".json")):
        return None
    return Path(os.path.expanduser(out))


def _prove_writable(stated: Path | None) -> None:
    """Raise ConfigError before minutes of measuring, where the profile could not be written."""
    from memcalc.inputs.calibrations import user_folder

    folder = user_folder() if stated is None else stated.parent
    try:
        if stated is None:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise ConfigError(f"--out: got '{stated}'; rule: in a folder that exists")
        if stated is not None and (stated.is_dir() or "\0" in stated.name):
            raise ConfigError(f"--out: got {str(stated)!r}; rule: a file name, no directory")
        writable = os.access(folder, os.W_OK | os.X_OK)
        if stated is not None and stated.exists():
            writable = writable and os.access(stated, os.W_OK)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        said = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"calibration: cannot make '{folder}': {said}; rule: --out FILE"
        ) from None
    if not writable:
        raise ConfigError(f"calibration: cannot write '{stated or folder}'; rule: --out FILE")


def _measured(arguments: Arguments) -> dict[str, Any] | None:
    """The profile; None when the user stopped the run."""
    threads = None
    if "threads" in arguments.options:
        threads = typed(BY_NAME["threads"], arguments.options["threads"])
    try:
        from memcalc.harness.calibration import calibrate
        from memcalc.harness.device import pick_device
        from memcalc.harness.ranks.layout import world
        from memcalc.output.progress import progress

        device = pick_device(arguments.text("device"))
        with progress("calibrate", arguments.has("quiet") or world().rank > 0) as tell:
            return calibrate.run(device, threads=threads, progress=tell)
    except KeyboardInterrupt:
        return None


def _keep_and_show(arguments: Arguments, profile: dict[str, Any], stated: Path | None) -> None:
    """Write the profile where it belongs, then the result to where that was asked for."""
    from memcalc.inputs.calibrations import ceiling, user_folder
    from memcalc.output.calibrate_text import calibration_page, quiet_line
    from memcalc.output.files import put_notes

    in_json = stated is not None and stated.suffix.lower() == ".json"
    path = user_folder() / f"{profile['name']}.toml" if stated is None else stated
    replaced = None if in_json else _replaced(path)
    if not in_json:
        _write(profile, path)
        if stated is not None:  # the result itself goes to stdout
            options = {name: v for name, v in arguments.options.items() if name != "out"}
            arguments = replace(arguments, options=options)

    def page(sheet: Page) -> None:
        calibration_page(sheet, profile)

    line = f"{quiet_line(profile, ceiling(profile))} file {path}"
    deliver(arguments, lambda: profile, page, line)
    if not arguments.has("quiet"):
        said = f"calibration written to {path}"
        put_notes([said if replaced is None else f"{said}, in place of {replaced}"])


def _write(profile: dict[str, Any], path: Path) -> None:
    from memcalc.inputs.calibrations import to_text
    from memcalc.output.files import write_text

    write_text(str(path), to_text(profile))


def _replaced(path: Path) -> str | None:
    """What a file held before it is written over: a calibration's date, or what else it was."""
    from memcalc.inputs.calibrations import read

    if not path.is_file():
        return None
    try:
        return f"that of {read(path)['date']}"
    except ConfigError:
        return "a file that was no valid calibration"
