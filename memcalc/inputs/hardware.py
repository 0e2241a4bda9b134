"""Gpu: one device with its figures in base units, and which device a user's spelling means.

Decides: which profile a name stands for (SXM and the largest memory when unsaid, with a note), how
many bytes an idle process gets, and the two fixed costs of a CUDA process, context and cuBLAS
workspace. Peaks are dense rates. Labels in GB are taken as GiB: an 80 GB card carries 80 GiB.
Figures without a second source are listed in `Gpu.unverified`; each one's source is in its profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from memcalc.errors import ConfigError, unknown
from memcalc.inputs import profiles
from memcalc.inputs.files import names_toml, user_path
from memcalc.inputs.profiles import read_text, read_texts
from memcalc.units import GIB, MIB

TotalSource = Literal["measured", "nvidia-smi less 0.6 GiB", "label"]
#: What torch can allocate lies 0.55 to 0.65 GiB below what nvidia-smi calls total.
SMI_GAP_BYTES = round(0.6 * GIB)
#: dtype -> the profile's key. "fp64" and "fp32" are vector rates, the others tensor-core rates.
PEAK_KEYS = {
    "fp64": "fp64_flops_per_s",
    "fp64_tensor": "fp64_tensor_flops_per_s",
    "fp32": "fp32_flops_per_s",
    "tf32": "tf32_tensor_flops_per_s",
    "fp16": "fp16_tensor_flops_per_s",
    "bf16": "bf16_tensor_flops_per_s",
    "fp8": "fp8_tensor_flops_per_s",
    "int8": "int8_tensor_ops_per_s",
    "fp4": "fp4_tensor_flops_per_s",
}
_PLAIN = (
    "marketed_gb", "nvidia_smi_total_mib", "torch_total_bytes", "memory_bandwidth_bytes_per_s",
    "link_bidirectional_bytes_per_s", "link_unidirectional_bytes_per_s", "pcie_generation",
    "pcie_lanes", "nic_bytes_per_s", "tdp_w", "price_usd_per_hour_low", "price_usd_per_hour_high",
)  # fmt: skip
#: Every figure a profile may hold; each is an inline table with value, source and verified.
FIGURES = (*PEAK_KEYS.values(), *_PLAIN)
_TEXTS = (
    "name", "vendor", "architecture", "form_factor", "aliases", "notes", "checked_against",
    "memory_type", "link", "compute_capability",
)  # fmt: skip
#: What decides context, workspaces and default rates; a device of none of them states none.
ARCHITECTURES = (
    "volta", "turing", "ampere", "ada", "hopper", "blackwell", "blackwell-ultra", "cdna2", "cdna3",
    "cdna4", "gaudi", "tpu", "m2", "m4", "cpu", "unknown",
)  # fmt: skip
#: Bytes per second of one PCIe lane and direction: 8, 16, 32, 64 GT/s at 128 payload bits in 130.
_PCIE_LANE = {gen: rate * 1e9 / 8 * 128 / 130 for gen, rate in ((3, 8), (4, 16), (5, 32), (6, 64))}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device, in bytes, bytes/s, flops/s (dense), W and USD an hour; None where unknown.

    total_bytes: what the driver gives an idle process; total_bytes_source says how it is known.
    Link, NIC and PCIe rates are per device; the NIC is what servers usually carry.
    Checked by: unit/test_hardware.py.
    """

    name: str
    slug: str
    vendor: str
    architecture: str
    marketed_gb: float
    total_bytes: int
    total_bytes_source: TotalSource
    memory_bandwidth_bytes_per_s: float
    peak_flops_per_s: Mapping[str, float] = field(hash=False)  # by dtype, keys of PEAK_KEYS
    compute_capability: str | None = None
    form_factor: str | None = None
    memory_type: str | None = None
    link: str | None = None
    link_bidirectional_bytes_per_s: float | None = None
    link_unidirectional_bytes_per_s: float | None = None
    nic_bytes_per_s: float | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    tdp_w: float | None = None
    price_usd_per_hour_low: float | None = None
    price_usd_per_hour_high: float | None = None
    price_as_of: str | None = None
    notes: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()  # profile keys without a second source
    profile_hash: str = ""

    @property
    def pcie_bytes_per_s(self) -> float | None:
        """Bytes/s of the host link in one direction, line coding removed; None where unknown."""
        if self.pcie_generation not in _PCIE_LANE or self.pcie_lanes is None:
            return None
        return self.pcie_lanes * _PCIE_LANE[self.pcie_generation]


