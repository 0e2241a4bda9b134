"""Kernels of eager code as PyTorch's dispatcher shows them, on tensors without data.

Every operator that makes a new tensor or writes into one is a kernel: it reads each of its tensors and
writes its results. Views and bare memory are none. A broadcast tensor is read once, as far as it goes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memcalc.engine.plan import Plan
from memcalc.engine.works import works_of

#: Operators that only take memory.
_MEMORY = ("empty.memory_format", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
#: Names by which the engine calls PyTorch's operators.
_ALIASES = {"mul.Scalar": "mul.Tensor", "sum.dim_IntList": "sum"}


class KernelCounter(TorchDispatchMode):
    """Launches and bytes moved by operator, while active."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.").removesuffix(".default")
        read, made = _tensors((args, kwargs)), _tensors(out)
        known = {x.untyped_storage()._cdata for x in read}
        fresh = any(x.untyped_storage()._cdata not in known for x in made)
        if name not in _MEMORY and (fresh or func._schema.is_mutable):
            self.launches[alias(name)] += 1
            self.moved[alias(name)] += sum(map(_bytes, (*read, *made)))
        return out


def alias(name: str) -> str:
    """The name under which both sides count an operator."""
    return _ALIASES.get(name, name)


def engine_kernels(plan: Plan) -> tuple[Counter[str], Counter[str]]:
    """Operators and bytes moved by operator, as the engine has them."""
    launches: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for work, times in works_of(plan):
        launches[alias(work.name)] += times
        moved[alias(work.name)] += times * work.moved.value(plan.values)
    return launches, moved


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def _bytes(x: torch.Tensor) -> int:
    numel = 1
    for size, step in zip(x.shape, x.stride(), strict=True):
        numel *= size if step or size == 1 else 1
    # the generator's state of attention and dropout kernels: 24 bytes, which the engine leaves out
    return (
        0 if x.dtype in (torch.int64, torch.uint64) and x.numel() <= 2 else numel * x.element_size()
    )
