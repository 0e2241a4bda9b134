"""Questions about whole steps: the allocator against its simulator, compiled blocks, a stored trace.

Checked by: tests/harness/test_gpu_sweep.py (the parts a CPU can run).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.sweep.setups import Spec
from memcalc.engine.allocator.replay import simulate
from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError
from memcalc.harness.local import local_kernels
from memcalc.harness.measure import clean
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.growth import growth
from memcalc.harness.watch.kernel_trace import read_trace
from memcalc.harness.watch.profiling import profile_step
from memcalc.inputs.training import TrainingSetup

_BASE: dict[str, Any] = {
    "seq_len": 2048, "micro_batch_size": 2, "grad_accum_steps": 1, "precision": "bf16-mixed",
    "optimizer": "adamw", "optimizer_impl": "foreach", "recompute": "none", "attention": "flash",
    "loss": "fp32", "num_layers": None,
}  # fmt: skip
#: The events of a replay are kept in the answer up to so many.
_MOST_EVENTS = 12_000
_MOST_TRACE_BYTES = 12 << 20


def _spec(model: str, **changes: Any) -> Spec:
    return Spec(model, {**_BASE, **changes}, {})


def _step(spec: Spec, device: torch.device) -> TrainingStep:
    setup = TrainingSetup(**spec.training)
    kernels = local_kernels(spec.config, setup, spec.kernels, device.type)
    return TrainingStep(spec.plan(kernels), device)


def trace_events(entries: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[int], list[str]]:
    """(events, sizes, kept) of the allocator's own history, for `allocator.simulate`.

    kept: the same as short words with the segments between them: `a1024` takes, `f0` frees the
    first taken, `S2097152` and `s2097152` are segments got and given back. Blocks taken before the
    history began are passed over.
    """
    events: list[int] = []
    sizes: list[int] = []
    kept: list[str] = []
    at: dict[int, int] = {}
    for entry in entries:
        action, size = entry.get("action"), int(entry.get("size", 0))
        if action == "alloc":
            at[entry["addr"]] = len(sizes)
            events.append(len(sizes))
            sizes.append(size)
            kept.append(f"a{size}")
        elif action == "free_completed":
            number = at.pop(entry["addr"], None)
            if number is not None:
                events.append(~number)
                kept.append(f"f{number}")
        elif action in ("segment_alloc", "segment_free"):
            kept.append(f"{'S' if action == 'segment_alloc' else 's'}{size}")
    return events, sizes, kept


def _replay(spec: Spec, device: torch.device, keep: bool) -> dict[str, Any]:
    """Two steps from an empty cache, recorded, and the same stream through the simulator."""
    clean(device)
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=2_000_000)
    step = _step(spec, device)
    for _ in range(2):
        step.run()
    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    traces = torch.cuda.memory._snapshot()["device_traces"][device.index or 0]
    torch.cuda.memory._record_memory_history(enabled=None)
    events, sizes, kept = trace_events(traces)
    found = simulate(events, sizes)
    measured = {k: stats[f"{k}_bytes.all.peak"] for k in ("requested", "allocated", "reserved")}
    step = None  # type: ignore[assignment]
    clean(device)
    return {
        "label": spec.label(), "events": len(events), "measured": measured,
        "simulated": found._asdict(),
        "allocated_ratio": found.peak_allocated_bytes / measured["allocated"],
        "reserved_ratio": found.peak_reserved_bytes / measured["reserved"],
        "segments_got": sum(word[0] == "S" for word in kept),
        "segments_given_back": sum(word[0] == "s" for word in kept),
        "streams": sorted({str(entry.get("stream")) for entry in traces}),
        "history": " ".join(kept) if keep and len(kept) <= _MOST_EVENTS else None,
    }  # fmt: skip


def allocator(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Does the allocator simulated give what PyTorch's own reserves for the same stream?"""
    specs = [
        _spec("llama-125m"),
        _spec("llama-125m", recompute="full", micro_batch_size=4),
        _spec("gpt2", seq_len=1024, micro_batch_size=4, precision="bf16"),
        _spec("llama-3.2-1b", precision="bf16", recompute="full"),
        _spec("qwen3-0.6b", loss="chunked", grad_accum_steps=2, optimizer_impl="fused"),
        _spec("mixtral-8x7b", num_layers=1, precision="bf16", micro_batch_size=1),
        _spec("llama-3.1-8b", num_layers=2, seq_len=4096, micro_batch_size=1, recompute="sac"),
    ]
    return {"runs": [_replay(spec, device, keep=n < 3) for n, spec in enumerate(specs)]}


def compiled_saved(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Bytes a compiled block keeps for backward: the difference of decoders with 1 and 3 blocks."""
    size: dict[str, Any] = {"seq_len": 64} if tiny else {"micro_batch_size": 1}
    models = ("tiny-llama",) if tiny else ("llama-3.2-1b", "gpt2")
    answer: dict[str, Any] = {}
    for model in models:
        for precision in ("bf16", "bf16-mixed"):
            row: dict[str, Any] = {}
            for layers in (1, 3):
                seq = min(size.get("seq_len", 2048), 1024 if model == "gpt2" else 2048)
                spec = _spec(model, **{**size, "seq_len": seq}, precision=precision,
                             num_layers=layers, stack="torch-compile", optimizer_impl="fused")  # fmt: skip
                try:
                    row[str(layers)] = _saved(spec, device)
                except ConfigError as error:
                    return {"skipped": str(error)}
            each = (row["3"]["saved_bytes"] - row["1"]["saved_bytes"]) / 2
            said = (row["3"]["predicted_bytes"] - row["1"]["predicted_bytes"]) / 2
            row |= {"block_bytes": each, "predicted_block_bytes": said}
            answer[f"{model} {precision}"] = row
    return answer


def _saved(spec: Spec, device: torch.device) -> dict[str, Any]:
    step = _step(spec, device)
    for _ in range(2):
        step.run()
    tokens = step.ids.numel()
    found = growth(partial(step.model, step.ids, step.labels), device)
    predicted = step_memory(step.plan).saved_bytes
    step = None  # type: ignore[assignment]
    clean(device)
    return {"saved_bytes": found.end_bytes, "predicted_bytes": predicted, "tokens": tokens}


def trace(device: torch.device, tiny: bool, folder: Path) -> dict[str, Any]:
    """The profile of two small training steps, stored as trace.json.gz, and its shares."""
    out = folder / "trace.json.gz"
    if tiny:
        spec = _spec("tiny-llama", seq_len=32, num_layers=2, precision="fp32")
    else:
        spec = _spec("llama-3.1-8b", num_layers=2, precision="bf16", optimizer_impl="fused")
    step = _step(spec, device)
    step.run()
    found = profile_step(step.run, device, out)
    if out.stat().st_size > _MOST_TRACE_BYTES:
        thin(out)
    return {"label": spec.label(), "file": out.name, "bytes": out.stat().st_size, **found}


def thin(path: Path) -> None:
    """Keep of a trace only work on the GPU and the marks of steps."""
    kept = [
        {**event, "args": {k: v for k, v in (event.get("args") or {}).items()
                           if k in ("device", "stream", "correlation")}}
        for event in read_trace(path)
        if str(event.get("cat", "")).lower() in ("kernel", "gpu_memcpy", "gpu_memset")
        or str(event.get("name", "")).startswith("ProfilerStep#")
    ]  # fmt: skip
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": kept}).encode()))
