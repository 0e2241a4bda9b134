"""Questions about backward and norms: what runs in place, what is kept, what is scratch.

Each returns plain values: bytes, and multiples of the tensor in question. Those of the engine's code
alone (gradients of a tensor read several times, scatter in backward formulas) have an answer on a CPU
too, for it is the same code; a dispatch mode changes it, so each is asked with and without one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memcalc.harness.watch.growth import Growth, growth, in_units

Make = Callable[[torch.device], tuple[Tensor, int]]


class _Mode(TorchDispatchMode):
    """A mode that changes nothing but the fact that there is one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def _backward(make: Make, device: torch.device, mode: bool) -> tuple[Growth, int]:
    """Growth during backward of what `make` returns, and the unit it is told in."""
    scalar, unit_bytes = make(device)
    scope = _Mode() if mode else contextlib.nullcontext()
    with scope:
        return growth(lambda: scalar.backward(), device), unit_bytes


def _both(makes: dict[str, Make], device: torch.device) -> dict[str, Any]:
    answer = {}
    for name, make in makes.items():
        for mode in (False, True):
            found, unit = _backward(make, device, mode)
            answer[f"{name}{' under a mode' if mode else ''}"] = in_units(found, unit)
    return answer


_N = 1 << 20


def _interior(device: torch.device) -> tuple[Tensor, int]:
    """A tensor three products read, made from a leaf: its gradient is a sum of three."""
    leaf = torch.randn(_N, device=device, requires_grad=True)
    x = leaf.clone()
    weights = [torch.randn(_N, device=device) for _ in range(3)]
    return torch.stack([(x * w).sum() for w in weights]).sum(), 4 * _N


def _leaf(device: torch.device) -> tuple[Tensor, int]:
    """A parameter three products read."""
    leaf = torch.randn(_N, device=device, requires_grad=True)
    weights = [torch.randn(_N, device=device) for _ in range(3)]
    return torch.stack([(leaf * w).sum() for w in weights]).sum(), 4 * _N


def _second_batch(device: torch.device) -> tuple[Tensor, int]:
    """A parameter that has a gradient from the micro-batch before."""
    leaf = torch.randn(_N, device=device, requires_grad=True)
    leaf.grad = torch.zeros_like(leaf)
    return (leaf * torch.randn(_N, device=device)).sum(), 4 * _N


