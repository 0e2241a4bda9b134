"""What `memcalc doctor` looks at: packages by what they are for, device and driver, rates, files.

Nothing heavy is imported and no process is started: versions come from package metadata, the device
from the driver's files under /proc. Checked by: cli/test_doctor.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple


class Purpose(NamedTuple):
    """What packages are for, and how those that are missing are had."""

    what: str
    packages: tuple[str, ...]
    install: str


#: By the names of the extras in pyproject.toml, after what every install has.
PURPOSES: Final = {
    "base": Purpose("every command",
                    ("typer", "rich", "numpy", "pandas", "matplotlib"), "pip install"),
    "harness": Purpose("verify, measure, calibrate", ("torch",), "pip install"),
    "interop": Purpose("YAML; checking exports",
                       ("pyyaml", "accelerate", "deepspeed", "megatron-core"), "pip install"),
    "test": Purpose("the tests", ("pytest", "pytest-xdist", "hypothesis", "transformers", "peft",
                                  "bitsandbytes", "ruff", "mypy"), "pip install"),
}  # fmt: skip


def packages() -> dict[str, str | None]:
    """Every package with its version, null where it is missing."""
    names = [name for purpose in PURPOSES.values() for name in purpose.packages]
    return {name: version_of(name) for name in names}


def extras(versions: dict[str, str | None]) -> list[dict[str, Any]]:
    """Each extra of the installation: what it is for, what of it is missing, how that is had."""
    rows = []
    for extra, purpose in PURPOSES.items():
        missing = [name for name in purpose.packages if versions[name] is None]
        rows.append({"extra": extra, "for": purpose.what, "missing": missing,
                     "install": f"{purpose.install} {' '.join(missing)}" if missing else None})  # fmt: skip
    return rows


def version_of(package: str) -> str | None:
    """The installed version of a package; None where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device() -> dict[str, Any]:
    """What the NVIDIA driver's files under /proc say, and the processor."""
    from memcalc.harness.host import cpu_facts

    names, driver = _nvidia(Path("/proc/driver/nvidia"))
    tool = shutil.which("nvidia-smi")
    if names:
        said = f"{len(names)} NVIDIA GPU{'s' * (len(names) > 1)}"
    elif tool:
        said = "nvidia-smi is installed, the driver shows no GPU"
    elif Path("/dev/kfd").exists():
        said = "an AMD driver is loaded"
    else:
        said = "no GPU seen; estimates need none"
    return {
        "description": said, "gpus": names, "driver": driver, "nvidia_smi": tool, "cpu": cpu_facts(),
    }  # fmt: skip


def _nvidia(folder: Path) -> tuple[list[str], str | None]:
    """Names of the GPUs and the driver's release, from the driver's folder."""
    names: list[str] = []
    driver = None
    try:
        for info in sorted((folder / "gpus").glob("*/information")):
            for line in info.read_text(errors="replace").splitlines():
                if line.startswith("Model:"):
                    names.append(line.partition(":")[2].strip())
        first = (folder / "version").read_text(errors="replace").split("\n")[0]
        driver = next((word for word in first.split() if word[:1].isdigit() and "." in word), None)
    except OSError:
        pass
    return names, driver


def rates(found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each device here: the profile it means, the calibration an estimate would use, and why."""
    from memcalc.errors import ConfigError
    from memcalc.inputs.choose_rates import choose_rates
    from memcalc.inputs.hardware import load_gpu

    rows = []
    for name in dict.fromkeys(found["gpus"]):
        try:
            gpu, _ = load_gpu(name)
            chosen, note = choose_rates(gpu)
        except ConfigError as error:
            rows.append({"device": name, "profile": None, "calibration": None, "why": str(error)})
            continue
        measured = not chosen.name.startswith("default-")
        why = "measured on this device" if measured else "memcalc calibrate would measure it"
        rows.append({"device": name, "profile": gpu.slug, "calibration": chosen.name,
                     "why": "; ".join(filter(None, (why, note)))})  # fmt: skip
    return [*rows, _cpu_rates(found["cpu"])]


def _cpu_rates(cpu: dict[str, Any]) -> dict[str, Any]:
    """A CPU has no datasheet: its rates are measured ones or none."""
    from memcalc.errors import ConfigError
    from memcalc.inputs.choose_rates import cpu_device

    row = {"device": cpu["name"], "profile": None, "calibration": None}
    for threads in dict.fromkeys((cpu["threads"], cpu["cores"], 1)):
        try:
            found = cpu_device(cpu["name"], threads or 1)
        except ConfigError as error:
            return {**row, "why": str(error)}
        if found is not None:
            return {**row, "calibration": found[1].stem, "why": f"measured with {threads} threads"}
    return {**row, "why": "a CPU's rates are measured: memcalc calibrate --device cpu"}


def files() -> dict[str, dict[str, Any]]:
    """Where the user's own files are looked for, and whether they are there."""
    from memcalc.inputs.calibrations import user_folder
    from memcalc.inputs.hf_files import hub_cache_dir
    from memcalc.userdirs import data_dir

    places = {
        "calibrations": user_folder(),
        "records": data_dir() / "records.jsonl",
        "hugging-face-cache": hub_cache_dir(),
    }
    return {what: {"path": str(path), "exists": path.exists()} for what, path in places.items()}


def harness(found: dict[str, Any], torch: str | None) -> dict[str, Any]:
    """Whether verify, measure and calibrate could run here, on what, and what is in the way."""
    if torch is None:
        said = "torch is not installed: pip install torch"
        return {"can_run": False, "device": None, "why": said}
    if found["gpus"] and torch.endswith("+cpu"):
        said = f"torch {torch} is built for the CPU: the GPU is not used"
        return {"can_run": True, "device": "cpu", "why": said}
    on = "cuda" if found["gpus"] else "cpu"
    return {"can_run": True, "device": on, "why": f"torch {torch}"}


def completion() -> dict[str, Any]:
    """This shell, and the shells for which completion is installed."""
    from memcalc.cli.completion_setup import installed_for, this_shell

    return {"shell": this_shell() or None, "installed_for": installed_for()}
