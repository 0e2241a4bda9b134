"""Device profiles and spellings: every figure has a source, names resolve, notes say the rest."""

from __future__ import annotations

import re

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs import hardware, profiles
from memcalc.inputs.hardware import (
    ARCHITECTURES,
    context_bytes,
    cublas_workspace_bytes,
    load_gpu,
)
from memcalc.inputs.rates import CLASSES
from memcalc.units import GIB, MIB

SLUGS = profiles.profile_names("gpus")
FOLDER = profiles.profiles_dir() / "gpus"
TEXTS = {
    "name", "vendor", "architecture", "compute_capability", "form_factor", "memory_type", "link",
    "aliases", "notes", "checked_against",
}  # fmt: skip


def test_there_are_52_devices():
    assert len(SLUGS) == 52


@pytest.mark.parametrize("slug", SLUGS)
def test_every_figure_has_a_source_and_a_verdict(slug):
    raw = profiles.load_profile("gpus", slug)
    assert set(raw) <= TEXTS | set(hardware.FIGURES)
    for key in set(raw) - TEXTS:
        entry = raw[key]
        assert entry["value"] > 0, key
        assert entry["source"].strip(), key
        assert isinstance(entry["verified"], bool), key
        if key.startswith("price"):
            assert not entry["verified"] and entry["as_of"]


@pytest.mark.parametrize("slug", SLUGS)
def test_every_profile_loads_with_plausible_figures(slug):
    gpu, _ = load_gpu(slug)
    assert gpu.slug == slug
    assert gpu.name and gpu.vendor in ("nvidia", "amd", "google", "intel", "apple")
    assert re.fullmatch(r"[a-z0-9-]+", gpu.architecture)
    assert (gpu.compute_capability is None) == (gpu.vendor != "nvidia")
    assert 0.9 * GIB * gpu.marketed_gb < gpu.total_bytes <= GIB * gpu.marketed_gb + 4 * GIB
    assert 1e11 < gpu.memory_bandwidth_bytes_per_s < 1e13
    assert gpu.peak_flops_per_s and all(1e11 < f < 2e16 for f in gpu.peak_flops_per_s.values())
    if "bf16" in gpu.peak_flops_per_s and "fp16" in gpu.peak_flops_per_s:
        assert gpu.peak_flops_per_s["bf16"] >= gpu.peak_flops_per_s["fp16"]
    if gpu.link_bidirectional_bytes_per_s and gpu.link_unidirectional_bytes_per_s:
        assert gpu.link_bidirectional_bytes_per_s == 2 * gpu.link_unidirectional_bytes_per_s
    if gpu.price_usd_per_hour_low and gpu.price_usd_per_hour_high:
        assert gpu.price_usd_per_hour_low <= gpu.price_usd_per_hour_high
        assert gpu.price_as_of
    assert set(gpu.unverified) <= set(hardware.FIGURES)
    assert gpu.profile_hash == profiles.profile_hash(FOLDER / f"{slug}.toml")
    hash(gpu)


def test_no_two_profiles_share_a_name_or_alias():
    seen: dict[str, str] = {}
    for slug in SLUGS:
        raw = profiles.load_profile("gpus", slug)
        for name in {profiles.normal_name(n) for n in (slug, *raw["aliases"])}:
            assert seen.setdefault(name, slug) == slug, name


@pytest.mark.parametrize("slug", SLUGS)
def test_every_alias_and_full_name_resolves_to_its_profile(slug):
    raw = profiles.load_profile("gpus", slug)
    for alias in raw["aliases"]:
        assert load_gpu(alias)[0].slug == slug, alias
        assert load_gpu(alias.upper())[0].slug == slug, alias


