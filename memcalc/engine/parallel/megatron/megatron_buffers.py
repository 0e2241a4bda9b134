"""Megatron's buffers beside the tensors of a step: parameters and gradients in one piece, and more.

Parameters of one kind lie in one buffer, last first. The distributed optimizer starts each at a
multiple of 64 elements and ends each bucket at a multiple of lcm(ranks, 128); buckets close once they
hold 40 million elements (a million a rank where that is more), only where reductions overlap, and
there only on the stage with the embedding.
Source: Megatron-Core 0.14, distributed/param_and_grad_buffer.py, distributed_data_parallel.py,
utils.py (GlobalMemoryBuffer); TransformerEngine 2.11, pytorch/module/base.py (get_dummy_wgrad),
cpp_extensions/gemm.py (get_cublas_workspace_size_bytes).
Checked by: unit/test_megatron_buffers.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.kernels import Kernels
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

PARAMETER_STEP = 64
BUCKET_STEP = 128
#: Transformer Engine's cuBLAS workspace on Hopper and later, bytes.
TE_WORKSPACE_BYTES = 32 * 1024 * 1024 + 1024
#: The same for grouped products: one for each of four streams.
GROUPED_STREAMS = 4


def bucket_elements(ranks: int) -> int:
    """Elements at which a bucket closes, where gradient reductions overlap with backward."""
    return max(40_000_000, 1_000_000 * ranks)


def buffer_elements(
    elements: Iterable[int], ranks: int, distributed: bool, bucket: int | None = None
) -> int:
    """Elements of a buffer that holds these parameters, in registration order, with its padding."""
    if not distributed:
        return sum(elements)
    divisor = math.lcm(ranks, BUCKET_STEP)
    end = begun = 0
    is_open = False
    for count in reversed(list(elements)):
        end = _up(end, PARAMETER_STEP) + count
        is_open = True
        if bucket is not None and end - begun >= bucket:
            end = begun = _up(end, divisor)
            is_open = False
    return _up(end, divisor) if is_open else end


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def dummy_gradient_bytes(
    leaves: Iterable[Tensor], values: Mapping[str, int], kernels: Kernels
) -> int:
    """One tensor for each distinct shape of a weight whose gradient is added in place.

    Experts are matrices each: their shape counts without the number of experts.
    """
    shapes: set[tuple[int, int]] = set()
    for leaf in leaves:
        shape = tuple(size.value(values) for size in leaf.shape[-2:])
        if len(shape) == 2 and _adds_in_place(leaf.name):
            shapes.add((shape[0], shape[1]))
    width = ITEMSIZE[kernels.param_dtype]
    return sum(rows * columns for rows, columns in shapes) * width


def _adds_in_place(name: str) -> bool:
    """Embeddings and routers make gradients of their own."""
    return not any(part in name for part in ("embedding", "router", "shared_expert_gate"))


def dispatcher_bytes(plan: Plan) -> int:
    """What token dispatchers hold from one micro-batch to the next, of every sparse layer.

    Probabilities and map (T, E) of the tokens; the rows' places too (2 E + 1 int32 a token), which
    backward keeps anyway unless the layer is computed again.
    Source: Megatron-Core 0.14, transformer/moe/token_dispatcher.py (attributes of the dispatcher).
    """
    config, values = plan.config.moe, plan.values
    if config is None:
        return 0
    tokens, experts = values["s_t"] * values["b"], values["E"]
    width = ITEMSIZE["fp32" if config.fp32_router else plan.kernels.compute_dtype]
    tables = tokens * experts * (width + 1)
    places = tokens * (2 * experts + 1) * 4
    options = plan.kernels.megatron
    again = options is not None and "moe" in options.recomputes
    return sum(
        tables + (places if again or kind.recompute != "none" else 0)
        for kind in plan.kinds
        if kind.sparse
    )
