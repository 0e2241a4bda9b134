"""How much of a GPU a run uses: two methods as arithmetic; the third needs a profile of a real run.

(a) FLOPs ratio: FLOPs a token, by a named convention, times tokens/s of one GPU, over its dense peak.
(b) Throughput: tokens/s of one GPU over those of a published run.
(c) Profile: `memcalc measure MODEL --profile` prints the share of tensor-core kernels.

Conventions differ in what they count for a token, with N_mm the parameters of matmuls (head included,
embedding not), N all that act on a token, L a d s the sum over layers of heads x head width x context:
the ledger's figures give 6 N_mm and 12 L a d s, none is counted anew here.
Sources: Chowdhery et al. 2022 (arXiv:2204.02311, appendix B); Hoffmann et al. 2022 (arXiv:2203.15556);
Korthikanti et al. 2022 (arXiv:2205.05198, sec. 6.3); the code of the projects named in each row.
Checked by: unit/test_utilisation_conventions.py, cli/test_mfu.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from memcalc.engine.kernel_choice import PRECISIONS
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.profiles import profile_names

if TYPE_CHECKING:
    from memcalc.engine.results import Estimate

PROFILE_METHOD = (
    "tensor-core share of a step, and its idle share: memcalc measure MODEL --profile, on a GPU"
)
_TERA = 1e12
#: A stated peak this close to twice a datasheet's dense one is its rate with 2:4 sparsity.
_SPARSE = 0.01


class Convention(NamedTuple):
    """One way to count FLOPs a token; by: who counts so."""

    name: str
    formula: str
    flops_per_token: float
    by: str


class Share(NamedTuple):
    """A convention with the FLOP/s it makes of a throughput, and their share of the peak."""

    convention: Convention
    flops_per_s: float
    share: float | None


class Peak(NamedTuple):
    """Dense FLOP/s of one GPU, and where the figure is from."""

    flops_per_s: float
    source: str


#: Traits of encoders, of which formulas in N and L a d s say nothing: not every token passes every weight.
_ENCODERS = frozenset({"t5", "bert"})


def conventions(result: Estimate) -> tuple[Convention, ...]:
    """FLOPs of one token by every convention, the two of the contract and the executed ones first."""
    time, parameters = result.time, result.model.active_parameters
    full, causal = time.model_flops_per_token, time.model_flops_causal_per_token
    if result.setup["traits"]["start"] in _ENCODERS:
        return (
            Convention(
                "full-square", "3 x forward, all scores", full, "the ledger, by source tokens"
            ),
            Convention("causal", "half of causal scores", causal, "the ledger, by source tokens"),
            Convention(
                "executed", "the ledger's", time.executed_flops_per_token, "HFU, this setup"
            ),
        )
    square = 2 * (full - causal)  # 12 L a d s: four products of the square, backward twice them
    linear = full - square
    rows = [
        Convention("full-square", "6 N_mm + 12 L a d s", full, "PaLM, torchtitan, NVIDIA recipes"),
        Convention("causal", "6 N_mm + 6 L a d s", causal, "Megatron-LM"),
        Convention("executed", "the ledger's", time.executed_flops_per_token, "HFU, this setup"),
        Convention("counted", "6 N_mm + 14 L a d s", linear + square * 14 / 12,
                   "PyTorch's FlopCounterMode, flash"),
        Convention("all-parameters", "6 N + 12 L a d s", 6 * parameters + square,
                   "llm-foundry, picotron"),
        Convention("all-causal", "6 N + 6 L a d s", 6 * parameters + square / 2, "llm.c"),
        Convention("chinchilla", "6 N", 6.0 * parameters, "Hoffmann et al. 2022"),
    ]  # fmt: skip
    if result.setup["recompute"] == "full":
        again = Convention(
            "recomputed", "8 N_mm + 8 L a d s", causal * 4 / 3, "Megatron-LM, hardware"
        )
        rows.append(again)
    return tuple(rows)


def shares(result: Estimate, tokens_per_s_per_gpu: float, peak: Peak | None) -> tuple[Share, ...]:
    """Every convention's FLOP/s and share of the peak at a throughput; None without a peak."""
    return tuple(
        Share(row, rate, None if peak is None else rate / peak.flops_per_s)
        for row in conventions(result)
        for rate in (row.flops_per_token * tokens_per_s_per_gpu,)
    )


def tokens_per_s_at(result: Estimate, share: float, kind: str, peak: Peak) -> float:
    """Tokens/s of one GPU at a share of its peak, counted by a convention of that name."""
    flops = {row.name: row.flops_per_token for row in conventions(result)}
    return share * peak.flops_per_s / flops[kind]


def matmul_dtype(setup: Mapping[str, Any]) -> str:
    """What the matmuls of an estimate multiply: fp32, tf32, fp16, bf16 or fp8."""
    return "fp8" if setup["kernels"]["fp8_linear"] else dtype_of(setup["precision"])


def dtype_of(precision: str) -> str:
    """What most matmuls of a precision multiply."""
    if precision in ("tf32", "fp8-mixed"):
        return precision.partition("-")[0]
    return PRECISIONS[precision].compute_dtype


def peak_of(gpu: Gpu | None, dtype: str, stated_tflops: float | None) -> Peak | None:
    """The peak stated, else the GPU's dense one in this dtype; None without either.

    Raises ConfigError when the GPU is known and has no such rate.
    """
    if stated_tflops is not None:
        return Peak(stated_tflops * _TERA, "stated")
    if gpu is None:
        return None
    rate = gpu.peak_flops_per_s.get(dtype)
    if rate is None:
        valid = ", ".join(name for name in gpu.peak_flops_per_s if "_" not in name)
        raise ConfigError(
            f"--gpu: {gpu.name} has no datasheet rate in {dtype}; valid: --peak TFLOPS, or one of "
            f"{valid}"
        )
    return Peak(float(rate), f"{gpu.slug}, {dtype}, dense datasheet")


def doubts(peak: Peak, gpu: Gpu | None, dtype: str, largest: float) -> list[str]:
    """What looks wrong: a peak that counts 2:4 sparsity, a share above one."""
    said = []
    named = sparse_peak_of(peak, gpu, dtype)
    if named:
        said.append(
            f"peak {peak.flops_per_s / _TERA:g} TFLOP/s is twice the dense {dtype} rate of {named}: "
            f"it counts 2:4 sparsity, no training run reaches it; dense: "
            f"{peak.flops_per_s / 2 / _TERA:g}"
        )
    if largest > 1:
        said.append(
            f"{largest:.1%} of the peak is more than a GPU can do; check whether the throughput is one "
            "GPU's or all of theirs (--gpus), the sequence length and the precision"
        )
    return said


def sparse_peak_of(peak: Peak, gpu: Gpu | None, dtype: str) -> str:
    """GPUs whose sparse rate was stated as their peak; "" where none fits or one has it dense."""
    if peak.source != "stated":
        return ""
    known = [gpu] if gpu is not None else [load_gpu(name)[0] for name in profile_names("gpus")]
    rates = [(one.slug, one.peak_flops_per_s.get(dtype)) for one in known]
    if any(rate and _close(peak.flops_per_s, rate) for _, rate in rates):
        return ""
    names = [slug for slug, rate in rates if rate and _close(peak.flops_per_s, 2 * rate)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _close(one: float, other: float) -> bool:
    return abs(one / other - 1) <= _SPARSE
