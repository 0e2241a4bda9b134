"""memcalc doctor: what is installed, which device and which rates, where files are, what could run.

What is looked at is in `cli/doctor_checks.py`. Exit status 0, whatever is missing.
Checked by: cli/test_doctor.py.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from memcalc.cli import doctor_checks as checks
from memcalc.cli.deliver import deliver
from memcalc.cli.parse import Arguments, check_positionals

if TYPE_CHECKING:
    from memcalc.output.console import Page


def run(arguments: Arguments) -> int:
    """Write the report; always 0."""
    check_positionals(arguments)
    found = report()

    def page(sheet: Page) -> None:
        _software(sheet, found)
        _hardware(sheet, found)
        _places(sheet, found)

    deliver(arguments, lambda: found, page, f"memcalc {found['memcalc']}: ok")
    return 0


def report() -> dict[str, Any]:
    """What doctor shows, as plain values."""
    from memcalc import __version__
    from memcalc.inputs.calibrations import measured_entries
    from memcalc.inputs.profiles import KINDS, profile_names, profiles_dir

    calibrations = [f"{entry.name} ({entry.origin})" for entry in measured_entries()]
    versions, device = checks.packages(), checks.device()
    return {
        "schema": 1,
        "memcalc": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": versions,
        "extras": checks.extras(versions),
        "device": device,
        "rates": checks.rates(device),
        "harness": checks.harness(device, versions["torch"]),
        "profiles": {kind: len(profile_names(kind)) for kind in KINDS},
        "profiles_dir": str(profiles_dir()),
        "calibration": ", ".join(calibrations) or "none yet; `memcalc calibrate` makes one",
        "files": checks.files(),
        "completion": checks.completion(),
    }


def _software(sheet: Page, found: dict[str, Any]) -> None:
    sheet.line(f"memcalc {found['memcalc']}, Python {found['python']}", "bold")
    sheet.line(f"{found['platform']}, {found['cpu_count']} CPUs")
    sheet.line()
    sheet.table(("package", "version", "needed for"), [
        (name, found["packages"][name] or "not installed", purpose.what)
        for purpose in checks.PURPOSES.values()
        for name in purpose.packages
    ])  # fmt: skip
    for row in found["extras"]:
        if row["missing"]:
            sheet.line(f"for {row['for']}: {row['install']}")
    sheet.line()


def _hardware(sheet: Page, found: dict[str, Any]) -> None:
    device, harness = found["device"], found["harness"]
    driver = f", driver {device['driver']}" if device["driver"] else ""
    sheet.line(f"device: {device['description']}{driver}")
    for name in device["gpus"]:
        sheet.line(f"  {name}")
    for row in found["rates"]:
        sheet.line(f"rates of {row['device']}: {row['calibration'] or 'none'}; {row['why']}")
    can = f"yes, on {harness['device']}" if harness["can_run"] else "no"
    sheet.line(f"verify, measure, calibrate can run: {can}; {harness['why']}")
    sheet.line()


def _places(sheet: Page, found: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in found["profiles"].items())
    sheet.line(f"profiles: {counts}")
    sheet.line(f"calibration: {found['calibration']}")
    for what, place in found["files"].items():
        sheet.line(f"{what}: {place['path']}{'' if place['exists'] else ' (none yet)'}")
    shells = ", ".join(found["completion"]["installed_for"])
    sheet.line(f"completion: {shells or 'not installed; memcalc --install-completion'}")
