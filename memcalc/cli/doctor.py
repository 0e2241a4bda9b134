"""memcalc doctor: what is installed, which device there is, which profiles were found.

Nothing heavy is imported: versions come from package metadata, the device from the driver's files.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.parse import Arguments, check_positionals

if TYPE_CHECKING:
    from memcalc.output.console import Page

PACKAGES = ("typer", "rich", "numpy", "pandas", "matplotlib", "torch", "transformers")
_NEEDED_FOR = {
    "torch": "measure, verify, calibrate",
    "transformers": "comparing with Hugging Face code (tests)",
}


def run(arguments: Arguments) -> int:
    """Write the report; always 0."""
    check_positionals(arguments)
    found = report()

    def page(sheet: Page) -> None:
        sheet.line(f"memcalc {found['memcalc']}, Python {found['python']}", "bold")
        sheet.line(f"{found['platform']}, {found['cpu_count']} CPUs")
        sheet.line()
        rows = [
            (name, version or "not installed", _NEEDED_FOR.get(name, "") if not version else "")
            for name, version in found["packages"].items()
        ]
        sheet.table(("package", "version", "needed for"), rows)
        sheet.line(f"device: {found['device']['description']}")
        for name in found["device"]["gpus"]:
            sheet.line(f"  {name}")
        counts = ", ".join(f"{count} {kind}" for kind, count in found["profiles"].items())
        sheet.line(f"profiles: {counts}")
        sheet.line(f"calibration: {found['calibration']}")

    deliver(arguments, lambda: found, page, f"memcalc {found['memcalc']}: ok")
    return 0


def report() -> dict[str, Any]:
    """What doctor shows, as plain values."""
    from memcalc import __version__
    from memcalc.inputs.calibrations import measured_entries
    from memcalc.inputs.profiles import KINDS, profile_names

    calibrations = [f"{entry.name} ({entry.origin})" for entry in measured_entries()]
    return {
        "schema": 1,
        "memcalc": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _device(),
        "profiles": {kind: len(profile_names(kind)) for kind in KINDS},
        "calibration": ", ".join(calibrations) or "none yet; `memcalc calibrate` makes one",
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    """What the NVIDIA driver's files under /proc say; no process is started."""
    folder = Path("/proc/driver/nvidia/gpus")
    names = []
    try:
        for info in sorted(folder.glob("*/information")):
            for line in info.read_text(errors="replace").splitlines():
                if line.startswith("Model:"):
                    names.append(line.partition(":")[2].strip())
    except OSError:
        names = []
    tool = shutil.which("nvidia-smi")
    if names:
        said = f"{len(names)} NVIDIA GPU{'s' * (len(names) > 1)}"
    elif tool:
        said = "nvidia-smi is installed, the driver shows no GPU"
    elif Path("/dev/kfd").exists():
        said = "an AMD driver is loaded"
    else:
        said = "no GPU seen; estimates need none"
    return {"description": said, "gpus": names, "nvidia_smi": tool}
