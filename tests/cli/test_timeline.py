"""--timeline: every event of a step, consistent with the estimate's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import timeline_rows

_SETUPS = {
    "plain": ("gpt2",),
    "accumulation": ("gpt2", "--grad-accum", "3"),
    "gradients-stay": ("gpt2", "--no-set-to-none"),
    "recompute": ("llama-3.2-1b", "--recompute", "full:4", "--grad-clip"),
    "sac": ("llama-3.2-1b", "--recompute", "sac"),
    "experts": ("mixtral-8x7b", "--layers", "5"),
    "hf": ("gpt2", "--stack", "hf"),
    "ddp": ("gpt2", "--gpus", "8"),
    "ddp-accumulation": ("gpt2", "--gpus", "8", "--grad-accum", "2"),
    "ddp-gradients-stay": ("gpt2", "--gpus", "8", "--no-set-to-none", "--grad-accum", "3"),
    "zero-1": ("gpt2", "--gpus", "8", "--zero", "1"),
    "fsdp": ("llama-3.2-1b", "--gpus", "8", "--fsdp", "--recompute", "full"),
    "fsdp-accumulation": ("gpt2", "--gpus", "4", "--fsdp", "--reshard", "2", "--grad-accum", "2"),
    "hsdp": ("mixtral-8x7b", "--layers", "5", "--gpus", "16", "--fsdp", "--shard", "8"),
}


@pytest.mark.parametrize("words", _SETUPS.values(), ids=_SETUPS.keys())
def test_the_largest_live_bytes_are_the_estimates_peak(memcalc, tmp_path: Path, words) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "step.csv"
    found = memcalc("estimate", *words, "--seq", "64", "--json", "--timeline", path).json["memory"]
    rows = timeline_rows(path, found["peak_requested_bytes"])
    for phase, peak in found["phases"].items():
        assert max(int(r["live_bytes"]) for r in rows if r["phase"] == phase) == peak
    start = [row for row in rows if row["phase"] == "start"]
    assert rows[-1]["live_bytes"] == start[-1]["live_bytes"]  # a step leaves what it found


def test_every_layer_of_the_model_appears(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "step.json"
    assert memcalc("estimate", "gpt2", "--seq", "64", "-q", "--timeline", path).status == 0
    rows = json.loads(path.read_text())
    assert {row["layer"] for row in rows} == set(range(-1, 12))
    assert set(rows[0]) == {
        "index", "phase", "layer", "op", "primitive", "allocated_bytes", "live_bytes",
    }  # fmt: skip