@pytest.mark.parametrize(
    ("name", "slug", "num_notes"),
    [
        ("h100", "h100-80gb", 1),
        ("H100 SXM", "h100-80gb", 0),
        ("h100-sxm5-80gb", "h100-80gb", 0),
        ("h100pcie", "h100-pcie-80gb", 0),
        ("H100 NVL", "h100-nvl-94gb", 0),
        ("NVIDIA H100 80GB HBM3", "h100-80gb", 0),
        ("h100-94gb", "h100-nvl-94gb", 0),
        ("a100", "a100-80gb", 2),
        ("A100-80G", "a100-80gb", 1),
        ("a100 40gb", "a100-40gb", 1),
        ("a100-pcie", "a100-pcie-80gb", 1),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", 0),
        ("v100", "v100-32gb", 2),
        ("v100-32g", "v100-32gb", 1),
        ("Tesla V100-SXM2-16GB", "v100-16gb", 0),
        ("4090", "rtx-4090", 0),
        ("RTX4090", "rtx-4090", 0),
        ("NVIDIA GeForce RTX 4090", "rtx-4090", 0),
        ("rtx 3060 12gb", "rtx-3060", 0),
        ("h200", "h200-141gb", 1),
        ("H200 NVL", "h200-nvl-141gb", 0),
        ("gh200", "gh200-144gb", 1),
        ("b200", "b200-180gb", 0),
        ("GB200 NVL72", "gb200-186gb", 0),
        ("AMD Instinct MI300X", "mi300x", 0),
        ("v5e", "tpu-v5e", 0),
        ("Tesla T4", "t4", 0),
    ],
)
def test_usual_spellings_resolve_and_assumptions_are_noted(name, slug, num_notes):
    gpu, notes = load_gpu(name)
    assert gpu.slug == slug
    assert len(notes) == num_notes, notes
    assert all(slug in note and "unsaid" in note for note in notes)


def test_notes_say_form_factor_and_memory():
    _, notes = load_gpu("a100")
    assert "form factor unsaid, took SXM" in notes[0]
    assert "memory size unsaid, took the largest, 80 GB" in notes[1]


def test_a_plain_name_opens_one_profile(monkeypatch):
    hardware._shipped.cache_clear()
    opened = []
    read = profiles.read_toml
    monkeypatch.setattr(profiles, "read_toml", lambda path: opened.append(path) or read(path))
    load_gpu("h100")
    assert [path.stem for path in opened] == ["h100-80gb"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("h101", "h100"),
        ("a100-60gb", "a100-80gb"),
        ("rtx 4091", "4090"),
        ("mi300z", "mi300"),
        ("4090 48gb", "has 24 GB; nearest: rtx-4090"),
    ],
)
def test_a_wrong_name_says_the_nearest(name, near):
    with pytest.raises(ConfigError, match=near) as error:
        load_gpu(name)
    assert "nearest" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "../h100-80gb", "gpus/../h100", "sxm", "80gb", "nvidia"])
def test_what_is_no_device_name_is_refused(name):
    with pytest.raises(ConfigError):
        load_gpu(name)


def test_total_bytes_says_how_it_is_known():
    ada = load_gpu("rtx-6000-ada")[0]
    assert (ada.total_bytes, ada.total_bytes_source) == (50865307648, "measured")
    h100 = load_gpu("h100-80gb")[0]
    assert h100.total_bytes_source == "nvidia-smi less 0.6 GiB"
    assert h100.total_bytes == 81559 * MIB - round(0.6 * GIB)
    assert h100.total_bytes / GIB == pytest.approx(79.05, abs=0.05)  # torch reports about 79.1 GiB
    mi300x = load_gpu("mi300x")[0]
    assert (mi300x.total_bytes, mi300x.total_bytes_source) == (192 * GIB, "label")


def test_figures_are_in_base_units():
    gpu = load_gpu("h100-80gb")[0]
    assert gpu.peak_flops_per_s["bf16"] == 989.4e12
    assert gpu.memory_bandwidth_bytes_per_s == 3350e9
    assert gpu.link_unidirectional_bytes_per_s == 450e9
    assert gpu.nic_bytes_per_s == 50e9
    assert gpu.tdp_w == 700
    assert gpu.pcie_bytes_per_s == pytest.approx(63.0e9, rel=1e-3)
    assert load_gpu("gb200")[0].pcie_bytes_per_s is None