def cublas_workspace_bytes(gpu: Gpu) -> int:
    """Bytes of one cuBLAS workspace, one per handle and stream, counted as allocated by torch.

    32 MiB from Hopper on (compute capability >= 9), 2 * 4096 + 8 * 16 KiB = 8,519,680 before it.
    ROCm: 128 MiB on CDNA3 and CDNA4, else 32 MiB. Nothing on devices without either library.
    Source: PyTorch, aten/src/ATen/cuda/CublasHandlePool.cpp. Checked by: unit/test_hardware.py.
    """
    if gpu.vendor == "amd":
        return 128 * MIB if gpu.architecture in ("cdna3", "cdna4") else 32 * MIB
    if gpu.vendor != "nvidia" or gpu.compute_capability is None:
        return 0
    major = int(gpu.compute_capability.split(".")[0])
    return 32 * MIB if major >= 9 else (2 * 4096 + 8 * 16) * 1024


def context_bytes(gpu: Gpu) -> tuple[int, str, bool]:
    """Bytes of a process's context, outside the allocator: (bytes, source, verified).

    Not counted: 50 to 300 MiB more as kernels are loaded. Checked by: unit/test_hardware.py.
    """
    if gpu.architecture == "ada":
        return 426 * MIB, "measured on an RTX 6000 Ada, torch 2.10, CUDA 13", True
    if gpu.architecture == "hopper":
        return 550 * MIB, "assumed for Hopper", False
    return 500 * MIB, "assumed", False


class _Spelling(NamedTuple):
    family: str  # "h100", "rtx4090", "tpuv5e"
    form: str | None  # "sxm", "pcie", "nvl"
    memory_gb: int | None


_FORMS = {"sxm": "sxm", "hgx": "sxm", "dgx": "sxm", "pcie": "pcie", "pci": "pcie", "nvl": "nvl"}
_DROPPED = {
    "nvidia", "amd", "intel", "google", "apple", "geforce", "tesla", "quadro", "instinct", "radeon",
    "gpu", "generation", "edition", "workstation", "hbm2", "hbm2e", "hbm3e", "oam",
}  # fmt: skip
_PREFIXES = ("", "rtx", "tpu", "tpuv")
#: Families sold in several forms: what a name without form or size is asked about.
_DEFAULT_FORM = "sxm"


def _spelling(text: str) -> _Spelling:
    separated = re.sub(r"(sxm)\d?|(pcie)|(nvl)(?!\d)", r" \1\2\3 ", text.lower())
    form, memory, family = None, None, ""
    for token in re.split(r"[^a-z0-9]+", separated):
        size = re.fullmatch(r"(\d{2,3})(g|gb|gib)?", token)
        if token in _FORMS:
            form = _FORMS[token]
        elif token == "hbm3" and family == "h100":
            form = form or "sxm"  # the driver's name of the SXM card is "H100 80GB HBM3"
        elif size and family:
            memory = int(size.group(1))
        elif memory and token in ("g", "gb", "gib"):  # "A100 80 GB"
            continue
        elif token not in _DROPPED:
            family += token
    return _Spelling(family, form, memory)


def _resolve(name: str) -> tuple[str | None, list[str]]:
    """The profile a spelling means and the notes on what was assumed, from file names alone."""
    said = _spelling(name)
    if not said.family:
        return None, []
    families = {prefix + said.family for prefix in _PREFIXES}
    known = {stem: _spelling(stem) for stem in profiles.profile_names("gpus")}
    siblings = {stem: spelt for stem, spelt in known.items() if spelt.family in families}
    fitting = {
        stem: spelt
        for stem, spelt in siblings.items()
        if said.form in (None, spelt.form or _DEFAULT_FORM)
        and (said.memory_gb is None or spelt.memory_gb in (None, said.memory_gb))
    }
    if not fitting:
        return None, []
    best = max(fitting, key=lambda stem: (known[stem].form is None, known[stem].memory_gb or 0))
    forms = {spelt.form or _DEFAULT_FORM for spelt in fitting.values()}
    same_form = [s.memory_gb for s in fitting.values() if s.form == known[best].form]
    notes = []
    if len(forms) > 1:
        chosen = (known[best].form or _DEFAULT_FORM).upper()
        notes.append(f"gpu {name}: form factor unsaid, took {chosen} ({best})")
    if len(same_form) > 1:
        notes.append(
            f"gpu {name}: memory size unsaid, took the largest, {known[best].memory_gb} GB ({best})"
        )
    return best, notes


def _figures(raw: Mapping[str, Any], where: str) -> tuple[dict[str, float], list[str]]:
    """The numbers of a profile by key, and the keys that are not verified."""
    values, unverified = profiles.read_figures(raw, FIGURES, where)
    for key in ("marketed_gb", "memory_bandwidth_bytes_per_s"):
        if key not in values:
            raise ConfigError(f"{where}: {key}: got none; rule: every gpu profile states it")
    needed = [PEAK_KEYS[dtype] for dtype in ("fp32", "bf16")]  # other dtypes run as one of these
    if not any(key in values for key in needed):
        raise ConfigError(f"{where}: peak rates: got none; rule: {' or '.join(needed)} at least")
    return values, unverified


