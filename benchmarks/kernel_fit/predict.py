"""What the shipped time formulas say of a table's rows, and how far that is from what was measured.

Checked by: unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.kernel_fit.tables import Table
from memcalc.engine.timing.kernel_times import (
    attention_s,
    collective_s,
    decode_attention_s,
    gemm_s,
)
from memcalc.errors import ConfigError
from memcalc.inputs.rates import LinkRate, Rates

#: Kernel of a table's attention: the best that a framework of that architecture serves with.
TABLE_KERNEL = "cudnn"
#: From here on a kernel counts as large: FLOPs of a product, tokens of a sequence, bytes of a cache or
#: of a message.
LARGE = {"gemm": 2e10, "attention": 2048, "decode": 64 << 20, "collectives": 1 << 20}
LARGE_TEXT = (
    "large: products from 2e10 FLOPs, attention from 2048 tokens a sequence, decode from 64 MiB of "
    "keys and values, collectives from 1 MiB"
)


class Errors(NamedTuple):
    """Predicted over measured, less 1: rows, mean of its size, mean, and the size nine in ten stay below."""

    n: int
    mean_abs: float
    bias: float
    p90: float


def errors(predicted: np.ndarray, measured: np.ndarray) -> Errors:
    """How far predictions are from what was measured, as shares; there must be rows."""
    off = predicted / measured - 1
    size = np.abs(off)
    return Errors(len(off), float(size.mean()), float(off.mean()), float(np.quantile(size, 0.9)))


def predicted(table: Table, rates: Rates) -> np.ndarray:
    """Seconds of every row of a table by these rates."""
    s = table.sizes
    if table.form == "gemm":
        return gemm_s(rates, table.word, np.ones_like(s["m"]), s["m"], s["n"], s["k"])
    if table.form == "collectives":
        found = np.empty_like(table.seconds)
        for ranks in np.unique(s["num_gpus"]):
            rows = s["num_gpus"] == ranks
            sent = s["message_bytes"][rows]
            found[rows] = collective_s(_link(table, rates), table.word, sent, int(ranks))
        return found
    heads = s["num_heads"], s["num_key_value_heads"]
    width = s["head_dim"], s["head_dim"]
    if table.form == "decode":
        return decode_attention_s(
            rates, (s["batch_size"], *heads, np.ones_like(width[0]), s["context"], *width)
        )
    shape = (s["batch_size"], *heads, s["seq"], s["seq"], *width)
    return attention_s(rates, TABLE_KERNEL, "forward", shape)


def _link(table: Table, rates: Rates) -> LinkRate:
    if rates.links.link is None:
        raise ConfigError(
            f"collectives table: system: got {table.system!r}; rule: a GPU with links"
        )
    return rates.links.link


def size_classes(table: Table) -> dict[str, np.ndarray]:
    """Name of a class of sizes -> which rows are of it; see LARGE."""
    size = {
        "gemm": table.flops,
        "attention": lambda: table.sizes["seq"],
        "decode": table.cache_bytes,
        "collectives": lambda: table.sizes["message_bytes"],
    }[table.form]()
    large = size >= LARGE[table.form]
    return {"all": np.ones(len(large), bool), "large": large, "small": ~large}


def scored(table: Table, rates: Rates, rows: np.ndarray | None = None) -> list[dict[str, Any]]:
    """One row of figures a class of sizes; `rows` says which rows count, all unless given."""
    guess = predicted(table, rates)
    found = []
    for name, of_class in size_classes(table).items():
        chosen = of_class if rows is None else of_class & rows
        if chosen.any():
            figures = errors(guess[chosen], table.seconds[chosen])._asdict()
            head = {"form": table.form, "system": table.system, "what": table.word, "sizes": name}
            found.append({**head, **figures})
    return found
