"""doctor: packages and what they are for, device and driver, rates, files, completion, harness."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from memcalc.cli import doctor_checks
from memcalc.cli.doctor_checks import PURPOSES, _nvidia, harness, rates
from tests.cli.conftest import Outcome

_H100 = "NVIDIA H100 80GB HBM3"


def test_every_package_of_the_metadata_is_known_to_doctor() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    stated = {"base": project["dependencies"], **project["optional-dependencies"]}
    for extra, purpose in PURPOSES.items():
        names = {word.split(">")[0].split("=")[0] for word in stated[extra]}
        assert set(purpose.packages) <= names, extra
    assert set(PURPOSES["base"].packages) == {w.split(">")[0] for w in stated["base"]}


def test_what_is_missing_is_said_with_how_to_have_it(
    memcalc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor_checks, "version_of", lambda name: None if name == "torch" else "1.0"
    )
    outcome: Outcome = memcalc("doctor")
    assert "for verify, measure, calibrate: pip install torch" in outcome.out
    assert "can run: no; torch is not installed" in outcome.out
    found = memcalc("doctor", "--json").json
    assert found["packages"]["torch"] is None and not found["harness"]["can_run"]
    [row] = [row for row in found["extras"] if row["missing"]]
    assert row["install"] == "pip install torch"


def test_the_driver_is_read_from_its_own_files(tmp_path: Path) -> None:
    assert _nvidia(tmp_path) == ([], None)
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text(
        f"Model: \t\t {_H100}\nIRQ: 1\n"
    )
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
    )
    assert _nvidia(tmp_path) == ([_H100], "570.86.15")


def test_a_gpu_means_its_profile_and_says_which_rates_it_would_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    cpu = {"name": "no such processor", "threads": 2, "cores": 2}
    first, strange, processor = rates({"gpus": [_H100, "GPU of Nobody", _H100], "cpu": cpu})
    assert (first["profile"], first["calibration"]) == ("h100-80gb", "default-hopper")
    assert "memcalc calibrate" in first["why"]
    assert strange["profile"] is None and "GPU of Nobody" in strange["why"]
    assert processor["calibration"] is None and "--device cpu" in processor["why"]


def test_a_torch_built_for_the_cpu_beside_a_gpu_is_said() -> None:
    assert harness({"gpus": [_H100]}, "2.13.0+cpu")["device"] == "cpu"
    assert "built for the CPU" in harness({"gpus": [_H100]}, "2.13.0+cpu")["why"]
    assert harness({"gpus": [_H100]}, "2.13.0+cu126") == {
        "can_run": True, "device": "cuda", "why": "torch 2.13.0+cu126",
    }  # fmt: skip


def test_files_follow_the_variables_and_say_whether_they_are_there(
    memcalc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HUB_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    found = memcalc("doctor", "--json").json
    places = found["files"]
    assert places["calibrations"] == {
        "path": str(tmp_path / "xdg_config_home" / "memcalc" / "calibrations"), "exists": False,
    }  # fmt: skip
    assert places["records"]["path"] == str(tmp_path / "xdg_data_home/memcalc/records.jsonl")
    assert found["completion"]["installed_for"] == []
    text = memcalc("doctor").out
    assert "(none yet)" in text and "memcalc --install-completion" in text


def test_nvidia_smi_without_a_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor_checks, "_nvidia", lambda folder: ([], None))
    assert (
        doctor_checks.device()["description"] == "nvidia-smi is installed, the driver shows no GPU"
    )
