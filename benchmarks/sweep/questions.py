"""The open questions a GPU settles, most valuable first: id, what is asked, where the answer is made.

No torch here; the functions are imported by the worker that asks. Answers are records of kind
"question". What a question cannot be asked of (a CPU, a torch without the feature) is a record as
well, with status "skipped" and the reason.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

_HERE = "benchmarks.sweep"


class Question(NamedTuple):
    """home: module:function. fresh: ask in a new process. needs: None, or what a device must have."""

    id: str
    asks: str
    home: str
    needs_cuda: bool = True
    fresh: bool = False
    slow: bool = False  # not in tiny mode
    guess_s: float = 10.0
    has_folder: bool = False
    blocked: str = ""  # why this program cannot ask it


#: Those asked in a new process come first: another process's context would show in their bytes.
QUESTIONS = (
    Question(
        "cublas-workspace",
        "How many matmul workspaces are allocated: by the main thread, autograd's, other libraries?",
        f"{_HERE}.device_questions:cublas_workspace", fresh=True, guess_s=12,
    ),
    Question(
        "context", "How many bytes does a CUDA context take, and as kernels are loaded?",
        f"{_HERE}.device_questions:context", fresh=True, guess_s=15,
    ),
    Question(
        "total-bytes", "How many bytes has the device, by every count, and how many can torch have?",
        f"{_HERE}.device_questions:total_bytes", fresh=True, guess_s=12,
    ),
    Question(
        "attention-scratch", "What do attention kernels allocate inside, forward and backward?",
        f"{_HERE}.attention_questions:scratch", needs_cuda=False, guess_s=15,
    ),
    Question(
        "allocator", "Does the simulated allocator reserve what PyTorch's own does?",
        f"{_HERE}.step_questions:allocator", guess_s=30,
    ),
    Question(
        "accumulation", "Is the gradient of a tensor read several times summed in place?",
        f"{_HERE}.autograd_questions:accumulation", needs_cuda=False, guess_s=4,
    ),
    Question(
        "scatter", "Do scatter and index_put in backward formulas work in place?",
        f"{_HERE}.autograd_questions:scatter", needs_cuda=False, guess_s=4,
    ),
    Question(
        "rms-norm", "What does F.rms_norm keep, and is it one kernel?",
        f"{_HERE}.autograd_questions:rms_norm", needs_cuda=False, guess_s=4,
    ),
    Question(
        "default-attention", "Which kernel does F.scaled_dot_product_attention pick?",
        f"{_HERE}.attention_questions:default_kernel", needs_cuda=False, guess_s=12,
    ),
    Question(
        "trace", "Shares of tensor-core kernels, communication and idle time of a profiled step",
        f"{_HERE}.step_questions:trace", needs_cuda=False, guess_s=15, has_folder=True,
    ),
    Question(
        "compiled-saved", "What does a compiled block keep for backward?",
        f"{_HERE}.step_questions:compiled_saved", needs_cuda=False, slow=True, guess_s=60,
    ),
    Question(
        "fsdp-streams", "What do FSDP2's streams change in memory?", "", guess_s=0,
        blocked="needs several GPUs",
    ),
)  # fmt: skip
BY_ID = {question.id: question for question in QUESTIONS}


def ask(name: str, device: Any, tiny: bool, folder: Path) -> dict[str, Any]:
    """The answer to a question as {"status", "asks", "answer" or "reason"}."""
    question = BY_ID[name]
    said: dict[str, Any] = {"asks": question.asks}
    if question.needs_cuda and device.type != "cuda":
        return {**said, "status": "skipped", "reason": f"needs CUDA; asked of {device}"}
    if question.slow and tiny:
        return {**said, "status": "skipped", "reason": "takes minutes; left out in tiny mode"}
    module, _, function = question.home.partition(":")
    extra = (folder,) if question.has_folder else ()
    answer = getattr(importlib.import_module(module), function)(device, tiny, *extra)
    if "skipped" in answer:
        return {**said, "status": "skipped", "reason": answer["skipped"]}
    return {**said, "status": "ok", "answer": answer}
