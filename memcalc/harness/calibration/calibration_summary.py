"""The summary of a calibration: the constants of the time formulas, fitted from its points.

Each row says what it is for, its constants in base units, on how many points they stand (`n`) and
how far off they are (`median_relative_error`, `mean_`, `worst_`). A figure that is one point has
n = 1 and instead `relative_spread`, half of p90 - p10 over the median. No torch.
Checked by: harness/test_calibration_summary.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memcalc.harness.calibration.calibration_fit import Fit, linear, saturating
from memcalc.harness.calibration.summary_decode import cached_attention, few_rows, generations
from memcalc.harness.calibration.summary_gemm import gemms
from memcalc.harness.calibration.summary_rows import (
    Row,
    copy_bytes_per_s,
    groups,
    of_kind,
    rate,
    single,
)


def summarise(points: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by class of operation; a class without points is left out."""
    found = {name: make(points) for name, make in CLASSES.items()}
    return {name: rows for name, rows in found.items() if rows}


def _ceilings(points: Sequence[Row]) -> list[Row]:
    """The square product, in bursts and sustained."""
    found = []
    for how, kind in (("burst", "gemm_square"), ("sustained", "gemm_sustained")):
        for p in of_kind(points, kind):
            row = {"dtype": p["dtype"], "how": how, "size": p["m"]}
            if how == "sustained":
                row["slowed_by"] = p["last_s"] / p["first_s"]
            found.append({**row, "flops_per_s": p["flops_per_s"], **single(p)})
    return found


def _fixed(points: Sequence[Row]) -> list[Row]:
    """Seconds of one tiny kernel in a graph, and of one launch from Python."""
    names = ("what", "how", "dtype")
    return [
        {**{n: p[n] for n in names if n in p}, "seconds": p["median_s"], **single(p)}
        for p in of_kind(points, "fixed")
    ]


def _bandwidths(points: Sequence[Row]) -> list[Row]:
    return [
        {"what": p["what"], "tensor_bytes": p["tensor_bytes"], "bytes_per_s": p["bytes_per_s"],
         **single(p)}
        for p in of_kind(points, "bandwidth")
    ]  # fmt: skip


def _attentions(points: Sequence[Row]) -> list[Row]:
    """FLOPs/s at each length measured, and the two constants of flops/P (1 + s_half/s)."""
    names = ("kernel", "direction", "head_dim", "heads", "kv_heads", "dtype")
    found = []
    for key, group in groups(of_kind(points, "attention"), *names).items():
        group.sort(key=lambda p: int(p["seq_len"]))
        row = {
            **{name: value for name, value in zip(names, key, strict=True) if value is not None},
            "seq_len": [p["seq_len"] for p in group],
            "flops_per_s_at": [p["flops_per_s"] for p in group],
        }
        if len(group) == 1:
            found.append({**row, "flops_per_s": group[0]["flops_per_s"], **single(group[0])})
            continue
        fit = saturating([(p["flops"], p["seq_len"], p["median_s"]) for p in group])
        inverse, slope = fit.coefficients
        row |= rate("flops_per_s", inverse)
        row |= {"half_seq_len": slope / inverse} if inverse > 0 else {}
        found.append({**row, **fit.errors()})
    return found


def _elementwise(points: Sequence[Row]) -> list[Row]:
    """t0 kernels + bytes/W over all of them, the tiny addition of a graph included."""
    group = of_kind(points, "elementwise")
    if not group:
        return []
    terms = [(p["kernels"], p["bytes"]) for p in group]
    seconds = [p["median_s"] for p in group]
    for p in of_kind(points, "fixed", what="addition", how="graph"):
        terms.append((1, 0))
        seconds.append(p["median_s"])
    fit = linear(terms, seconds)
    row: Row = {"t0_s": fit.coefficients[0], **rate("bytes_per_s", fit.coefficients[1])}
    copy = copy_bytes_per_s(points)
    if copy is not None and "bytes_per_s" in row:
        row["of_copy"] = row["bytes_per_s"] / copy
    return [{**row, **fit.errors()}]


def _norms(points: Sequence[Row]) -> list[Row]:
    return [
        {"what": p["what"], "direction": p["direction"], "dtype": p["dtype"],
         "bytes_per_s": p["bytes_per_s"], **single(p)}
        for p in of_kind(points, "norm")
    ]  # fmt: skip


def _kernels(points: Sequence[Row]) -> list[Row]:
    return [
        {"what": p["what"], "dtype": p["dtype"], "bytes_per_s": p["bytes_per_s"], **single(p)}
        for p in of_kind(points, "kernel")
    ]


def _losses(points: Sequence[Row]) -> list[Row]:
    """Seconds a logit, forward and backward; with the head, FLOPs/s of its products."""
    found = []
    for p in of_kind(points, "loss"):
        logits = p["tokens"] * p["vocab_size"]
        row = {
            "what": p["what"],
            "with_head": p["with_head"],
            "dtype": p.get("dtype", "bf16"),
            "s_per_logit": p["median_s"] / logits,
        }
        if "flops_per_s" in p:
            row["flops_per_s"] = p["flops_per_s"]
        found.append({**row, **single(p)})
    return found


