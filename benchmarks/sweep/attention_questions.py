"""Questions about attention: which kernel PyTorch picks, and what its backward takes inside.

Shapes as the decoder's: q (b, s, a, d) seen as (b, a, s, d); k, v with fewer heads where grouped.
The scratch is what the allocator was asked for in backward beyond the gradients of q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from memcalc.harness.watch.growth import growth

#: torch's numbers of its kernels (c10's SDPBackend).
_NAMES = {-1: "none", 0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}


class Case(NamedTuple):
    """b sequences of s positions, a query heads over k key heads of width d."""

    s: int
    a: int = 32
    k: int = 32
    d: int = 128
    b: int = 1

    def label(self) -> str:
        """As a key of an answer."""
        return f"s={self.s} a={self.a} k={self.k} d={self.d} b={self.b}"

    def operands(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v that need gradients, laid out as projections leave them."""
        made = [
            torch.randn(self.b, self.s, heads, self.d, device=device, dtype=dtype)
            for heads in (self.a, self.k, self.k)
        ]
        q, k, v = (x.transpose(1, 2).requires_grad_() for x in made)
        return q, k, v


def kernel_names(call: Callable[[], object], device: torch.device) -> list[str]:
    """Names of the GPU kernels a call runs, cut to 120 characters; none on a CPU."""
    if device.type != "cuda":
        return []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    on_gpu = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    names = [event.name for event in on_gpu]
    return sorted({name[:120] for name in names})


def default_kernel(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Which kernel F.scaled_dot_product_attention takes, causal, by dtype and shape, and its name."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    cases = [Case(64, 4, 2, 32)] if tiny else [
        Case(2048), Case(2048, k=8), Case(8192, k=8), Case(2048, d=64), Case(1024, 16, 16, 256),
        Case(512, 12, 12, 64, 8),
    ]  # fmt: skip
    answer = {}
    for dtype, case in product(dtypes, cases):
        grouped = case.a != case.k
        name = f"{str(dtype).removeprefix('torch.')} {case.label()}"
        try:
            q, k, v = case.operands(device, dtype)
            choice = torch._fused_sdp_choice(q, k, v, is_causal=True, enable_gqa=grouped)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            call = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
            kernels = kernel_names(partial(call, enable_gqa=grouped), device)
            answer[name] = {
                "choice": _NAMES.get(int(choice), int(choice)), "kernels": kernels,
                "grad_fn": type(out.grad_fn).__name__,
            }  # fmt: skip
        except RuntimeError as error:
            answer[name] = {"error": " ".join(str(error).split())[:200]}
    return answer


_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip


def _one(case: Case, backend: str, device: torch.device) -> dict[str, Any]:
    q, k, v = case.operands(device, torch.bfloat16)
    grouped = case.a != case.k
    outs: list[Tensor] = []

    def forward() -> None:
        with sdpa_kernel(_BACKENDS[backend]):
            outs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped))

    first = growth(forward, device)
    out = outs.pop()
    gradient = torch.randn_like(out)
    second = growth(lambda: torch.autograd.grad(out, (q, k, v), gradient), device)
    gradients = sum(x.numel() * x.element_size() for x in (q, k, v))
    fp32_dq = 4 * q.numel()
    scratch = second.peak_bytes - gradients
    return {
        "out_bytes": out.numel() * out.element_size(),
        "kept_beyond_out_bytes": first.end_bytes - out.numel() * out.element_size(),
        "forward_peak_bytes": first.peak_bytes,
        "backward_peak_bytes": second.peak_bytes, "gradients_bytes": gradients,
        "backward_scratch_bytes": scratch, "scratch_over_fp32_dq": round(scratch / fp32_dq, 4),
    }  # fmt: skip


def scratch(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Bytes beyond tensors inside attention's forward and backward, by kernel, shape and grouping."""
    cases = [Case(64, 4, 4, 32), Case(64, 4, 2, 32)] if tiny else [
        *(Case(s, k=k) for s in (1024, 4096, 8192) for k in (32, 8)),
        Case(4096, d=64), Case(2048, 32, 8, 64), Case(2048, b=4), Case(2048, 16, 16, 192),
        Case(1000, k=8), Case(4096, 28, 4),
    ]  # fmt: skip
    answer: dict[str, Any] = {}
    for backend, case in product(_BACKENDS, cases):
        if backend == "math" and case.s > 2048:
            continue
        name = f"{backend} {case.label()}"
        try:
            _one(case, backend, device)  # workspaces and plans that stay are made here
            answer[name] = _one(case, backend, device)
        except RuntimeError as error:
            answer[name] = {"error": " ".join(str(error).split())[:200]}
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return answer
