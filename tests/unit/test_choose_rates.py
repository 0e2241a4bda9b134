"""Which calibration an estimate takes: auto, default, a name, a file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs import calibrations
from memcalc.inputs.choose_rates import choose_rates, cpu_device
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.toml_text import to_toml
from tests.unit.test_measured_rates import SUMMARY

H100, A100 = load_gpu("h100-80gb")[0], load_gpu("a100-80gb")[0]


def _profile(name: str, gpu: str, **fields: Any) -> dict[str, Any]:
    said = {"name": gpu, "type": "cuda", **fields.pop("device", {})}
    return {
        "name": name, "schema": 1, "kind": "calibration", "memcalc": "0.1.0", "torch": "2.11.0",
        "date": "2026-11-01T00:00:00+00:00", "small": False, "device": said,
        "summary": copy.deepcopy(SUMMARY), "points": [], "skipped": [], **fields,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibrations, "config_dir", lambda: tmp_path)
    made = tmp_path / "calibrations"
    made.mkdir()
    return made


def _write(folder: Path, name: str, gpu: str, **fields: Any) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(to_toml(_profile(name, gpu, **fields)), "utf-8")
    return path


_SXM = "NVIDIA H100 80GB HBM3"


def test_auto_is_the_default_where_nothing_was_measured(folder: Path) -> None:
    for gpu in (H100, A100):
        auto, note = choose_rates(gpu, "auto")
        assert auto == choose_rates(gpu, "default")[0] and note == ""
        assert auto.name.startswith("default-")


def test_auto_takes_the_calibration_of_this_very_device(folder: Path) -> None:
    _write(folder, "mine", _SXM, device={"total_bytes": H100.total_bytes})
    assert choose_rates(H100, "auto")[0].name == "mine"
    assert choose_rates(A100, "auto")[0].name == "default-ampere"
    assert choose_rates(H100, "default")[0].name == "default-hopper"


@pytest.mark.parametrize(
    "fields",
    [{"small": True}, {"device": {"total_bytes": 20 << 30}}, {"device": {"type": "cpu"}}],
    ids=["sizes of the tests", "a partition of the card", "of a CPU"],
)
def test_auto_passes_over_what_is_of_something_else(folder: Path, fields: dict[str, Any]) -> None:
    _write(folder, "mine", _SXM, **fields)
    assert choose_rates(H100, "auto")[0].name == "default-hopper"


def test_auto_passes_over_what_cannot_be_read(folder: Path) -> None:
    (folder / "broken.toml").write_text("x = ")
    (folder / "other.toml").write_text('kind = "calibration"\nschema = 1\n')
    assert choose_rates(H100, "auto")[0].name == "default-hopper"


def test_of_several_the_newest_release_then_the_latest_date(folder: Path) -> None:
    _write(folder, "old", _SXM, torch="2.9.1+cu128", date="2026-12-01T00:00:00+00:00")
    _write(folder, "new", _SXM, torch="2.10.0+cu130")
    _write(folder, "newer", _SXM, torch="2.10.0", date="2026-11-02T00:00:00+00:00")
    assert choose_rates(H100, "auto")[0].name == "newer"


def test_a_file_that_changes_is_read_again(folder: Path) -> None:
    _write(folder, "mine", _SXM)
    first = choose_rates(H100, "auto")[0].memory
    changed = copy.deepcopy(SUMMARY)
    changed["elementwise"][0]["bytes_per_s"] *= 2
    _write(folder, "mine", _SXM, summary=changed)
    assert choose_rates(H100, "auto")[0].memory.bytes_per_s == 2 * first.bytes_per_s


def test_a_name_or_a_file_is_taken_as_said(folder: Path, tmp_path: Path) -> None:
    path = _write(tmp_path, "elsewhere", "NVIDIA H200")
    rates, note = choose_rates(H100, str(path))
    assert rates.name == "elsewhere"
    assert note.startswith("calibration elsewhere: it was measured on NVIDIA H200; taken from the")
    _write(folder, "mine", _SXM)
    assert choose_rates(A100, "mine")[0].name == "mine"
    assert choose_rates(H100, "default-ampere")[0].name == "default-ampere"


def test_the_note_lists_what_came_from_the_default(folder: Path) -> None:
    _write(folder, "mine", _SXM)
    note = choose_rates(H100, "mine")[1]
    assert "scaled: products in fp16" in note and "measured on" not in note


@pytest.mark.parametrize("word", ["mine", "~nobody/x.toml", "default-nothing", "x\n"])
def test_what_is_not_there_is_refused_in_one_line(folder: Path, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_rates(H100, word)
    assert "\n" not in str(caught.value) and "calibration" in str(caught.value)


_CPU: dict[str, Any] = {
    "device": {"type": "cpu", "cpu_threads": 4},
    "summary": {
        **SUMMARY,
        "gemm_ceiling": [{"dtype": "bf16", "how": "burst", "flops_per_s": 2e11, "n": 1},
                         {"dtype": "bf16", "how": "sustained", "flops_per_s": 1e11, "n": 1},
                         {"dtype": "fp32", "how": "burst", "flops_per_s": 9e10, "n": 1}],
        "bandwidth": [{"what": "copy", "tensor_bytes": 1 << 24, "bytes_per_s": 1e10, "n": 1},
                      {"what": "copy", "tensor_bytes": 1 << 26, "bytes_per_s": 2e10, "n": 1}],
    },
}  # fmt: skip


def test_a_cpu_is_known_by_name_and_threads(folder: Path) -> None:
    path = _write(folder, "cpu", "Some CPU", **_CPU)
    found = cpu_device("Some CPU", 4)
    assert found is not None and found[1] == path
    assert found[0].peak_flops_per_s == {"bf16": 2e11, "fp32": 9e10}  # bursts
    assert found[0].memory_bandwidth_bytes_per_s == 2e10  # the largest copy
    assert choose_rates(found[0], str(path))[0].name == "cpu"
    assert cpu_device("Some CPU", 2) is None and cpu_device("Other CPU", 4) is None
    assert cpu_device("Some CPU", 4, "default") is None
    assert cpu_device("Other CPU", 1, "cpu") is not None  # named


def test_a_cpus_calibration_without_ceilings_is_refused(folder: Path) -> None:
    _write(folder, "cpu", "Some CPU", device=_CPU["device"])
    with pytest.raises(ConfigError, match="no ceilings or no copies"):
        cpu_device("Some CPU", 4)
