"""ParallelPlan: how many GPUs a run has and how they divide the model and its batch.

Degrees multiply: GPUs = tp x pp x cp x dp; expert parallelism lies inside dp (and cp). What a user
leaves open is filled by `resolve_parallel`, so that every result shows the whole layout; degrees that
do not go together are refused in one line that names the valid ones.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053) tp; Korthikanti et al. 2022 (arXiv:2205.05198) sp;
Narayanan et al. 2021 (arXiv:2104.04473) pp; Rajbhandari et al. 2019 (arXiv:1910.02054) zero.
Checked by: unit/test_parallel_plan.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Final

from memcalc.errors import ConfigError
from memcalc.inputs.model import check_choice

SCHEDULES: Final = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe")
#: Schedules that give a rank more than one chunk of the model, and how many where it is fixed.
CHUNKED_SCHEDULES: Final = {"interleaved": None, "zb-v": 2, "dualpipe": 2}
OFFLOADS: Final = ("none", "optimizer", "params", "activations", "all")
OFFLOAD_DEVICES: Final = ("cpu", "nvme")
CP_METHODS: Final = ("ring", "ulysses")
TP_LAYOUTS: Final = ("1d", "2d", "2.5d", "3d")
#: Beyond this many GPUs a number is a typing error.
MOST_GPUS: Final = 1 << 20
_DEGREES: Final = ("tp", "pp", "vpp", "cp", "ep")


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """How the GPUs of a run divide its work. Raises ConfigError with what, got, rule, valid.

    tp: ranks a layer is split over; pp: pipeline stages; vpp: chunks of the model a stage holds; cp:
    ranks a sequence is split over; ep: ranks the experts are spread over; etp: ranks one expert is
    split over (None: the stack's, tp for Megatron); dp: copies that split the batch (None: what gpus
    leaves, else 1). sp: the stream between layers split along the sequence over tp (None: the
    stack's). zero: 1 shards optimizer states over dp, 2 gradients too, 3 parameters too; fsdp: stage
    3 as PyTorch's fully_shard. shard: ranks of one sharding group (None: all of dp; fewer is HSDP).
    reshard: parameters are freed after a block's forward (an int: kept split over so many ranks).
    stage_layers: blocks of every stage, chunk by chunk (None: evenly). offload: what leaves the GPU, to
    offload_device; pin_memory: host memory is page-locked (None: the stack's). overlap_grad_reduce,
    overlap_param_gather: gradients are summed beside backward, parameters gathered beside forward, as
    Megatron's options of these names (None: the stack's).
    Checked by: unit/test_parallel_plan.py.
    """

    gpus: int | None = None
    gpus_per_node: int | None = None
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    dp: int | None = None
    sp: bool | None = None
    zero: int = 0
    fsdp: bool = False
    shard: int | None = None
    reshard: bool | int | None = None
    schedule: str = "1f1b"
    stage_layers: tuple[int, ...] | None = None
    cp_method: str = "ring"
    offload: str = "none"
    offload_device: str = "cpu"
    pin_memory: bool | None = None
    tp_layout: str = "1d"
    overlap_grad_reduce: bool | None = None
    overlap_param_gather: bool | None = None

    def __post_init__(self) -> None:
        for name in (*_DEGREES, "gpus", "gpus_per_node", "dp", "etp", "shard"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST_GPUS:
                raise ConfigError(f"{name}: got {value}; rule: 1 to {MOST_GPUS:,}")
        if not 0 <= self.zero <= 3:
            raise ConfigError(f"zero: got {self.zero}; rule: 0, 1, 2 or 3")
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("offload", self.offload, OFFLOADS)
        check_choice("offload_device", self.offload_device, OFFLOAD_DEVICES)
        check_choice("cp_method", self.cp_method, CP_METHODS)
        check_choice("tp_layout", self.tp_layout, TP_LAYOUTS)
        if self.fsdp and self.zero in (1, 2):
            raise ConfigError(f"zero: got {self.zero} with fsdp; rule: fsdp is stage 3; valid: 3")
        if self.sp and self.tp == 1:
            raise ConfigError("sp: got tp 1; rule: beside tensor parallelism; valid: --tp above 1")
        if self.vpp > 1 and self.schedule not in CHUNKED_SCHEDULES:
            raise ConfigError(
                f"vpp: got {self.vpp} with schedule {self.schedule}; rule: chunks are of the "
                "interleaved schedule; valid: --schedule interleaved"
            )
        if self.stage_layers is not None and self.pp == 1:
            stated = ",".join(map(str, self.stage_layers))
            raise ConfigError(f"stage_layers: got {stated} with pp 1; valid: --pp above 1")

    @property
    def inner(self) -> int:
        """GPUs of one copy of the model."""
        return self.tp * self.pp * self.cp

    @property
    def copies(self) -> int:
        """Ranks that split the batch; 1 while it is open."""
        return self.dp or 1

    @property
    def size(self) -> int:
        """GPUs in all."""
        return self.inner * self.copies

    @property
    def shard_ranks(self) -> int:
        """Ranks that share one set of sharded states: dp (and cp, which holds the same weights)."""
        return self.shard or self.copies * self.cp

    @property
    def chunks(self) -> int:
        """Chunks of the model in all: the stages a schedule moves micro-batches through."""
        return self.pp * self.vpp

    @property
    def is_single(self) -> bool:
        """Whether nothing is divided: the estimate of one GPU."""
        return self.size == 1 and not self.sharded and self.offload == "none"

    @property
    def sharded(self) -> bool:
        """Whether parameters, gradients or optimizer states are divided over dp."""
        return self.fsdp or self.zero > 0


def with_degrees(plan: ParallelPlan) -> ParallelPlan:
    """The plan with gpus, dp, vpp and zero filled in. Raises ConfigError naming valid degrees."""
    inner = plan.inner
    if plan.gpus is not None and plan.gpus % inner:
        raise _indivisible(plan)
    dp = plan.dp if plan.dp is not None else (plan.gpus or inner) // inner
    if plan.gpus is not None and dp * inner != plan.gpus:
        raise ConfigError(
            f"dp: got {dp}; rule: tp x pp x cp x dp = {plan.gpus} GPUs; valid: {plan.gpus // inner}"
        )
    fixed = CHUNKED_SCHEDULES.get(plan.schedule)
    if fixed is not None and plan.vpp not in (1, fixed):
        raise ConfigError(f"vpp: got {plan.vpp}; rule: {plan.schedule} has {fixed} chunks a rank")
    return replace(
        plan,
        dp=dp,
        gpus=dp * inner,
        vpp=(fixed or plan.vpp) if plan.pp > 1 else 1,
        zero=3 if plan.fsdp else plan.zero,
    )


def _indivisible(plan: ParallelPlan) -> ConfigError:
    """The error for GPUs that one copy of the model does not divide, with what would."""
    gpus = plan.gpus or 1
    name = next(n for n in ("tp", "pp", "cp") if getattr(plan, n) > 1)
    others = plan.inner // getattr(plan, name)
    valid = divisors(gpus // others) if gpus % others == 0 else []
    listing = ", ".join(map(str, valid)) or f"none with the other degrees at {others}"
    return ConfigError(
        f"{name}: got {getattr(plan, name)}; rule: tp x pp x cp divides {gpus} GPUs; "
        f"valid: {listing}"
    )


def divisors(number: int) -> list[int]:
    """Every divisor, least first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def stated(plan: ParallelPlan) -> dict[str, object]:
    """The fields of a plan that differ from the defaults."""
    return {
        f.name: getattr(plan, f.name) for f in fields(plan) if getattr(plan, f.name) != f.default
    }
