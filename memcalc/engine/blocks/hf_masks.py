"""Masks and ALiBi biases as transformers makes them before the first block.

Shapes: mask (b, 1, s, keys) in the parameters' dtype, ALiBi (b a, 1, keys); keys are s without a cache.
Source: transformers 5.23, masking_utils.py (eager masks) and the modeling files of BLOOM and Falcon.
Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.engine.blocks.cache import keys_read
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor


def masks(build: Build, kinds: list[str], always: bool = False) -> dict[str, Context]:
    """The additive mask of each kind of layer; none where the kernel is causal by itself."""
    if build.prefix is not None and build.kernels.attention == "efficient":
        build.at("causal_mask", "embedding")
        return {kind: (_visible(build, kind, _square(build, kind)),) for kind in kinds}
    if build.kernels.attention != "eager" and not always:
        return {kind: () for kind in ("full", "sliding")}
    build.at("causal_mask", "embedding")
    return {kind: (_mask(build, kind),) for kind in kinds}


def _mask(build: Build, kind: str) -> Tensor:
    return additive_mask(build, kind, _square(build, kind))


def _square(build: Build, kind: str) -> tuple[Size, Size]:
    return build["s"], keys_read(build, kind)


def additive_mask(build: Build, kind: str, square: tuple[Size, Size]) -> Tensor:
    """create_causal_mask for eager attention: (b, 1, queries, keys)."""
    tape, b, dtype = build.tape, build["b"], build.kernels.param_dtype
    s, read = square
    allowed = _visible(build, kind, square)
    zero = tape.empty("zeros", (ONE,), dtype)
    lowest = tape.empty("scalar_tensor", (ONE,), dtype)
    tape.loads(allowed)
    out = tape.empty("where.self", (b, ONE, s, read), dtype)
    del zero, lowest, allowed
    return out


def _visible(build: Build, kind: str, square: tuple[Size, Size]) -> Tensor:
    """bool (queries, keys): which key each query may see, of all sequences."""
    tape = build.tape
    batch = tape.empty("arange", (build["b"],), "int64")
    head = tape.empty("arange", (ONE,), "int64")
    queries = _shifted_range(build, square[0])
    keys = _shifted_range(build, square[1])
    allowed = _allowed(build, kind, square)
    del batch, head, queries, keys
    return allowed


def _shifted_range(build: Build, length: Size) -> Tensor:
    start = build.tape.empty("arange", (length,), "int64")
    out = build.tape.empty("add.Tensor", (length,), "int64")
    del start
    return out


def _allowed(build: Build, kind: str, square: tuple[Size, Size]) -> Tensor:
    """bool (s, keys): which key each query may see."""
    tape = build.tape
    if kind == "full":
        return tape.empty("le.Tensor", square, "bool")
    true = tape.empty("new_ones", (ONE,), "bool")
    first = tape.empty("sub.Tensor", square[:1], "int64")
    window = tape.empty("gt.Tensor", square, "bool")
    del first
    tape.loads(window)
    inside = tape.empty("bitwise_and.Tensor", square, "bool")
    del true, window
    causal = tape.empty("le.Tensor", square, "bool")
    tape.loads(inside, causal)
    out = tape.empty("bitwise_and.Tensor", square, "bool")
    del inside, causal
    return out


def _slopes(build: Build) -> tuple[Tensor, ...]:
    """The slope of each head, and the temporaries of the function that makes them."""
    tape, a = build.tape, build["a"]
    base = tape.empty("full", (ONE,), "fp32")
    powers = tape.empty("arange", (a,), "int32")
    return tape.empty("pow.Tensor_Tensor", (a,), "fp32"), base, powers


def alibi(build: Build) -> tuple[Tensor, Tensor]:
    """BLOOM's bias (b a, 1, s), slopes times positions repeated over the batch, and the slopes."""
    build.at("alibi", "embedding")
    tape, b, a, s = build.tape, build["b"], build["a"], keys_read(build, "full")
    slopes = _slopes(build)[0]
    positions = tape.empty("arange", (s,), "int64")
    bias = tape.empty("mul.Tensor", (a, s), "fp32")
    del positions
    repeated = tape.empty("repeat", (b * a, ONE, s), "fp32")
    out = tape.empty("_to_copy", (b * a, ONE, s), build.kernels.param_dtype)
    del bias, repeated
    return out, slopes


def falcon_alibi(
    build: Build, position_ids: Callable[[Build], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Falcon-RW's bias (b, a, 1, s), position ids, the dense mask (b, s), the merged (b, a, s, s)."""
    build.at("alibi", "embedding")
    tape, b, a, s, dtype = build.tape, build["b"], build["a"], build["s"], build.kernels.param_dtype
    keys = keys_read(build, "full")
    ones = tape.empty("ones", (b, keys), "int64")
    slopes = _slopes(build)
    counted = tape.empty("cumsum", (b, keys), "int64")
    counted = tape.empty("sub.Tensor", (b, keys), "int64")
    counted = tape.empty("mul.Tensor", (b, keys), "int64")
    narrow_slopes = tape.empty("_to_copy", (a,), "bf16")
    bias = tape.empty("mul.Tensor", (b, a, keys), dtype)
    del slopes, counted, narrow_slopes
    positions = position_ids(build)
    mask = masks(build, ["full"], always=True)["full"][0]
    build.at("causal_mask", "embedding")
    scaled = tape.empty("div.Tensor", (b, a, ONE, keys), dtype)
    hidden = tape.empty("lt.Scalar", (b, ONE, s, keys), "bool")
    tape.loads(bias, hidden)
    merged = tape.empty("masked_fill", (b, a, s, keys), dtype)
    del scaled, hidden, mask
    return bias.view_as((b, a, ONE, keys), None, None), positions, ones, merged