def _total_bytes(values: Mapping[str, float]) -> tuple[int, TotalSource]:
    if "torch_total_bytes" in values:
        return int(values["torch_total_bytes"]), "measured"
    if "nvidia_smi_total_mib" in values:
        total = int(values["nvidia_smi_total_mib"]) * MIB - SMI_GAP_BYTES
        return total, "nvidia-smi less 0.6 GiB"
    return round(values["marketed_gb"] * GIB), "label"


def read_gpu(path: Path) -> Gpu:
    """The device of one profile file; in a user's file figures may be bare numbers.

    Raises ConfigError when a figure is missing or no positive number.
    Checked by: unit/test_hardware.py.
    """
    raw = profiles.read_toml(path)
    where = path.name
    profiles.check_keys(raw, (*FIGURES, *_TEXTS), where)
    values, unverified = _figures(raw, where)
    total, source = _total_bytes(values)
    if total <= 0:
        raise ConfigError(f"{where}: memory: got {total} bytes; rule: above 0.6 GiB")
    capability = read_text(raw, "compute_capability", where)
    if capability is not None and not re.fullmatch(r"[1-9]\d?\.\d", capability):
        raise ConfigError(f"{where}: compute_capability: got {capability!r}; rule: such as '9.0'")
    architecture = (read_text(raw, "architecture", where) or "unknown").lower()
    if architecture not in ARCHITECTURES:
        raise unknown(f"{where}: architecture", architecture, ARCHITECTURES)
    price = raw.get("price_usd_per_hour_low")
    optional: dict[str, Any] = {
        k: values[k] for k in _PLAIN[4:] if k in values and not k.startswith("pcie")
    }
    texts: dict[str, Any] = {
        k: read_text(raw, k, where) for k in ("form_factor", "memory_type", "link")
    }
    return Gpu(
        name=read_text(raw, "name", where) or path.stem,
        slug=path.stem,
        vendor=(read_text(raw, "vendor", where) or "unknown").lower(),
        architecture=architecture,
        compute_capability=capability,
        marketed_gb=values["marketed_gb"],
        total_bytes=total,
        total_bytes_source=source,
        memory_bandwidth_bytes_per_s=values["memory_bandwidth_bytes_per_s"],
        peak_flops_per_s={d: values[key] for d, key in PEAK_KEYS.items() if key in values},
        pcie_generation=int(values["pcie_generation"]) if "pcie_generation" in values else None,
        pcie_lanes=int(values["pcie_lanes"]) if "pcie_lanes" in values else None,
        price_as_of=read_text(price, "as_of", where) if isinstance(price, dict) else None,
        notes=read_texts(raw, "notes", where),
        unverified=tuple(unverified),
        profile_hash=profiles.profile_hash(path),
        **optional,
        **texts,
    )


def _check_one(name: str) -> None:
    """Raise ConfigError for `8xH100`: how many there are is another option's."""
    found = re.fullmatch(r"(\d+)\s*x\s*(\D.*)|(.+?)\s*x\s*(\d+)", name.strip().lower()[:60])
    gpu, count = (found[2] or found[3], found[1] or found[4]) if found else ("", "")
    if gpu and _resolve(gpu)[0]:
        nearest = f"--gpu {gpu.replace(' ', '-')} --gpus {count}"
        raise ConfigError(f"gpu: got {name!r}; rule: one GPU's name; nearest valid: {nearest}")


@lru_cache(maxsize=128)
def _shipped(name: str) -> Gpu:
    """A shipped profile's device; those files do not change while a process runs."""
    return read_gpu(profiles.find_profile("gpus", name))


def load_gpu(name: str) -> tuple[Gpu, list[str]]:
    """The device a spelling means (`h100`, `A100-80G`, `4090`, `my_gpu.toml`), and notes.

    A profile's own name means that profile. In any other spelling, form factor unsaid: SXM; memory size
    unsaid: the largest. Notes say so where there was a choice.
    Raises ConfigError naming the nearest name when nothing fits. Checked by: unit/test_hardware.py.
    """
    if names_toml(name):
        return read_gpu(user_path(name)), []
    profiles.check_name("gpu", name)
    if (profiles.profiles_dir() / "gpus" / f"{name}.toml").is_file():
        return _shipped(name), []
    stem, notes = _resolve(name)
    if stem is None:
        _check_one(name)
        return _shipped(name), []
    gpu = _shipped(stem)
    said = _spelling(name).memory_gb
    if said is not None and _spelling(stem).memory_gb is None and said != gpu.marketed_gb:
        raise ConfigError(
            f"gpu: got {name!r}; rule: {gpu.name} has {gpu.marketed_gb:g} GB; nearest: {stem}"
        )
    return gpu, notes
