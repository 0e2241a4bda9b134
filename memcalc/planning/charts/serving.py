"""The serving chart's object: rates and memory over batches, memory over contexts, and the largest that fit.

Rows are of two sweeps: `batch` at one context, `context` at one batch; the largest of each that fits is
found by bisection of the verdict (`engine/serving/verdict.py`), not read off the rows.
Checked by: unit/test_chart_serving.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from memcalc.engine.serving.curves import Prepared, ServingPoint
from memcalc.engine.serving.infer_words import setup_dict
from memcalc.units import GIB

BATCH, CONTEXT = "batch", "context"
PANELS: Final[tuple[dict[str, Any], ...]] = (
    {"key": "decode_tokens_per_s", "label": "new tokens/s while decoding", "unit": "tokens/s",
     "scale": 1.0, "sweep": BATCH},
    {"key": "time_per_output_token_s", "label": "time of a token of each sequence", "unit": "ms",
     "scale": 1e3, "sweep": BATCH},
    {"key": "need_bytes", "label": "memory of a GPU by context", "unit": "GiB", "scale": 1 / GIB,
     "sweep": CONTEXT},
)  # fmt: skip
#: Sizes where none are stated: powers of two from the first to one beyond the largest that fits, so many.
_BATCHES, _CONTEXTS, _MOST = (1, 64), (256, 8192), 14


def sizes(limit: int | None, sweep: str) -> list[int]:
    """The sizes of a sweep where none are stated."""
    first, last = _BATCHES if sweep == BATCH else _CONTEXTS
    last = max(last, limit or 0)
    found = [first]
    while found[-1] < last and len(found) < _MOST:
        found.append(found[-1] * 2)
    return found


def serving(
    of: Prepared,
    batches: Sequence[ServingPoint],
    contexts: Sequence[ServingPoint],
    limits: tuple[int | None, int | None],
) -> dict[str, Any]:
    """The JSON object: head, panels, rows of both sweeps, max_batch, max_context, setup."""
    from memcalc import __version__
    from memcalc.engine.results import SCHEMA

    setup = setup_dict(of.plan, of.device)
    rows = [_row(BATCH, point) for point in batches] + [_row(CONTEXT, point) for point in contexts]
    gpu = setup["gpu"] or "no GPU"
    on = f"{setup['gpus']} x {gpu}" if setup["gpus"] > 1 else gpu
    rates = batches[0].time.calibration
    return {
        "schema": SCHEMA,
        "memcalc": __version__,
        "chart": "serving",
        "title": f"{of.plan.config.name} on {on}: serving by {setup['engine']}",
        "subtitle": _subtitle(setup, batches[0].context, contexts[0].batch),
        "source": f"memcalc {__version__}" + (f"; rates {rates}" if rates else ""),
        "panels": [
            dict(panel) for panel in PANELS if any(row[panel["key"]] is not None for row in rows)
        ],
        "batch": contexts[0].batch,
        "context": batches[0].context,
        "max_batch": limits[0],
        "max_context": limits[1],
        "limit_bytes": contexts[0].limit_bytes,
        "says": _says(rows, limits, batches[0].context, contexts[0].batch),
        "setup": setup,
        "notes": list(of.plan.notes),
        "rows": rows,
    }


def _row(sweep: str, point: ServingPoint) -> dict[str, Any]:
    time = point.time
    return {
        "sweep": sweep,
        "batch": point.batch,
        "context": point.context,
        "prompt": point.prompt,
        "fits": point.fits,
        "need_bytes": point.need_bytes,
        "limit_bytes": point.limit_bytes,
        "weights_bytes": point.weights_bytes,
        "kv_cache_bytes": point.kv_cache_bytes,
        "prefill_s": time.prefill_s,
        "time_per_output_token_s": time.time_per_output_token_s,
        "decode_tokens_per_s": time.decode_tokens_per_s,
        "tokens_per_s": time.tokens_per_s,
        "bound": time.bound,
    }


def _subtitle(setup: Mapping[str, Any], context: int, batch: int) -> str:
    """The setup in a line, and where each sweep is."""
    split = "".join(
        f", {name} {setup[name]}" for name in ("tp", "pp", "dp", "ep") if setup[name] > 1
    )
    drafted = f", draft {setup['draft']}" if setup["draft"] else ""
    on_host = "" if setup["gpu_layers"] is None else f", {setup['gpu_layers']} layers on the GPU"
    return (
        f"weights {setup['weights']}, cache {setup['cache']} in {setup['kv_cache']}{split}{drafted}"
        f"{on_host}; over batches at context {context:,}, over contexts at batch {batch:,}"
    )


def size_text(size: int) -> str:
    """A size as people write it: 8k for 8192, 300."""
    return f"{size // 1024:,}k" if size >= 1024 and size % 1024 == 0 else f"{size:,}"


def _says(
    rows: Sequence[Mapping[str, Any]], limits: tuple[int | None, int | None], context: int, batch: int
) -> str:  # fmt: skip
    """The finding, in one line."""
    if limits[0] is None or limits[1] is None:
        return "no GPU named: no verdict, no rates"
    if not limits[0] and not limits[1]:
        return "nothing fits: no batch and no context"
    said = [
        f"at most {limits[0]:,} sequences of {size_text(context)} positions fit, at most "
        f"{limits[1]:,} positions of {batch:,} sequence{'s' * (batch != 1)}"
    ]
    timed = [row for row in rows if row["sweep"] == BATCH and row["fits"]]
    if len(timed) > 1:
        first, last = timed[0], timed[-1]
        gain = last["decode_tokens_per_s"] / first["decode_tokens_per_s"]
        slower = last["time_per_output_token_s"] / first["time_per_output_token_s"]
        said.append(
            f"from batch {first['batch']:,} to {last['batch']:,} {gain:.3g} times the tokens/s for "
            f"{slower:.3g} times the time of a token"
        )
    return "; ".join(said)
