"""The summary of a calibration: the constants of the time formulas, fitted from its points.

Each row says what it is for, its constants in base units, on how many points they stand (`n`) and
how far off they are (`median_relative_error`, `mean_`, `worst_`). A figure that is one point has
n = 1 and instead `relative_spread`, half of p90 - p10 over the median. No torch.
Checked by: harness/test_calibration_summary.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from memcalc.harness.calibration.calibration_fit import Fit, Work, linear, roofline, saturating

Row = dict[str, Any]
_PARTS = ("forward", "dgrad", "wgrad")
#: Products of one dtype that are enough to fit three constants.
_ENOUGH = 6


def summarise(points: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by class of operation; a class without points is left out."""
    found = {name: make(points) for name, make in CLASSES.items()}
    return {name: rows for name, rows in found.items() if rows}


def _of(points: Iterable[Row], kind: str, **wanted: Any) -> list[Row]:
    """Points of a kind whose fields have these values."""
    return [
        p for p in points
        if p["kind"] == kind and all(p.get(name) == value for name, value in wanted.items())
    ]  # fmt: skip


def _groups(points: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Points by the values of some fields, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for point in points:
        found.setdefault(tuple(point.get(name) for name in names), []).append(point)
    return found


def _single(point: Row) -> Row:
    spread = (point["p90_s"] - point["p10_s"]) / 2 / point["median_s"]
    return {"n": 1, "relative_spread": spread}


def _ceilings(points: Sequence[Row]) -> list[Row]:
    """The square product, in bursts and sustained."""
    found = []
    for how, kind in (("burst", "gemm_square"), ("sustained", "gemm_sustained")):
        for p in _of(points, kind):
            row = {"dtype": p["dtype"], "how": how, "size": p["m"]}
            if how == "sustained":
                row["slowed_by"] = p["last_s"] / p["first_s"]
            found.append({**row, "flops_per_s": p["flops_per_s"], **_single(p)})
    return found


def copy_bytes_per_s(points: Sequence[Row]) -> float | None:
    """Bytes/s of the largest copy: what stands for memory bandwidth in the formulas."""
    copies = _of(points, "bandwidth", what="copy")
    if not copies:
        return None
    return float(max(copies, key=lambda p: p["tensor_bytes"])["bytes_per_s"])


def _gemms(points: Sequence[Row]) -> list[Row]:
    """t0 + max(flops/P, bytes/W) by dtype over all products, then P by part with the same t0, W.

    The products of the fixed costs belong to the fit: tiny ones show t0, skinny ones W. A dtype with
    few products takes t0 and W from the first one, and only P is its own (`t0_from`).
    """
    found: list[Row] = []
    first: tuple[str, Fit] | None = None
    for (dtype,), group in _groups(_of(points, "gemm"), "dtype").items():
        if len(group) < _ENOUGH and first is not None:
            row = _gemm_row(dtype, "all", _ceiling_alone(group, first[1]))
            row |= _single(group[0]) if len(group) == 1 else {}
            found.append({**row, "t0_from": first[0]})
            continue
        extra = [p for p in _of(points, "fixed", dtype=dtype) if _in_roofline(p, points)]
        guess = copy_bytes_per_s(points) or max(p["bytes_per_s"] for p in group)
        fit = roofline(_work([*group, *extra]), guess)
        first = first or (dtype, fit)
        found.append(_gemm_row(dtype, "all", fit))
        for part in _PARTS:
            own = [p for p in group if p["part"] == part and _by_flops(p, fit)]
            if len(own) > 1:
                found.append(_gemm_row(dtype, part, _ceiling_alone(own, fit)))
    return found


def _by_flops(point: Row, fit: Fit) -> bool:
    """Whether arithmetic, not memory, bounds this product."""
    _, flop_s, byte_s = fit.coefficients
    return bool(point["flops"] * flop_s >= point["bytes"] * byte_s)


def _in_roofline(point: Row, points: Sequence[Row]) -> bool:
    """In graphs where there are any; else the eager ones, which is all a CPU has."""
    has_graphs = any(p.get("how") == "graph" and "flops" in p for p in _of(points, "fixed"))
    return "flops" in point and point["how"] == ("graph" if has_graphs else "eager")


def _work(points: Iterable[Row]) -> list[Work]:
    return [Work(p["flops"], p["bytes"], p["median_s"]) for p in points]


def _ceiling_alone(points: Sequence[Row], whole: Fit) -> Fit:
    """P alone, with t0 and W of another fit."""
    t0, _, byte_s = whole.coefficients
    fit = linear([(p["flops"],) for p in points], [p["median_s"] for p in points], t0)
    return fit._replace(coefficients=(t0, fit.coefficients[0], byte_s))


def _gemm_row(dtype: str, part: str, fit: Fit) -> Row:
    t0, flop_s, byte_s = fit.coefficients
    row: Row = {"dtype": dtype, "part": part, "t0_s": t0, **_rate("bytes_per_s", byte_s)}
    return {**row, **_rate("flops_per_s", flop_s), **fit.errors()}


def _rate(name: str, inverse: float) -> Row:
    """A rate from its inverse; none where the points show no such cost."""
    return {name: 1 / inverse} if inverse > 0 else {}


def _fixed(points: Sequence[Row]) -> list[Row]:
    """Seconds of one tiny kernel in a graph, and of one launch from Python."""
    names = ("what", "how", "dtype")
    return [
        {**{n: p[n] for n in names if n in p}, "seconds": p["median_s"], **_single(p)}
        for p in _of(points, "fixed")
    ]


def _bandwidths(points: Sequence[Row]) -> list[Row]:
    return [
        {"what": p["what"], "tensor_bytes": p["tensor_bytes"], "bytes_per_s": p["bytes_per_s"],
         **_single(p)}
        for p in _of(points, "bandwidth")
    ]  # fmt: skip


def _attentions(points: Sequence[Row]) -> list[Row]:
    """FLOPs/s at each length measured, and the two constants of flops/P (1 + s_half/s)."""
    names = ("kernel", "direction", "head_dim", "heads", "kv_heads")
    found = []
    for key, group in _groups(_of(points, "attention"), *names).items():
        group.sort(key=lambda p: int(p["seq_len"]))
        row = {
            **dict(zip(names, key, strict=True)),
            "seq_len": [p["seq_len"] for p in group],
            "flops_per_s_at": [p["flops_per_s"] for p in group],
        }
        if len(group) == 1:
            found.append({**row, "flops_per_s": group[0]["flops_per_s"], **_single(group[0])})
            continue
        fit = saturating([(p["flops"], p["seq_len"], p["median_s"]) for p in group])
        inverse, slope = fit.coefficients
        row |= _rate("flops_per_s", inverse)
        row |= {"half_seq_len": slope / inverse} if inverse > 0 else {}
        found.append({**row, **fit.errors()})
    return found


def _elementwise(points: Sequence[Row]) -> list[Row]:
    """t0 kernels + bytes/W over all of them, the tiny addition of a graph included."""
    group = _of(points, "elementwise")
    if not group:
        return []
    terms = [(p["kernels"], p["bytes"]) for p in group]
    seconds = [p["median_s"] for p in group]
    for p in _of(points, "fixed", what="addition", how="graph"):
        terms.append((1, 0))
        seconds.append(p["median_s"])
    fit = linear(terms, seconds)
    row: Row = {"t0_s": fit.coefficients[0], **_rate("bytes_per_s", fit.coefficients[1])}
    copy = copy_bytes_per_s(points)
    if copy is not None and "bytes_per_s" in row:
        row["of_copy"] = row["bytes_per_s"] / copy
    return [{**row, **fit.errors()}]


def _norms(points: Sequence[Row]) -> list[Row]:
    return [
        {"what": p["what"], "direction": p["direction"], "dtype": p["dtype"],
         "bytes_per_s": p["bytes_per_s"], **_single(p)}
        for p in _of(points, "norm")
    ]  # fmt: skip


def _losses(points: Sequence[Row]) -> list[Row]:
    """Seconds a logit, forward and backward; with the head, FLOPs/s of its products."""
    found = []
    for p in _of(points, "loss"):
        logits = p["tokens"] * p["vocab_size"]
        row = {
            "what": p["what"],
            "with_head": p["with_head"],
            "s_per_logit": p["median_s"] / logits,
        }
        if "flops_per_s" in p:
            row["flops_per_s"] = p["flops_per_s"]
        found.append({**row, **_single(p)})
    return found


def _optimizers(points: Sequence[Row]) -> list[Row]:
    """Seconds a parameter and bytes/s, from all numbers of parameters measured."""
    found = []
    for key, group in _groups(_of(points, "optimizer"), "what", "impl", "dtype").items():
        row = {k: v for k, v in zip(("what", "impl", "dtype"), key, strict=True) if v is not None}
        fit = linear([(p["bytes"],) for p in group], [p["median_s"] for p in group])
        rate = 1 / fit.coefficients[0]
        per_parameter = group[0]["bytes"] / group[0]["parameters"] / rate
        row |= {"bytes_per_s": rate, "s_per_parameter": per_parameter}
        found.append({**row, **(fit.errors() if len(group) > 1 else _single(group[0]))})
    return found


def _embeddings(points: Sequence[Row]) -> list[Row]:
    return [
        {"dtype": p["dtype"], "bytes_per_s": p["bytes_per_s"], **_single(p)}
        for p in _of(points, "embedding_backward")
    ]


def _collectives(points: Sequence[Row]) -> list[Row]:
    """alpha + bus_bytes / bus rate, by collective."""
    found = []
    for key, group in _groups(_of(points, "collective"), "what", "ranks", "backend").items():
        fit = linear([(1, p["bus_bytes"]) for p in group], [p["median_s"] for p in group])
        alpha, byte_s = fit.coefficients
        row = dict(zip(("what", "ranks", "backend"), key, strict=True))
        found.append({**row, "alpha_s": alpha, **_rate("bus_bytes_per_s", byte_s), **fit.errors()})
    return found


def _two_depth(points: Sequence[Row]) -> list[Row]:
    """Seconds of a block, and of all that is not one, from the steps at two depths."""
    names = (
        "model", "seq_len", "micro_batch_size", "precision", "attention", "optimizer_impl", "stack",
    )  # fmt: skip
    found = []
    for key, group in _groups(_of(points, "step"), *names).items():
        if len(group) != 2:
            continue
        shallow, deep = sorted(group, key=lambda p: int(p["layers"]))
        layers = deep["layers"] - shallow["layers"]
        block_s = (deep["median_s"] - shallow["median_s"]) / layers
        row = dict(zip(names, key, strict=True))
        row |= {"layers": [p["layers"] for p in (shallow, deep)],
                "step_s": [p["median_s"] for p in (shallow, deep)],
                "block_s": block_s, "rest_s": shallow["median_s"] - shallow["layers"] * block_s,
                "n": 2, "relative_spread": max(_single(p)["relative_spread"] for p in group)}  # fmt: skip
        found.append(row)
    return found


#: Class of the summary -> what makes its rows from all points.
CLASSES: dict[str, Callable[[Sequence[Row]], list[Row]]] = {
    "gemm_ceiling": _ceilings,
    "gemm": _gemms,
    "fixed": _fixed,
    "bandwidth": _bandwidths,
    "attention": _attentions,
    "elementwise": _elementwise,
    "norm": _norms,
    "loss": _losses,
    "optimizer": _optimizers,
    "embedding_backward": _embeddings,
    "collective": _collectives,
    "two_depth": _two_depth,
}
