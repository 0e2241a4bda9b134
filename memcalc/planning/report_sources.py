"""Sources of a report: where each figure that is no arithmetic comes from, with what is unverified.

The model's configuration, the GPU's and cluster's datasheets, the stack's reference, the calibration of
the time model and the runs its band is from. Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.inputs.calibrations import find
from memcalc.inputs.hardware import PEAK_KEYS, Gpu
from memcalc.inputs.profiles import find_profile, read_toml
from memcalc.inputs.stacks import load_stack
from memcalc.planning.cases import Case
from memcalc.planning.utilisation import matmul_dtype
from memcalc.units import gib, si

#: (what, value, source); a source of "" is not listed.
Line = tuple[str, str, str]
_CLUSTER = {
    "link_bytes_per_s": "link within a node, one direction",
    "nic_bytes_per_s": "one network card, one direction",
    "host_memory_bytes": "memory of a host",
}


def sources_of(case: Case, result: Estimate) -> list[dict[str, str]]:
    """[{"what", "value", "source"}], the model first."""
    lines = [*_model(case), *_gpu(case, result), *_cluster(case), *_stack(result), *_time(result)]
    return [
        {"what": what, "value": value, "source": source} for what, value, source in lines if source
    ]


def _model(case: Case) -> Iterator[Line]:
    raw = _profile("models", case.model)
    name = Path(case.model).name if raw is None else case.config.name
    yield "model", name, "a configuration file of the user's" if raw is None else raw["source"]
    if raw is not None and raw.get("parameters"):
        yield "parameters", f"{raw['parameters']:,}", raw.get("parameters_source", "")


def _profile(kind: str, name: str) -> dict[str, Any] | None:
    """A shipped profile as it is written; None for a file of the user's."""
    if Path(name).exists():
        return None
    try:
        return read_toml(find_profile(kind, name))
    except ConfigError:
        return None


def _gpu(case: Case, result: Estimate) -> Iterator[Line]:
    gpu = case.device.gpu
    if gpu is None:
        return
    raw = _profile("gpus", gpu.slug)
    if raw is None:
        yield "GPU", gpu.name, "a profile of the user's"
        return
    dtype = matmul_dtype(result.setup)
    if dtype in gpu.peak_flops_per_s:
        peak = si(gpu.peak_flops_per_s[dtype], "FLOP/s")
        yield f"{gpu.name}: peak, {dtype}", f"{peak} dense", _figure(gpu, raw, PEAK_KEYS[dtype])
    moved = si(gpu.memory_bandwidth_bytes_per_s, "B/s")
    source = _figure(gpu, raw, "memory_bandwidth_bytes_per_s")
    yield f"{gpu.name}: memory bandwidth", moved, source
    yield f"{gpu.name}: usable memory", gib(gpu.total_bytes), gpu.total_bytes_source


def _figure(gpu: Gpu, raw: dict[str, Any], key: str) -> str:
    source = str(raw.get(key, {}).get("source", ""))
    return f"{source}; not verified" if source and key in gpu.unverified else source


def _cluster(case: Case) -> Iterator[Line]:
    cluster = case.device.cluster
    if cluster is None:
        return
    raw = _profile("clusters", cluster.slug) or {}
    for key, said in _CLUSTER.items():
        entry = raw.get(key)
        if isinstance(entry, dict):
            size = (
                gib(entry["value"]) if key.endswith("memory_bytes") else si(entry["value"], "B/s")
            )
            doubt = "" if entry.get("verified") else "; not verified"
            yield f"{cluster.name}: {said}", size, f"{entry['source']}{doubt}"


def _stack(result: Estimate) -> Iterator[Line]:
    stack = load_stack(result.setup["stack"])
    judged = stack.verified_against
    yield (
        f"stack {stack.title}",
        stack.description,
        f"verified against {judged}" if judged else "none",
    )


def _time(result: Estimate) -> Iterator[Line]:
    time = result.time
    if time.calibration is None:
        return
    try:
        raw = read_toml(find(time.calibration))
    except ConfigError:
        raw = {}
    measured = f"memcalc calibrate, {raw.get('date', '')}, torch {raw.get('torch', '')}"
    basis = "; ".join(str(raw[key]) for key in ("basis", "reference") if raw.get(key))
    yield "rates of kernels and links", time.calibration, basis or measured
    if time.band:
        yield "band of the step time", time.band, "published runs: profiles/bands/throughput.toml"
