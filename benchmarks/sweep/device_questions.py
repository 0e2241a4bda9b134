"""Questions about the device: cuBLAS workspaces, the CUDA context, all the bytes torch can have.

Each needs CUDA and a fresh process, for what it asks happens once a process. Not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memcalc.units import MIB


def _live_blocks(device: torch.device) -> list[dict[str, Any]]:
    """Blocks in use: stream, bytes as requested and as a block."""
    found = []
    for segment in torch.cuda.memory._snapshot()["segments"]:
        if segment.get("device", 0) != (device.index or 0):
            continue
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                found.append({
                    "stream": segment.get("stream"), "bytes": block["size"],
                    "requested_bytes": block.get("requested_size"),
                })  # fmt: skip
    return found


class _Steps:
    """Bytes the allocator holds after each named call, less what the call's own tensors take."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.rows = device, []  # type: ignore[var-annotated]
        self.kept: list[Any] = []

    def _held(self) -> tuple[int, int]:
        torch.cuda.synchronize(self.device)
        stats = torch.cuda.memory_stats(self.device)
        return (
            int(stats.get("requested_bytes.all.current", 0)),
            int(stats.get("allocated_bytes.all.current", 0)),
        )

    def run(self, name: str, call: Callable[[], list[Tensor]]) -> None:
        """Make `call`; tensors it returns are its own and dropped, what stays is the library's."""
        before = self._held()
        try:
            made = call()
            del made
            error = None
        except RuntimeError as failure:
            error = " ".join(str(failure).split())[:200]
        after = self._held()
        self.rows.append({
            "step": name, "more_requested_bytes": after[0] - before[0],
            "more_allocated_bytes": after[1] - before[1], "error": error,
        })  # fmt: skip


def cublas_workspace(device: torch.device, tiny: bool) -> dict[str, Any]:
    """What stays allocated after the first product in each thread, by each library, on each stream."""
    torch.cuda.init()
    a = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16)
    bias = torch.randn(1024, device=device, dtype=torch.bfloat16)
    leaf = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16, requires_grad=True)
    leaf.grad = torch.zeros_like(leaf)
    steps = _Steps(device)
    side = torch.cuda.Stream(device)

    def on_side() -> list[Tensor]:
        with torch.cuda.stream(side):
            return [a @ a]

    def backward() -> list[Tensor]:
        (a @ leaf).sum().backward()
        return []

    def batched() -> list[Tensor]:
        return [torch.bmm(a.view(4, 256, 1024), a.view(4, 1024, 256))]

    steps.run("product, main thread", lambda: [a @ a])
    steps.run("product again", lambda: [a @ a])
    steps.run("fp32 product", lambda: [a.float() @ a.float()])
    steps.run("batched product", batched)
    steps.run("product with bias (addmm, cuBLASLt)", lambda: [F.linear(a, a, bias)])
    steps.run("product in autograd's thread", backward)
    steps.run("autograd's thread again", backward)
    steps.run("product on another stream", on_side)
    steps.run("fp8 product (cuBLASLt)", lambda: [_fp8(a)])
    return {
        "steps": steps.rows, "live_blocks": _live_blocks(device),
        "environment": {
            name: os.environ.get(name)
            for name in ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE")
        },
        "compute_capability": list(torch.cuda.get_device_capability(device)),
    }  # fmt: skip


def _fp8(a: Tensor) -> Tensor:
    one = torch.ones((), device=a.device)
    left = a.to(torch.float8_e4m3fn)
    out: Tensor = torch._scaled_mm(
        left, left.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
    )
    return out


