"""The head of a record: who ran what, when, and the complete setup, enough to estimate it again.

`new_record` starts one; `stated` turns a plan into plain values and `planned` turns them back, so an
old record can be held against today's estimate. Nothing here needs torch.
Checked by: harness/test_records.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from memcalc.engine.kernel_choice import CHOICES
from memcalc.engine.kernels import Adapter
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.harness.records import SCHEMA
from memcalc.inputs.files import NUMBER, check_numbers, check_shape, shown
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig
from memcalc.inputs.model_toml import checked_fields
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

#: What a run can come to. refused: not started, it could not fit.
STATUSES = ("ok", "oom", "interrupted", "failed", "refused")
#: Kernel choices that, with model, training setup and a trait, give the plan again.
_CHOSEN = (*CHOICES, "cuda_graphs")
_GIT_TIMEOUT_S = 10
_SETUP: Final = {
    "model!": {"moe": dict, "mla": dict}, "training!": {"peft": dict}, "kernels!": dict,
}  # fmt: skip
#: What charts take from a record; the setup's own fields are checked where a plan is made of them.
_RECORD: Final[Mapping[str, Any]] = {
    "kind": str, "status": str, "memcalc": str, "date": str,
    "setup": {
        "model": {"name": str, "num_hidden_layers": int}, "stated_model": str, "kernels": dict,
        "training": {"precision": str, "optimizer": str, "recompute": str},
        "resolved": {"grad_accum_steps": int, "seq_len": int, "micro_batch_size": int},
    },
    "device": {"name": str, "type": str, "torch": str, "total_bytes": int},
    "batch": {"id": str, "ranks": int}, "world": {n: int for n in ("tp", "pp", "cp", "dp")},
    "memory": {
        "phases": dict, "allocator": dict, "peak_at": str, "peak_allocated_bytes": int,
        "peak_requested_bytes": int, "peak_reserved_bytes": int, "device_used_bytes": int,
    },
    "time": {"tokens_per_s": NUMBER},
    "comparison": {"rows": [{"name!": str, "predicted": NUMBER, "measured": NUMBER}]},
    "timeline": {"at": [int], "live_bytes": [int], "allocations": int, "spans": [list]},
}  # fmt: skip
#: What the head of a picture of one run is made of.
HEAD: Final = (
    "memcalc", "date", "setup.model.name", "setup.model.num_hidden_layers", "setup.kernels",
    "setup.training.precision", "setup.training.optimizer", "setup.training.recompute",
    "setup.resolved.grad_accum_steps", "setup.resolved.seq_len", "setup.resolved.micro_batch_size",
    "device.name", "device.type",
)  # fmt: skip
#: What a run that ended well has of it.
_NEEDED: Final = (*HEAD, "memory", "time")


def new_record(kind: str, plan: Plan | None = None) -> dict[str, Any]:
    """A record's first fields; status is "failed" until the run says otherwise.

    kind: "measure", "verify", "calibrate". plan: what ran, None where no model did.
    """
    from memcalc import __version__

    return {
        "schema": SCHEMA,
        "kind": kind,
        "status": "failed",
        "memcalc": __version__,
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "setup": None if plan is None else stated(plan),
    }


def git_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout this package runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain")
    if commit is None:
        return None
    return {"commit": commit.strip(), "dirty": None if changed is None else bool(changed.strip())}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *words],
            capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def stated(plan: Plan) -> dict[str, Any]:
    """The complete setup of a plan as plain values: model, training, kernels, what was resolved."""
    resolved, kernels = plan.resolved, plan.kernels._asdict()
    traits = kernels.pop("traits")._asdict()
    kernels["adapter"] = _plain_adapter(plan.kernels.adapter)
    return {
        "model": asdict(resolved.config),
        "training": asdict(resolved.setup),
        "kernels": {
            **{name: kernels[name] for name in _CHOSEN},
            "fused_gate_up": traits["fused_gate_up"],
        },
        "resolved": {
            "seq_len": resolved.seq_len,
            "micro_batch_size": resolved.micro_batch_size,
            "grad_accum_steps": resolved.grad_accum_steps,
            "global_batch": resolved.micro_batch_size * resolved.grad_accum_steps,
            "optimizer_impl": resolved.optimizer_impl,
            "kernels": kernels,
            "traits": traits,
            "dims": dict(plan.values),
        },
        "notes": [*resolved.notes, *plan.notes],
    }


def _plain_adapter(adapter: Adapter | None) -> dict[str, Any] | None:
    """What trains, where not every weight does, with sets as sorted lists."""
    if adapter is None:
        return None
    plain = {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in adapter._asdict().items()
    }
    return {**plain, "quantised": adapter.quantised and adapter.quantised._asdict()}


def planned(setup: Mapping[str, Any]) -> Plan:
    """The plan of a record's setup. Raises ConfigError where this version cannot state it."""
    try:
        check_shape(setup, _SETUP, "record: setup not readable, setup")
        check_numbers(setup, "record: setup")
        model = dict(setup["model"])
        for name, part in (("moe", MoeConfig), ("mla", MlaConfig)):
            if model.get(name) is not None:
                model[name] = _made(part, model[name])
        config = _made(ModelConfig, model)
        stated = dict(setup["training"])
        if stated.get("peft") is not None:
            stated["peft"] = _made(PeftSetup, stated["peft"])
        training = _made(TrainingSetup, stated)
        return plan_of(config, training, _plain_kernels(setup["kernels"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"record: setup not readable ({type(error).__name__}: {error})") from None


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass from plain values; JSON's lists are the tuples they were."""
    known = {field.name for field in fields(kind)}
    if foreign := sorted(set(values) - known):
        raise ConfigError(
            f"record: got {kind.__name__}.{foreign[0]}, not known; rule: a newer memcalc"
        )
    return kind(**checked_fields(kind, values))


def _plain_kernels(kernels: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel choices of a record, each a word, a number or whether."""
    for name, value in kernels.items():
        check_shape(value, (str, bool, int, float), f"record: setup.kernels.{name}")
    return dict(kernels)


def check_record(record: Mapping[str, Any], where: str, *also: str) -> None:
    """Raise ConfigError unless what charts take from a record is of the kind it has there.

    also: paths that must be there whatever the run's status, beside those of a run that ended well.
    A file of records may have been written by hand or by another version. Checked by:
    unit/test_malicious.py.
    """
    check_shape(record, _RECORD, where)
    check_numbers(record, where)
    for path in (*(_NEEDED if record.get("status") == "ok" else ()), *also):
        found: Any = record
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            raise ConfigError(f"{where}: {path}: got nothing; rule: as memcalc measure writes it")
    if record.get("comparison") is not None and record["comparison"].get("rows") is None:
        raise ConfigError(
            f"{where}: comparison.rows: got nothing; rule: as memcalc verify writes it"
        )
    _check_series(record, where)


def _check_series(record: Mapping[str, Any], where: str) -> None:
    """The points and phases of a measured step: as many bytes as places, phases of a name and two places."""
    kept, memory = record.get("timeline") or {}, record.get("memory") or {}
    if len(kept.get("at") or ()) != len(kept.get("live_bytes") or ()):
        raise ConfigError(f"{where}: timeline: rule: as many live_bytes as at")
    for name, value in (memory.get("phases") or {}).items():
        check_shape(value, int, f"{where}: memory.phases.{name}")
    for span in kept.get("spans") or ():
        if [type(entry) for entry in span] != [str, int, int]:
            raise ConfigError(
                f"{where}: timeline.spans: got {shown(span)}; rule: phase, begin, end"
            )
