"""Which models and setups can share a sequence over cp ranks, and what it makes of a layer's kernels.

The same rules hold for an estimate (stack torch) and for a run (memcalc/harness/ranks). Every refusal is
one line: what was got, the rule, what is valid for this model.
Checked by: oracle/test_context_parallel.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memcalc.engine.kernels import Contexts, Kernels
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

KERNELS: Final = ("flash", "efficient", "cudnn")
#: The memory-efficient kernel pads its log-sum-exp to as many queries; the ring adds up unpadded ones.
_PADDED: Final = 32


def check_context(layout: ParallelPlan, plan: Plan, stack: Stack) -> tuple[str, ...]:
    """Raise ConfigError unless cp ranks can share the sequences of a plan's decoder; returns notes."""
    apart = plan.kernels.compiled and plan.kernels.traits.code != "torchtitan"
    if plan.kernels.hf or apart:
        raise NotInThisVersionError(
            f"cp: got {layout.cp} on stack {stack.name}; rule: not in this version; "
            "valid: --stack torch or megatron"
        )
    check_shared(layout.cp, layout.cp_method, layout.tp, plan)
    if layout.cp_method == "ulysses":
        return ()
    return (
        "cp by ring: keys and values of all ranks are gathered at once, as PyTorch does unless told; "
        "figures of the rank that takes most",
    )


def check_shared(cp: int, method: str, tp: int, plan: Plan) -> None:
    """Raise ConfigError unless cp ranks can share attention by this method, beside tp."""
    config, kernel, seq = plan.config, plan.kernels.attention, plan.resolved.seq_len
    if kernel not in KERNELS or config.position_embedding == "alibi":
        what = "alibi positions" if config.position_embedding == "alibi" else kernel
        raise ConfigError(
            f"cp: got {cp} with attention {what}; rule: kernels without scores and bias; "
            f"valid: cp 1, or --attention {', '.join(KERNELS)} where the model allows it"
        )
    step = cp * (2 if method == "ring" else 1)
    if method == "ring" and kernel == "efficient":
        step *= _PADDED
    if seq % step:
        near = max(1, round(seq / step)) * step
        raise ConfigError(
            f"seq: got {seq} with cp {cp} by {method}; rule: a multiple of {step}; "
            f"nearest valid: {near}"
        )
    if method == "ulysses":
        _check_heads(cp, tp, plan)


def _check_heads(cp: int, tp: int, plan: Plan) -> None:
    """Ulysses gives every rank whole heads, of queries and of keys and values."""
    config = plan.config
    heads, groups = config.num_attention_heads // tp, config.num_key_value_heads // tp
    groups = heads if config.mla is not None else groups
    valid = [n for n in divisors(heads) if groups % n == 0]
    if cp not in valid:
        raise ConfigError(
            f"cp: got {cp} by ulysses; rule: divides a rank's {heads} heads and {groups} key/value "
            f"heads; valid: {', '.join(map(str, valid))}, or --cp-method ring"
        )


def context_split(kernels: Kernels, layout: ParallelPlan, recompute: str) -> Kernels:
    """The kernels of a rank that shares its sequences; of a ring, that rank which takes most."""
    if layout.cp == 1:
        return kernels
    rank = _fullest(layout.cp, recompute) if layout.cp_method == "ring" else 0
    return kernels._replace(context=Contexts(layout.cp_method, layout.cp, rank))


def _fullest(ranks: int, recompute: str) -> int:
    """The rank before the last: it has steps of both kinds, and like all but the last it keeps the
    merged output beside a token-major copy. Of two ranks with attention recomputed, the last: its
    steps take more.
    """
    return ranks - 1 if ranks == 2 and recompute in ("full", "selective") else ranks - 2