def accumulation(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Is the gradient of a tensor read several times summed in place?

    Two gradients are alive at each sum: in place the peak is 2 tensors, out of place 3. A second
    micro-batch: 1 in place, 2 out of place.
    """
    makes = {"interior": _interior, "leaf": _leaf, "second micro-batch": _second_batch}
    answer = _both(makes, device)
    return {
        **answer,
        "sums_in_place": answer["interior"]["peak_units"] < 2.5,
        "leaf_in_place": answer["leaf"]["peak_units"] < 2.5,
        "second_batch_in_place": answer["second micro-batch"]["peak_units"] < 1.5,
    }


_T, _E, _K, _H = 4096, 64, 4, 64


def _topk(device: torch.device) -> tuple[Tensor, int]:
    """A router's choice: the gradient of topk's values is scattered into (tokens, experts)."""
    scores = torch.randn(_T, _E, device=device, requires_grad=True)
    values, _ = torch.topk(scores, _K, dim=-1)
    return values.sum(), 4 * _T * _E


def _gather(device: torch.device) -> tuple[Tensor, int]:
    scores = torch.randn(_T, _E, device=device, requires_grad=True)
    chosen = torch.randint(_E, (_T, _K), device=device)
    return scores.gather(1, chosen).sum(), 4 * _T * _E


def _index(device: torch.device) -> tuple[Tensor, int]:
    """Tokens of one expert taken by index: their gradient goes back through index_put."""
    x = torch.randn(_T, _H, device=device, requires_grad=True)
    rows = torch.arange(0, _T, 8, device=device)
    return x[rows].sum(), 4 * _T * _H


def _index_add(device: torch.device) -> tuple[Tensor, int]:
    """Results of an expert added to their tokens' rows."""
    x = torch.randn(_T // 8, _H, device=device, requires_grad=True)
    out = torch.zeros(_T, _H, device=device)
    rows = torch.arange(0, _T, 8, device=device)
    return out.index_add(0, rows, x).sum(), 4 * _T * _H


def _embedding(device: torch.device) -> tuple[Tensor, int]:
    """The dense gradient of an embedding: beyond the weight's gradient, what sorting takes."""
    weight = torch.randn(8 * _E, _H, device=device, requires_grad=True)
    ids = torch.randint(8 * _E, (_T,), device=device)
    return F.embedding(ids, weight).sum(), 4 * 8 * _E * _H


def scatter(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Do scatter and index_put inside backward formulas work in place?

    In place the peak is 1 tensor (of zeros, filled) and what is scattered; out of place one more.
    """
    makes = {"topk": _topk, "gather": _gather, "index": _index, "index_add": _index_add,
             "embedding": _embedding}  # fmt: skip
    answer = _both(makes, device)
    more = {
        name: round(answer[f"{name} under a mode"]["peak_units"] - answer[name]["peak_units"], 3)
        for name in makes
    }
    return {**answer, "more_units_under_a_mode": more}


def _saved(node: Any) -> dict[str, Any]:
    """Tensors an autograd node keeps, by name: bytes and dtype."""
    found = {}
    for name in dir(node):
        if not name.startswith("_saved_"):
            continue
        with contextlib.suppress(RuntimeError):
            value = getattr(node, name)
            if isinstance(value, Tensor):
                dtype = str(value.dtype).removeprefix("torch.")
                found[name.removeprefix("_saved_")] = {
                    "bytes": value.untyped_storage().nbytes(), "dtype": dtype,
                    "shape": list(value.shape),
                }  # fmt: skip
    return found


def _rms_case(device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], autocast: bool) -> Any:
    rows, width = 4096, 2048
    x = torch.randn(rows, width, device=device, dtype=dtypes[0], requires_grad=True)
    weight = torch.ones(width, device=device, dtype=dtypes[1], requires_grad=True)
    kept: list[Tensor] = []

    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            kept.append(F.rms_norm(x, (width,), weight, 1e-6))

    first = growth(forward, device)
    out = kept.pop()
    node, saved = type(out.grad_fn).__name__, _saved(out.grad_fn)
    gradient = torch.randn_like(out)
    second = growth(lambda: out.backward(gradient), device)
    unit = rows * width
    return {
        "grad_fn": node, "saved": saved, "out_dtype": str(out.dtype).removeprefix("torch."),
        "forward_bytes_per_element": round(first.end_bytes / unit, 4),
        "forward_peak_bytes_per_element": round(first.peak_bytes / unit, 4),
        "backward_peak_bytes_per_element": round(second.peak_bytes / unit, 4),
        "forward_bytes": first.end_bytes, "rows": rows, "width": width,
    }  # fmt: skip


def rms_norm(device: torch.device, tiny: bool) -> dict[str, Any]:
    """What F.rms_norm keeps and takes on this torch, by dtypes, with and without autocast.

    One fused kernel keeps x and one fp32 a row: forward_bytes = out + 4 rows.
    """
    bf16, fp32 = torch.bfloat16, torch.float32
    cases = {
        "bf16": ((bf16, bf16), False), "fp32": ((fp32, fp32), False),
        "bf16 x, fp32 weight": ((bf16, fp32), False), "autocast, bf16 x": ((bf16, fp32), True),
        "autocast, fp32 x": ((fp32, fp32), True),
    }  # fmt: skip
    answer: dict[str, Any] = {}
    for name, (dtypes, autocast) in cases.items():
        try:
            answer[name] = _rms_case(device, dtypes, autocast)
        except RuntimeError as error:
            answer[name] = {"error": " ".join(str(error).split())[:200]}
    fused = "Fused" in str(answer["bf16"].get("grad_fn"))
    return {**answer, "fused": fused}