def _smi(query: str) -> list[list[str]] | None:
    """Rows of nvidia-smi, None where it is not there."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return None
    return [[c.strip() for c in line.split(",")] for line in done.stdout.splitlines() if line]


def _smi_bytes(device: torch.device) -> dict[str, int | None]:
    """Used and total bytes of the board, and of this process, as nvidia-smi says them."""
    rows = _smi("gpu=index,memory.used,memory.total") or []
    mine = next((row for row in rows if row[0] == str(device.index or 0)), None)
    apps = _smi("compute-apps=pid,used_memory") or []
    own = next((row for row in apps if row[0] == str(os.getpid())), None)

    def mib(text: str | None) -> int | None:
        return int(text) * MIB if text is not None and text.isdigit() else None

    return {
        "smi_used_bytes": mib(mine[1] if mine else None),
        "smi_total_bytes": mib(mine[2] if mine else None),
        "smi_process_bytes": mib(own[1] if own else None),
    }


def _driver_bytes(device: torch.device) -> dict[str, int | None]:
    """The same by the CUDA runtime and NVML, and what the allocator holds. Makes a context."""
    from memcalc.harness.nvml import open_board

    free, total = torch.cuda.mem_get_info(device)
    board = open_board(device)
    memory = None if board is None else board.call("nvmlDeviceGetMemoryInfo")
    return {
        "runtime_used_bytes": total - free, "runtime_total_bytes": total,
        "nvml_used_bytes": None if memory is None else int(memory.used),
        "nvml_total_bytes": None if memory is None else int(memory.total),
        "nvml_process_bytes": None if board is None else board.process_bytes(),
        "reserved_bytes": torch.cuda.memory_reserved(device),
    }  # fmt: skip


def _kernels(device: torch.device) -> dict[str, Callable[[], object]]:
    """Groups of kernels in the order a training step meets them."""
    half = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16)
    heads = half.view(1, 1024, 8, 128).transpose(1, 2)
    aten = torch.ops.aten
    leaf = torch.randn(1024, 1024, device=device, requires_grad=True)

    def step() -> None:
        optimizer = torch.optim.AdamW([leaf], foreach=True)
        F.cross_entropy(leaf, torch.zeros(1024, dtype=torch.long, device=device)).backward()
        torch.nn.utils.clip_grad_norm_([leaf], 1.0)
        optimizer.step()

    def many() -> None:
        torch.sort(half), torch.topk(half, 4), torch.cumsum(half, 0), torch.isfinite(half).all()
        torch.softmax(half.float(), -1), F.layer_norm(half, (1024,)), F.silu(half), F.gelu(half)
        F.dropout(half, 0.5), half.float().var(), half.repeat_interleave(2, 0), half.tril()
        F.rms_norm(half, (1024,)), torch.randint(9, (99,), device=device), half.index_select(
            0, torch.zeros(9, dtype=torch.long, device=device))  # fmt: skip

    return {
        "element-wise kernel": lambda: half + 1,
        "product (cuBLAS)": lambda: half @ half,
        "products of other dtypes": lambda: (half.float() @ half.float(), half.half() @ half.half()),
        "attention, flash": lambda: aten._scaled_dot_product_flash_attention(
            heads, heads, heads, 0.0, True),
        "attention, efficient": lambda: aten._scaled_dot_product_efficient_attention(
            heads, heads, heads, None, True, 0.0, True),
        "attention, cuDNN": lambda: aten._scaled_dot_product_cudnn_attention(
            heads, heads, heads, None, True, 0.0, True),
        "loss, clipping, AdamW": step,
        "many other kernels": many,
    }  # fmt: skip


def context(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Bytes in use on the device before CUDA, with an empty context, and as kernels are loaded.

    outside_bytes of a row: used as the runtime says, less what the allocator holds, less what was in
    use before this process. Run it in a fresh process, alone on the device.
    """
    before = _smi_bytes(device)
    rows: list[dict[str, Any]] = []
    base = before["smi_used_bytes"]

    def look(name: str, error: str | None = None) -> None:
        torch.cuda.synchronize(device)
        now = {**_driver_bytes(device), **_smi_bytes(device)}
        used, held = now["runtime_used_bytes"], now["reserved_bytes"]
        assert used is not None and held is not None
        rows.append({"after": name, **now, "error": error, "outside_bytes": used - held,
                     "outside_less_before_bytes": None if base is None else used - held - base})  # fmt: skip

    torch.cuda.set_device(device)
    torch.cuda.init()
    look("context")
    kept = torch.zeros(1, device=device)
    look("first tensor")
    for name, call in _kernels(device).items():
        error = None
        try:
            call()
        except RuntimeError as failure:
            error = " ".join(str(failure).split())[:200]
        look(name, error)
    del kept
    return {
        "before": before, "rows": rows,
        "module_loading": os.environ.get("CUDA_MODULE_LOADING", "default (lazy)"),
    }  # fmt: skip


def total_bytes(device: torch.device, tiny: bool) -> dict[str, Any]:
    """All bytes of the device by every count, and the most the allocator can really have."""
    properties = torch.cuda.get_device_properties(device)
    counts = {**_driver_bytes(device), **_smi_bytes(device)}
    free = torch.cuda.mem_get_info(device)[0]
    step, got, kept = 256 * MIB, 0, []
    with contextlib.suppress(torch.cuda.OutOfMemoryError):
        kept.append(torch.empty(free // step * step, dtype=torch.uint8, device=device))
    while step >= 2 * MIB:
        try:
            kept.append(torch.empty(step, dtype=torch.uint8, device=device))
        except torch.cuda.OutOfMemoryError:
            step //= 2
    got = torch.cuda.memory_reserved(device)
    after = torch.cuda.mem_get_info(device)[0]
    kept.clear()
    torch.cuda.empty_cache()
    return {
        "name": properties.name, "torch_total_bytes": properties.total_memory,
        "free_with_context_bytes": free, "most_reserved_bytes": got,
        "free_then_bytes": after, **counts,
    }  # fmt: skip
