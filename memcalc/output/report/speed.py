"""Time on the page: the parts of a step, what follows from them, its exchanges, setups compared.

Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.report.markup import Cell, bullets, heads, seconds, share, size, table, whole
from memcalc.output.time_text import PARTS, duration
from memcalc.units import si

Found = Mapping[str, Any]


def parts(found: Found) -> str:
    """What a step's time is the sum of."""
    time = found["estimate"]["time"]
    step = time["step_s"]
    rows = [
        [Cell(said), seconds(time[name]), share(time[name] / step)]
        for name, said in PARTS.items()
        if time[name]
    ]
    foot = [Cell("step"), seconds(step), share(1.0)]
    return table("What the step is the sum of", heads("part", ">time", ">share"), rows, foot)


def rates(found: Found) -> str:
    """Utilisations by name, FLOPs, the band and the bounds of the step."""
    time = found["estimate"]["time"]
    lines = [
        f"The step waits for {time['bound']} most.",
        f"{si(time['model_flops_per_token'], 'FLOP')} a token "
        f"({si(time['model_flops_causal_per_token'], 'FLOP')} causal); "
        f"{si(time['executed_flops'], 'FLOP')} executed in a step.",
    ]
    if time["mfu"] is not None and time["peak_flops_per_s"] is not None:
        lines.append(
            f"MFU {time['mfu']:.1%} with the full square of attention, {time['mfu_causal']:.1%} causal; "
            f"HFU {time['hfu']:.1%}, of {si(time['peak_flops_per_s'], 'FLOP/s')} dense peak."
        )
    if time["low_s"] is not None and time["high_s"] is not None:
        lines.append(
            f"The step lies between {duration(time['low_s'])} and {duration(time['high_s'])}: "
            f"{time['band']}."
        )
    if time["lower_bound_s"] is not None and time["upper_bound_s"] is not None:
        lines.append(
            f"No step beats {duration(time['lower_bound_s'])}; with nothing overlapped it is "
            f"{duration(time['upper_bound_s'])}."
        )
    return bullets(lines)


def exchanges(found: Found) -> str:
    """Every kind of exchange between GPUs, alone on its links; nothing for one GPU."""
    rows = [
        [Cell(f"{one['axis']} {one['kind'].replace('_', '-')}"), Cell(one["tier"]), whole(one["ranks"]),
         whole(one["calls"]), size(one["bytes"]), seconds(one["seconds"])]
        for one in found["estimate"]["time"]["exchanges"]
    ]  # fmt: skip
    columns = heads("exchange", "over", ">ranks", ">calls", ">size", ">time alone")
    return table("Exchanges of a step", columns, rows) if rows else ""
