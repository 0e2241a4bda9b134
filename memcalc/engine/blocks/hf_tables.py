"""Rotary tables of the families that do not keep cos and sin of full width.

Source: transformers 5.23, models/gpt_oss and models/deepseek_v2. Checked by: oracle/test_hf_moe.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import scale, to
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def half_tables(build: Build) -> Context:
    """gpt-oss: cos and sin (s, r/2) in the embedding's dtype."""
    tape, dtype, shape = build.tape, build.kernels.param_dtype, (build["s"], build["r/2"])
    freqs = _angles(build)
    cos = scale(tape.empty("cos", shape, "fp32"))
    sin = scale(tape.empty("sin", shape, "fp32"))
    out = to(cos, dtype), to(sin, dtype)
    del freqs
    return out


def complex_tables(build: Build) -> Context:
    """DeepSeek-V2: unit complex numbers (s, r/2)."""
    shape = (build["s"], build["r/2"])
    freqs = _angles(build)
    out = scale(_polar(build))
    del freqs
    return (out.view_as(shape, None, None),)


def _angles(build: Build) -> Tensor:
    positions = build.tape.empty("_to_copy", (build["s"],), "fp32")
    freqs = build.tape.empty("mul.Tensor", (build["s"], build["r/2"]), "fp32")
    del positions
    return freqs


def _polar(build: Build) -> Tensor:
    shape = (build["s"], build["r/2"])
    ones = build.tape.empty("ones_like", shape, "fp32")
    out = build.tape.empty("polar", shape, "complex64")
    del ones
    return out
