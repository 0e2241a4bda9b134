"""Rates: every device has them, they are shares of its datasheet, and bad calibrations are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.engine.timing.gemm_time import compute_s
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.profiles import profile_names, profiles_dir, read_toml
from memcalc.inputs.rates import (
    CLASSES,
    OTHER,
    LinkRate,
    merged,
    rates_from,
    rates_of,
    rescaled,
    sustained,
)
from memcalc.inputs.toml_text import to_toml

FOLDER = profiles_dir() / "calibrations"
DEFAULTS = sorted(path.stem for path in FOLDER.glob("default-*.toml"))
HOPPER = read_toml(FOLDER / "default-hopper.toml")


def gpu(name: str) -> Gpu:
    return load_gpu(name)[0]


@pytest.mark.parametrize("name", profile_names("gpus"))
def test_every_device_has_rates_below_its_datasheet(name):
    device = gpu(name)
    rates = rates_of(device)
    assert rates.architecture == device.architecture
    assert {"bf16", "fp16", "fp32", "tf32"} <= set(rates.gemm)
    assert ("fp8" in rates.gemm) == ("fp8" in device.peak_flops_per_s)
    highest = max(device.peak_flops_per_s.values())
    for dtype, rate in rates.gemm.items():
        peak = device.peak_flops_per_s.get(dtype, highest)
        assert 0.3 * min(peak, device.peak_flops_per_s.get("fp32", peak)) < rate.flops_per_s < peak
        assert 0 < rate.bytes_per_s < device.memory_bandwidth_bytes_per_s
    assert {"flash", "efficient", "cudnn", "eager"} <= set(rates.attention)
    for kernel in rates.attention.values():
        assert 0 < kernel.forward_flops_per_s < highest
        assert 0 < kernel.backward <= 1
    assert 0.7 < rates.memory.bytes_per_s / device.memory_bandwidth_bytes_per_s < 0.95
    assert 0.03 <= rates.overlap_slowdown <= 0.08
    assert 5e-6 <= rates.launch_s <= 7e-6
    assert 1.0 <= rates.sum_residual < 1.6


@pytest.mark.parametrize("name", profile_names("gpus"))
def test_every_device_has_the_links_its_profile_states(name):
    device, links = gpu(name), rates_of(gpu(name)).links
    for stated, link in (
        (device.link_unidirectional_bytes_per_s, links.link),
        (device.nic_bytes_per_s, links.network),
        (device.pcie_bytes_per_s, links.pcie),
        (device.pcie_bytes_per_s, links.host),
    ):
        assert (link is None) == (stated is None)
        if link is not None and stated is not None:
            assert 0 < link.bus_bytes_per_s < stated
            assert 0 < link.alpha_s < 1e-3


def test_every_architecture_has_a_class_with_a_file():
    used = {CLASSES.get(gpu(name).architecture, OTHER) for name in profile_names("gpus")}
    assert {f"default-{name}" for name in used | {"cpu"}} == set(DEFAULTS)


def test_a_device_without_a_table_is_scaled_by_its_datasheet():
    h20, h800 = rates_of(gpu("h20")), rates_of(gpu("h800-80gb"))
    assert h20.gemm["bf16"].flops_per_s / h800.gemm["bf16"].flops_per_s == pytest.approx(
        148 / 989.4
    )
    assert h20.memory.bytes_per_s / h800.memory.bytes_per_s == pytest.approx(4.0 / 3.35)
    assert h20.gemm["bf16"].multiprocessors == 78
    assert not h20.verified
    assert h20.basis.endswith("scaled by this device's datasheet")
    assert rates_of(gpu("h200-141gb")).verified


def test_only_devices_that_were_fitted_on_are_verified():
    verified = {name for name in profile_names("gpus") if rates_of(gpu(name)).verified}
    assert verified == {
        "a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb", "b300-288gb", "gb200-186gb", "l40s",
    }  # fmt: skip


def test_products_in_a_dtype_without_units_run_as_fp32():
    gaudi = rates_of(gpu("gaudi2"))  # states no fp32 peak
    assert gaudi.gemm["fp32"].flops_per_s == gaudi.gemm["bf16"].flops_per_s
    v100 = rates_of(gpu("v100-16gb"))
    assert v100.gemm["bf16"].flops_per_s == v100.gemm["fp32"].flops_per_s
    assert v100.gemm["fp16"].flops_per_s > 5 * v100.gemm["bf16"].flops_per_s


def test_cards_whose_link_is_pcie_follow_its_lines():
    l40s = rates_of(gpu("l40s")).links
    assert l40s.link is not None and l40s.pcie is not None
    assert [c.ranks for c in l40s.link.all_reduce] == [2, 4, 8]
    assert l40s.link.all_reduce[0].small_s == l40s.pcie.all_reduce[0].small_s
    assert rates_of(gpu("h100-80gb")).links.link.all_reduce != ()


def test_a_rescaled_link_is_faster_and_starts_as_late():
    link = rates_of(gpu("h100-80gb")).links.link
    half = rescaled(link, 0.5)
    assert half.bus_bytes_per_s == link.bus_bytes_per_s / 2
    assert half.alpha_s == link.alpha_s
    for slow, fast in zip(half.all_gather, link.all_gather, strict=True):
        assert slow.large_bytes_per_s == fast.large_bytes_per_s / 2
        assert slow.small_s == fast.small_s
    assert rescaled(LinkRate(1e-6, 2e9), 3.0) == LinkRate(1e-6, 6e9)


def test_sustained_products_all_have_the_droop_of_long_ones():
    rates = rates_of(gpu("h200-141gb"))
    rate, steady = rates.gemm["bf16"], sustained(rates).gemm["bf16"]
    for shape in ((1, 512, 512, 512), (1, 8192, 8192, 8192)):
        undrooped = compute_s(rate._replace(droop=0.0), *shape)
        assert compute_s(steady, *shape) == pytest.approx((1 + rate.droop) * undrooped)
        assert compute_s(steady, *shape) > compute_s(rate, *shape)
    assert sustained(rates).attention == rates.attention


def test_a_device_takes_its_own_figures_over_its_class():
    own = merged(HOPPER, {"gpu": {"h20": {"gemm": {"bf16": {"share": 0.5}}}}})
    h20 = rates_from(gpu("h20"), own, "mine.toml")
    assert h20.gemm["bf16"].flops_per_s == 0.5 * 148e12
    assert h20.gemm["bf16"].t0_s == HOPPER["gemm"]["bf16"]["t0_s"]
    h800 = rates_from(gpu("h800-80gb"), own, "mine.toml")
    share = h800.gemm["bf16"].flops_per_s / 989.4e12
    assert share == pytest.approx(HOPPER["gemm"]["bf16"]["share"])


def test_a_calibration_is_found_by_name_or_file(tmp_path):
    named = rates_of(gpu("a100-80gb"), "default-hopper")
    assert named.name == "default-hopper"
    path = tmp_path / "mine.toml"
    path.write_text(to_toml({**HOPPER, "name": "mine"}), encoding="utf-8")
    assert rates_of(gpu("a100-80gb"), str(path)).gemm == named.gemm
    assert rates_of(gpu("a100-80gb"), str(path)).name == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("default-hoper", "calibration: got 'default-hoper', not known; nearest: default-hopper"),
        ("../default-hopper", "calibration: got '../default-hopper', not known"),
        ("nowhere.toml", "cannot read 'nowhere.toml'"),
    ],
)
def test_a_calibration_that_is_not_there_is_named(name, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")) as error:
        rates_of(gpu("h100-80gb"), name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "calibration"},
            "got kind 'calibration', schema 1; rule: 'default-calibration', 1",
        ),
        ({"schema": 2}, "schema 2; rule"),
        (
            {"gemm": {"bf16": {"share": "much"}}},
            "gemm.bf16.share: got 'much'; rule: a number above 0",
        ),
        ({"gemm": {"bf16": {"share": 0}}}, "gemm.bf16.share: got 0; rule: a number above 0"),
        ({"gemm": {"bf16": {"share": True}}}, "gemm.bf16.share: got True"),
        ({"gemm": {"bf16": {"t0_s": -1e-6}}}, "gemm.bf16.t0_s: got -1e-06; rule: a number from 0"),
        ({"gemm": {"bf16": {"exponent": float("nan")}}}, "gemm.bf16.exponent: got nan"),
        ({"gemm": 3}, "gemm.bf16: got None; rule: a table"),
        ({"attention": {"flash": {"row": None}}}, "attention.flash.row: got None"),
        ({"link": {"all_reduce": 5}}, "link.all_reduce: got 5; rule: a list of tables"),
        ({"link": {"all_reduce": [{"ranks": 2}]}}, "link.all_reduce.small_s: got None"),
        ({"launch_s": None}, "launch_s: got None; rule: a number from 0"),
        ({"multiprocessors": 0}, "multiprocessors: got 0; rule: a number above 0"),
    ],
)
def test_a_wrong_figure_is_named_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        rates_from(gpu("h800-80gb"), merged(HOPPER, change), "mine.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("calibration: mine.toml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DEFAULTS)
def test_shipped_defaults_say_what_is_fitted_and_what_assumed(name):
    raw = read_toml(FOLDER / f"{name}.toml")
    assert raw["name"] == name
    assert raw["verified"] == bool(raw["fitted_on"])
    assert ("reference" in raw) == raw["verified"]
    assert ("source" in raw["gemm"]["bf16"]) != raw["verified"]
    for table in (raw["memory"], raw["network"], raw["host"], raw["gemm"]["fp32"]):
        assert "assumed" in table["source"] or "copies" in table["source"]
    for slug in raw.get("gpu", {}):
        assert slug in profile_names("gpus"), "figures of a device that has no profile"


@pytest.mark.parametrize(
    "name", [n for n in DEFAULTS if "errors" in read_toml(FOLDER / f"{n}.toml")]
)
def test_stated_errors_of_products_keep_their_bounds(name):
    """The bounds that the defaults were fitted to keep, on shapes no fit has seen."""
    rows = read_toml(FOLDER / f"{name}.toml")["errors"]
    bounds = {("bf16", "large"): 0.07, ("bf16", "small"): 0.15, ("fp8", "all"): 0.2}
    found = {(row["system"], row.get("what"), row["sizes"]): row for row in rows}
    for (system, what, sizes), row in found.items():
        bound = bounds.get((what, sizes))
        if bound is not None:
            assert row["mean_abs"] <= bound, (system, what, sizes)
            assert row["mean_abs"] < row["plain_mean_abs"], (system, what, sizes)
        if what == "bf16":
            assert abs(row["bias"]) <= 0.03, (system, what, sizes)
    assert any(what == "bf16" for _, what, _ in found)


def test_the_page_of_kernel_times_states_the_errors_of_the_files():
    """Cells "5.4 (8.2)" of docs/kernels.md: mean error and a plain fit's, in percent."""
    rows = [row for n in DEFAULTS for row in read_toml(FOLDER / f"{n}.toml").get("errors", ())]
    found = {(r["form"], r["system"], r.get("what", ""), r["sizes"]): r for r in rows}
    page = (FOLDER.parents[1] / "docs" / "kernels.md").read_text("utf-8")
    columns = {
        "bf16 large": ("gemm", "bf16", "large"), "bf16 small": ("gemm", "bf16", "small"),
        "fp8 all": ("gemm", "fp8", "all"), "attention": ("attention", "", "all"),
        "decode": ("decode", "", "all"),
        "all-gather": ("collectives", "all_gather", "large"),
        "reduce-scatter": ("collectives", "reduce_scatter", "large"),
        "all-reduce": ("collectives", "all_reduce", "large"),
        "all-to-all": ("collectives", "all_to_all", "large"),
    }  # fmt: skip
    checked, heads = 0, []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "system" or not line.startswith("|"):
            heads = cells
        for head, cell in zip(heads, cells, strict=False):
            if head not in columns or "(" not in cell:
                continue
            form, what, sizes = columns[head]
            row = found[form, cells[0], what, sizes]
            stated = f"{100 * row['mean_abs']:.1f} ({100 * row['plain_mean_abs']:.1f})"
            assert cell == stated, (cells[0], head)
            checked += 1
    assert checked == 7 * 4 + 6 + 9 * 4


def test_no_measured_table_is_in_the_repository():
    for path in FOLDER.iterdir():
        assert path.suffix == ".toml"
        assert path.stat().st_size < 64 << 10
    assert not list(Path(FOLDER).rglob("*.csv"))