def _optimizers(points: Sequence[Row]) -> list[Row]:
    """Seconds a parameter, bytes/s and seconds a tensor, from all numbers of parameters measured."""
    found = []
    for key, group in groups(of_kind(points, "optimizer"), "what", "impl", "dtype").items():
        row = {k: v for k, v in zip(("what", "impl", "dtype"), key, strict=True) if v is not None}
        small = len({p["parameters"] / p["tensors"] for p in group}) > 1
        fit = _optimizer_fit(group, by_tensor=small)
        byte_s, tensor_s = fit.coefficients
        per_parameter = group[0]["bytes"] / group[0]["parameters"] * byte_s
        row |= {"bytes_per_s": 1 / byte_s, "s_per_parameter": per_parameter}
        row |= {"s_per_tensor": tensor_s} if small else {}
        found.append({**row, **(fit.errors() if len(group) > 1 else single(group[0]))})
    return found


def _optimizer_fit(group: Sequence[Row], *, by_tensor: bool) -> Fit:
    """Seconds a byte and a tensor. Where the tensors alone would explain the points (all of them
    small, or a clock too coarse), the bytes must: a step without any byte's cost has no rate."""
    seconds = [p["median_s"] for p in group]
    fit = linear([(p["bytes"], p["tensors"] * by_tensor) for p in group], seconds)
    if fit.coefficients[0] > 0:
        return fit
    return linear([(p["bytes"], 0) for p in group], seconds)


def _embeddings(points: Sequence[Row]) -> list[Row]:
    return [
        {"dtype": p["dtype"], "bytes_per_s": p["bytes_per_s"], **single(p)}
        for p in of_kind(points, "embedding_backward")
    ]


def _collectives(points: Sequence[Row]) -> list[Row]:
    """alpha + bus_bytes / bus rate, by collective."""
    names = ("what", "ranks", "backend", "hosts")
    found = []
    for key, group in groups(of_kind(points, "collective"), *names).items():
        fit = linear([(1, p["bus_bytes"]) for p in group], [p["median_s"] for p in group])
        alpha, byte_s = fit.coefficients
        row = {name: value for name, value in zip(names, key, strict=True) if value is not None}
        found.append({**row, "alpha_s": alpha, **rate("bus_bytes_per_s", byte_s), **fit.errors()})
    return found


def _launches(points: Sequence[Row], kind: str = "launch") -> list[Row]:
    """Seconds a kernel of a minute decoder's eager step takes: next to nothing but its launch."""
    found = []
    for (precision,), group in groups(of_kind(points, kind), "precision").items():
        taken = sum(p["median_s"] * p["kernels"] for p in group)
        seconds = taken / sum(p["kernels"] ** 2 for p in group)
        row = {"precision": precision, "seconds": seconds, "n": len(group)}
        spread = max(single(p)["relative_spread"] for p in group)
        found.append({**row, "relative_spread": spread})
    return found


def _launches_decoding(points: Sequence[Row]) -> list[Row]:
    """The same of a generation's passes, which keep nothing for a backward."""
    return _launches(points, "launch_decode")


def _two_depth(points: Sequence[Row]) -> list[Row]:
    """Seconds of a block, and of all that is not one, from the steps at two depths."""
    names = (
        "model", "seq_len", "micro_batch_size", "precision", "attention", "optimizer_impl", "stack",
    )  # fmt: skip
    found = []
    for key, group in groups(of_kind(points, "step"), *names).items():
        if len(group) != 2:
            continue
        shallow, deep = sorted(group, key=lambda p: int(p["layers"]))
        layers = deep["layers"] - shallow["layers"]
        block_s = (deep["median_s"] - shallow["median_s"]) / layers
        row = dict(zip(names, key, strict=True))
        row |= {"layers": [p["layers"] for p in (shallow, deep)],
                "step_s": [p["median_s"] for p in (shallow, deep)],
                "block_s": block_s, "rest_s": shallow["median_s"] - shallow["layers"] * block_s,
                "n": 2, "relative_spread": max(single(p)["relative_spread"] for p in group)}  # fmt: skip
        found.append(row)
    return found


#: Class of the summary -> what makes its rows from all points.
CLASSES: dict[str, Callable[[Sequence[Row]], list[Row]]] = {
    "gemm_ceiling": _ceilings,
    "gemm": gemms,
    "fixed": _fixed,
    "bandwidth": _bandwidths,
    "attention": _attentions,
    "elementwise": _elementwise,
    "norm": _norms,
    "kernel": _kernels,
    "loss": _losses,
    "optimizer": _optimizers,
    "embedding_backward": _embeddings,
    "collective": _collectives,
    "launch": _launches,
    "launch_decode": _launches_decoding,
    "few_rows": few_rows,
    "decode_attention": cached_attention,
    "generation": generations,
    "two_depth": _two_depth,
}
