"""memcalc list [KIND]: the profiles of one kind in a table, or how many there are of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.errors import unknown
from memcalc.units import GIB

if TYPE_CHECKING:
    from memcalc.output.console import Page

KINDS = ("models", "gpus", "stacks", "clusters", "weights", "engines", "calibrations")
EMPTY = {"calibrations": "none yet; `memcalc calibrate` makes one"}
_NONE = "none in this version"


def run(arguments: Arguments) -> int:
    """Write the list; always 0."""
    check_positionals(arguments)
    kind = _kind(arguments.positionals[0]) if arguments.positionals else None
    rows = _ROWS[kind]() if kind in _ROWS else []
    if kind is None:
        rows = [{"name": name, "count": _count(name)} for name in KINDS]

    def page(sheet: Page) -> None:
        if rows:
            cells = [[_cell(*item) for item in row.items()] for row in rows]
            sheet.table(_columns(rows), cells)
        else:
            sheet.line(f"{kind}: {EMPTY.get(str(kind), _NONE)}")
        if kind is None:
            sheet.line("memcalc list KIND names them, memcalc show NAME tells all of one")
        elif kind == "calibrations" and all(row["date"] is None for row in rows):
            sheet.line("no measured one yet; `memcalc calibrate` makes one of this device")
        elif any(str(row.get("usable_bytes_source", "")).startswith("label") for row in rows):
            sheet.line("label: taken from the product's name, not read from a device")
        elif kind == "weights":
            sheet.line("bits: in memory for each element of a matrix of 4096 x 4096")
        elif kind == "clusters":
            sheet.line("GPUs of a node and of the scale-up domain; GB/s of one direction, as sold:")
            sheet.line("of a GPU to its peers on the link, of a node to other nodes")

    plain = {"schema": 1, "kind": kind or "kinds", "count": len(rows), "entries": rows}
    line = "\n".join(str(next(iter(row.values()))) for row in rows)
    line = line or EMPTY.get(str(kind), _NONE)
    deliver(arguments, lambda: plain, page, line)
    return 0


def _kind(word: str) -> str:
    lowered = word.lower()
    found = lowered if lowered.endswith("s") else f"{lowered}s"
    if found not in KINDS:
        raise unknown("list", word, KINDS)
    return found


def _count(kind: str) -> int:
    if kind == "calibrations":
        from memcalc.inputs.calibrations import entries

        return len(entries())
    if kind == "weights":
        from memcalc.inputs.weights import weight_names

        return len(weight_names())
    from memcalc.inputs.profiles import profile_names

    return len(profile_names(kind)) if kind in _ROWS else 0


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    right = {k for k, v in rows[0].items() if isinstance(v, (int, float))} | _UNBROKEN
    return [f"{'>' * (key in right)}{_SHORT.get(key, key)}" for key in rows[0]]


#: JSON key -> column head; figures in base units are shown in the head's unit.
_SHORT = {
    "usable_bytes": "usable GiB", "usable_bytes_source": "known from",
    "memory_bandwidth_bytes_per_s": "GB/s", "bf16_flops_per_s": "bf16 TF/s",
    "verified_against": "checked against", "gemm_flops_per_s": "gemm TF/s",
    "gpus_per_node": "GPUs", "domain_gpus": "domain", "topology": "wiring",
    "link_bytes_per_s": "link GB/s", "node_network_bytes_per_s": "node GB/s",
}  # fmt: skip
_SCALE = {
    "usable_bytes": (GIB, ".1f"), "memory_bandwidth_bytes_per_s": (1e9, ",.0f"),
    "bf16_flops_per_s": (1e12, ",.1f"), "gemm_flops_per_s": (1e12, ",.3g"),
    "link_bytes_per_s": (1e9, ",.4g"), "node_network_bytes_per_s": (1e9, ",.4g"),
}  # fmt: skip


#: Columns that are never wrapped, though they hold text.
_UNBROKEN = {"date", "gemm_flops_per_s"}


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "date":
        return str(value)[:10]
    if key == "torch":
        return str(value).partition("+")[0]
    if key in _SCALE:
        unit, form = _SCALE[key]
        return format(value / unit, form)
    if key == "bits":
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else f"{value}"


def _models() -> list[dict[str, Any]]:
    from memcalc.inputs.profiles import load_profile, profile_names

    rows = []
    for name in profile_names("models"):
        raw = load_profile("models", name)
        config = raw.get("config", {})
        row = {
            "name": name,
            "parameters": raw.get("parameters"),
            "layers": _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
            "hidden": _first(config, "hidden_size", "n_embd", "d_model"),
            "heads": _first(config, "num_attention_heads", "n_head", "num_heads"),
            "family": config.get("model_type"),
        }
        rows.append(row)
    return rows


def _first(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if key in config), None)


def _gpus() -> list[dict[str, Any]]:
    from memcalc.inputs.hardware import read_gpu
    from memcalc.inputs.profiles import find_profile, profile_names

    rows = []
    for name in profile_names("gpus"):
        gpu = read_gpu(find_profile("gpus", name))
        rows.append(
            {
                "name": name,
                "usable_bytes": gpu.total_bytes,
                "usable_bytes_source": gpu.total_bytes_source,
                "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
                "bf16_flops_per_s": gpu.peak_flops_per_s.get("bf16"),
                "architecture": gpu.architecture,
            }
        )
    return rows


def _stacks() -> list[dict[str, Any]]:
    from memcalc.inputs.profiles import profile_names
    from memcalc.inputs.stacks import load_stack

    known = [load_stack(name) for name in profile_names("stacks")]
    return [
        {"name": s.name, "description": s.description, "verified_against": s.verified_against}
        for s in known
    ]


def _clusters() -> list[dict[str, Any]]:
    """Rates are of one direction: a GPU's to its peers, a node's to other nodes."""
    from memcalc.inputs.clusters import load_cluster
    from memcalc.inputs.profiles import profile_names

    rows = []
    for cluster in map(load_cluster, profile_names("clusters")):
        row = {"name": cluster.slug, "gpu": cluster.gpu, "gpus_per_node": cluster.gpus_per_node}
        row |= {key: getattr(cluster, key) for key in ("domain_gpus", "topology")}
        row |= {
            key: getattr(cluster, key) for key in ("link_bytes_per_s", "node_network_bytes_per_s")
        }
        rows.append(row)
    return rows


def _weights() -> list[dict[str, Any]]:
    """bits: in memory for each element of a matrix of 4096 x 4096."""
    from memcalc.inputs.weights import load_weights, weight_names

    formats = [load_weights(name) for name in weight_names()]
    return [
        {"name": f.name, "bits": f.bits(4096, 4096), "description": f.description} for f in formats
    ]


def _engines() -> list[dict[str, Any]]:
    from memcalc.inputs.engines import ENGINES, load_engine

    known = [load_engine(name) for name in ENGINES]
    return [
        {"name": e.name, "description": e.description, "verified_against": e.verified_against}
        for e in known
    ]


def _calibrations() -> list[dict[str, Any]]:
    """The user's and the package's; a file that is none is passed over with a note."""
    from memcalc.errors import ConfigError
    from memcalc.inputs.calibrations import DEFAULT_PREFIX, ceiling, entries, is_default, read
    from memcalc.output.files import put_notes

    rows = []
    for entry in entries():
        try:
            if is_default(entry.path):
                architecture = entry.name.removeprefix(DEFAULT_PREFIX)
                rows.append(_constants(entry.name, architecture, entry.origin))
                continue
            profile = read(entry.path)
        except ConfigError as error:
            put_notes([str(error)])
            continue
        rows.append(
            {
                "name": entry.name,
                "gemm_flops_per_s": ceiling(profile),
                "device": profile["device"]["name"],
                "torch": profile["torch"],
                "date": profile["date"],
                "origin": entry.origin,
            }
        )
    return rows


def _constants(name: str, architecture: str, origin: str) -> dict[str, Any]:
    """The row of a default: constants of an architecture, measured on no one device."""
    return {
        "name": name, "gemm_flops_per_s": None, "device": f"any of {architecture}",
        "torch": None, "date": None, "origin": origin,
    }  # fmt: skip


_ROWS = {
    "models": _models, "gpus": _gpus, "stacks": _stacks, "clusters": _clusters,
    "weights": _weights, "engines": _engines, "calibrations": _calibrations,
}  # fmt: skip