@pytest.mark.parametrize(
    ("name", "workspace"),
    [
        ("v100", 8_519_680), ("a100", 8_519_680), ("rtx-4090", 8_519_680), ("h100", 32 * MIB),
        ("b200", 32 * MIB), ("rtx-5090", 32 * MIB), ("mi300x", 128 * MIB), ("mi355x", 128 * MIB),
        ("mi210", 32 * MIB), ("tpu-v4", 0), ("gaudi3", 0), ("m4-max", 0),
    ],
)  # fmt: skip
def test_cublas_workspace_by_architecture(name, workspace):
    assert cublas_workspace_bytes(load_gpu(name)[0]) == workspace


def test_context_says_whether_it_was_measured():
    value, source, verified = context_bytes(load_gpu("rtx-4090")[0])
    assert (value, verified) == (426 * MIB, True) and "measured" in source
    value, source, verified = context_bytes(load_gpu("h100")[0])
    assert (value, verified) == (550 * MIB, False) and "assumed" in source
    assert context_bytes(load_gpu("a100")[0]) == (500 * MIB, "assumed", False)


CUSTOM = """
name = "My card"
vendor = "NVIDIA"
architecture = "hopper"
compute_capability = "9.0"
marketed_gb = 64
memory_bandwidth_bytes_per_s = 2e12
bf16_tensor_flops_per_s = { value = 5e14, source = "own sheet", verified = true }
"""


def test_every_shipped_architecture_is_one_that_a_file_may_state():
    shipped = {load_gpu(name)[0].architecture for name in profiles.profile_names("gpus")}
    assert shipped <= set(ARCHITECTURES)
    assert set(CLASSES) <= set(ARCHITECTURES)


def test_a_custom_file_loads_with_bare_numbers(tmp_path):
    path = tmp_path / "my_gpu.toml"
    path.write_text(CUSTOM)
    gpu, notes = load_gpu(str(path))
    assert (gpu.name, gpu.slug, gpu.vendor, notes) == ("My card", "my_gpu", "nvidia", [])
    assert (gpu.total_bytes, gpu.total_bytes_source) == (64 * GIB, "label")
    assert gpu.peak_flops_per_s == {"bf16": 5e14}
    assert gpu.unverified == ("marketed_gb", "memory_bandwidth_bytes_per_s")
    assert cublas_workspace_bytes(gpu) == 32 * MIB


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("marketed_gb = 64", "", "marketed_gb: got none"),
        ("marketed_gb = 64", "marketed_gb = -1", "positive number"),
        ("marketed_gb = 64", 'marketed_gb = "64"', "positive number"),
        ("marketed_gb = 64", "marketed_gb = nan", "positive number"),
        ("marketed_gb = 64", "marketed_gb = true", "positive number"),
        ("marketed_gb = 64", "marketed_gb = 64\nnvidia_smi_total_mib = 100", "above 0.6 GiB"),
        ('name = "My card"', "name = 3", "rule: a string"),
        (
            'compute_capability = "9.0"',
            "compute_capability = 9.0",
            'a string; nearest valid: "9.0"',
        ),
        ("= 2e12", "= 2000", "rule: bytes/s; nearest valid: 2000e9"),
        (
            "bf16_tensor_flops_per_s = {",
            "fp32_flops_per_s = 44\nbf16_tensor_flops_per_s = {",
            "fp32_flops_per_s: got 44; rule: FLOP/s; nearest valid: 44e12",
        ),
        ("bf16_tensor_flops_per_s", "bf16_tensor_flop_per_s", "nearest: bf16_tensor_flops_per_s"),
        ('"hopper"', '"hoper"', "architecture: got 'hoper', not known; nearest: hopper"),
        ('compute_capability = "9.0"', 'compute_capability = "x"', "compute_capability"),
    ],
)
def test_a_broken_custom_file_is_a_one_line_error(tmp_path, old, new, match):
    path = tmp_path / "my_gpu.toml"
    path.write_text(CUSTOM.replace(old, new))
    with pytest.raises(ConfigError, match=match) as error:
        load_gpu(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_custom_file_is_said():
    with pytest.raises(ConfigError, match="cannot read"):
        load_gpu("nosuch/my_gpu.toml")
