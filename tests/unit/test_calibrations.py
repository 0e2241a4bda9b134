"""Calibration files: what is written is read back equal; what is wrong is said in one line."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.errors import ConfigError
from memcalc.inputs import calibrations, profiles
from memcalc.inputs.toml_text import to_toml
from memcalc.output.calibrate_text import calibration_page, quiet_line
from memcalc.output.console import render

_TIMES = {"median_s": 1.5e-3, "p10_s": 1.4e-3, "p90_s": 1.7e-3, "batches": 30, "calls": 60}
PROFILE: dict[str, Any] = {
    "name": "some-gpu-torch-2.11.0",
    "schema": 1,
    "kind": "calibration",
    "memcalc": "0.1.0",
    "torch": "2.11.0+cu130",
    "date": "2026-11-21T09:31:00+00:00",
    "duration_s": 171.25,
    "small": False,
    "device": {"name": "Some GPU", "type": "cuda", "power_limit_w": 700.0, "host": {"cores": 2}},
    "summary": {
        "gemm_ceiling": [
            {"dtype": "bf16", "how": "burst", "size": 8192, "flops_per_s": 7.7e14, "n": 1,
             "relative_spread": 0.01}
        ],
        "attention": [
            {"kernel": "flash", "direction": "forward", "head_dim": 128, "seq_len": [1024, 2048],
             "flops_per_s_at": [3.1e14, 4.2e14], "n": 2, "median_relative_error": 0.02}
        ],
    },
    "points": [
        {"kind": "gemm", "m": 8192, "n": 4096, "k": 4096, "dtype": "bf16", "part": "dgrad",
         "layout": "NN", **_TIMES, "flops": 274877906944, "bytes": 167772160,
         "flops_per_s": 1.0 / 3},
        {"kind": "fixed", "what": "addition", "how": "eager", **_TIMES},
    ],
    "skipped": [{"point": "gemm fp8", "reason": 'no "fp8"\nhere'}],
}  # fmt: skip


def _written(profile: dict[str, Any], folder: Path) -> Path:
    path = folder / "it.toml"
    path.write_text(to_toml(profile), "utf-8")
    return path


def test_a_profile_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(calibrations.to_text(PROFILE), "utf-8")
    assert calibrations.read(path) == PROFILE


def _without(*path: Any) -> dict[str, Any]:
    profile = copy.deepcopy(PROFILE)
    inner: Any = profile
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return profile


def _with(value: Any, *path: Any) -> dict[str, Any]:
    profile = copy.deepcopy(PROFILE)
    inner: Any = profile
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return profile


_BAD = {
    "another kind": (_with("model", "kind"), "is none"),
    "no schema": (_without("schema"), "is none"),
    "a newer schema": (_with(2, "schema"), "schema 2"),
    "schema true": (_with(True, "schema"), "is none"),
    "no torch": (_without("torch"), "torch: got nothing"),
    "a blank name": (_with(" ", "name"), "name: got ' '"),
    "no device": (_without("device"), "device: got nothing"),
    "a device without a name": (_without("device", "name"), "device.name"),
    "no summary": (_without("summary"), "summary: got nothing"),
    "a summary row without n": (_without("summary", "attention", 0, "n"), "attention[0].n"),
    "a class that is no list": (_with(3, "summary", "attention"), "a list of tables"),
    "no points": (_without("points"), "points: got nothing"),
    "points of numbers": (_with([1, 2], "points"), "a list of tables"),
    "an unknown kind": (_with("gem", "points", 0, "kind"), "points[0].kind: got 'gem'"),
    "a kind that is a list": (_with([], "points", 0, "kind"), "points[0].kind"),
    "no median": (_without("points", 1, "median_s"), "points[1].median_s: got nothing"),
    "a median of 0": (_with(0, "points", 1, "median_s"), "seconds above 0"),
    "a negative time": (_with(-1.0, "points", 1, "p10_s"), "seconds above 0"),
    "a time that is a text": (_with("1 ms", "points", 1, "p90_s"), "seconds above 0"),
    "a time that is true": (_with(True, "points", 1, "p90_s"), "seconds above 0"),
    "a product without k": (_without("points", 0, "k"), "given for kind gemm"),
    "negative bytes": (_with(-5, "points", 0, "bytes"), "not negative"),
    "a skipped point without reason": (_without("skipped", 0, "reason"), "skipped[0]"),
}


@pytest.mark.parametrize("case", _BAD)
def test_a_profile_that_is_none_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    profile, said = _BAD[case]
    with pytest.raises(ConfigError) as error:
        calibrations.read(_written(profile, tmp_path))
    assert said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(ConfigError):
        calibrations.to_text(profile)


@pytest.mark.parametrize(
    "text",
    ["", "x = ", "a = 1\na = 2", "\x00", "[" * 5000, "a = " + "[" * 5000, "\ufeff", "kind = 1979-05-27",
     "a = " + "9" * 5000],
)  # fmt: skip
def test_a_file_that_is_no_toml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as error:
        calibrations.read(path)
    assert "\n" not in str(error.value) and str(error.value).startswith("calibration: ")


def test_bytes_that_are_no_text_a_directory_and_a_missing_file(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (calibrations.MAX_BYTES + 1))
    for path in (binary, large, tmp_path, tmp_path / "none.toml"):
        with pytest.raises(ConfigError, match="^calibration: "):
            calibrations.read(path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e31", "1979-05-27", "07:32:00"])
def test_numbers_out_of_range_and_dates_are_refused(value: str, tmp_path: Path) -> None:
    text = calibrations.to_text(PROFILE).replace("171.25", value)
    (tmp_path / "bad.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="duration_s: got"):
        calibrations.read(tmp_path / "bad.toml")


_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=2), st.just({}), st.just([{}]), st.just({"a": {"b": 1}}),
    st.just(datetime.date(2026, 1, 1)),
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())  # fmt: skip
    for key, item in items:
        found += _places(item, (*path, key))
    return found


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(_places(PROFILE)), _JUNK)
def test_whatever_a_field_holds_it_is_refused_or_shown(path: tuple[Any, ...], junk: Any) -> None:
    profile = _with(junk, *path)
    try:
        calibrations.check(profile, "it")
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    text = render(lambda page: calibration_page(page, profile, "file"))
    assert max(map(len, text.splitlines())) <= 80
    assert quiet_line(profile, calibrations.ceiling(profile))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The package's and the user's folder, each with a calibration of one name and one of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(profiles, "profiles_dir", lambda: tmp_path / "package")
    monkeypatch.setattr(calibrations, "profiles_dir", lambda: tmp_path / "package")
    package, user = calibrations.package_folder(), calibrations.user_folder()
    for folder, own in ((package, "h100-torch-2.9.0"), (user, "my-card")):
        folder.mkdir(parents=True)
        for name in ("both", own):
            (folder / f"{name}.toml").write_text(calibrations.to_text(PROFILE), "utf-8")
    return package, user


def test_the_users_file_hides_the_packages(folders: tuple[Path, Path]) -> None:
    package, user = folders
    assert [(entry.name, entry.origin) for entry in calibrations.entries()] == [
        ("both", "user"), ("h100-torch-2.9.0", "package"), ("my-card", "user"),
    ]  # fmt: skip
    assert calibrations.find("both") == user / "both.toml"
    assert calibrations.find("H100 torch 2.9.0") == package / "h100-torch-2.9.0.toml"
    assert calibrations.find(str(package / "both.toml")) == package / "both.toml"


@pytest.mark.parametrize("name", ["my-crd", "../both", "a/b", "", "x\x00"])
def test_a_name_that_is_not_there_says_what_is(folders: tuple[Path, Path], name: str) -> None:
    with pytest.raises(ConfigError) as error:
        calibrations.find(name)
    assert "\n" not in str(error.value)
    assert name != "my-crd" or "my-card" in str(error.value)


def test_without_any_folder_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(calibrations, "profiles_dir", lambda: tmp_path / "nowhere")
    assert calibrations.entries() == []
    with pytest.raises(ConfigError, match="memcalc calibrate"):
        calibrations.find("any")


@pytest.mark.parametrize(
    ("device", "torch", "name"),
    [
        ({"name": "NVIDIA H200", "type": "cuda", "cpu_threads": 8}, "2.11.0+cu130",
         "nvidia-h200-torch-2.11.0"),
        ({"name": "NVIDIA H100 80GB HBM3", "type": "cuda"}, "2.6.0",
         "nvidia-h100-80gb-hbm3-torch-2.6.0"),
        ({"name": "Intel(R) Xeon(R) @ 2.20GHz", "type": "cpu", "cpu_threads": 2}, "2.13.0+cpu",
         "intel-r-xeon-r-2.20ghz-2t-torch-2.13.0"),
    ],
)  # fmt: skip
def test_a_name_is_the_device_and_the_release(
    device: dict[str, Any], torch: str, name: str
) -> None:
    assert calibrations.profile_name({"device": device, "torch": torch}) == name
    profiles.check_name("calibration", name)


@pytest.mark.parametrize(("p90_s", "warned"), [(1.7e-3, False), (2.5e-3, True)])
def test_a_page_warns_of_an_unsteady_device(p90_s: float, warned: bool) -> None:
    profile = copy.deepcopy(PROFILE)
    profile["points"][1]["p90_s"] = p90_s
    text = render(lambda page: calibration_page(page, profile))
    assert ("unsteady: 1 of 2 points" in text) is warned


def test_the_ceiling_is_the_burst_of_the_first_dtype() -> None:
    assert calibrations.ceiling(PROFILE) == 7.7e14
    assert calibrations.ceiling(_without("summary", "gemm_ceiling")) is None


def test_the_documentation_names_every_kind_of_point() -> None:
    text = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text("utf-8")
    assert [kind for kind in calibrations.KINDS if f"`{kind}`" not in text] == []


def test_noise_takes_a_row_and_not_the_profile() -> None:
    """A difference of two measurements may come out below 0; a rate or a time of its own may not."""
    two = {"model": "m", "block_s": -1e-4, "rest_s": -4e-3, "n": 2}
    rows = {
        "two_depth": [two],
        "norm": [{"bytes_per_s": -1.0, "n": 1}],
        "fixed": [{"t0_s": 0, "n": 1}],
    }
    noisy = copy.deepcopy({**PROFILE, "summary": {**PROFILE["summary"], **rows}})
    with pytest.raises(ConfigError, match="a number above 0"):
        calibrations.to_text(noisy)
    found = calibrations.sound(noisy)
    assert found["summary"].keys() == {*PROFILE["summary"], "two_depth", "fixed"}
    assert found["summary"]["two_depth"] == [two]
    assert found["skipped"][-1]["point"] == "fit of norm"
    assert "bytes_per_s: got -1.0" in found["skipped"][-1]["reason"]
    calibrations.to_text(found)
    assert "-4 ms" in render(lambda page: calibration_page(page, found))
