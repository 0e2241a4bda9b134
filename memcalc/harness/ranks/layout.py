"""How the ranks of a run divide a model and its batch, and which divisions a model allows.

Ranks lie as a box of pp stages, dp copies, cp shares of a sequence and tp parts, tp innermost: rank =
((stage dp + copy) cp + share) tp + part, so that the parts of one layer are neighbours. dp ranks split the
batch; with fsdp they and the cp ranks, which have the same weights, also split every parameter. The
degrees' product is the number of processes torchrun started.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053) for tp; Korthikanti et al. 2022 (arXiv:2205.05198) for sp;
Huang et al. 2018 (arXiv:1811.06965) and Narayanan et al. 2021 (arXiv:2104.04473) for the schedules.
Nothing here needs torch. Checked by: harness/test_layout.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from memcalc.engine.parallel.tensor.tensor_rules import check_kept, refuse_copies
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.model import check_choice
from memcalc.inputs.parallel import CP_METHODS, divisors

SCHEDULES: Final = ("gpipe", "1f1b")
_DEGREES: Final = ("dp", "cp", "tp", "pp")
#: Largest number of processes; beyond it a number is a typing error.
_MOST_RANKS: Final = 1 << 20


class World(NamedTuple):
    """This process among those of the run. local: on this host; hosts: how many there are."""

    size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_size: int = 1

    @property
    def hosts(self) -> int:
        """Hosts of the run, which torchrun gives equally many processes."""
        return -(-self.size // self.local_size)


def world() -> World:
    """What torchrun says in the environment; one process without it."""
    size = _from_environment("WORLD_SIZE", 1) or 1
    return World(
        size,
        _from_environment("RANK", 0),
        _from_environment("LOCAL_RANK", 0),
        _from_environment("LOCAL_WORLD_SIZE", size) or size,
    )


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


class Place(NamedTuple):
    """Where a rank is: its stage, its share of the batch, its part of each layer, its positions."""

    pp: int = 0
    dp: int = 0
    tp: int = 0
    cp: int = 0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of a run. Raises ConfigError for degrees that do not go together.

    dp: ranks that split the batch; tp: that split each layer; pp: stages, each with a run of blocks.
    sp: the stream between layers is split along the sequence over the tp ranks. fsdp: parameters,
    gradients and states are split over the dp ranks (FSDP2); else each has them all (DDP).
    reshard: whether fsdp frees a block's parameters after its forward, or over how many ranks it then
    keeps them split; None: freed, with stages kept. shard: ranks fsdp splits over, the dp ranks then
    being dp / shard groups of them that sum their gradients (HSDP); None: all. cp: ranks that split
    every sequence, by cp_method. ep: of the dp ranks, those that share the experts.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: bool = False
    fsdp: bool = False
    schedule: str = "1f1b"
    reshard: bool | int | None = None
    shard: int | None = None
    cp: int = 1
    cp_method: str = "ring"
    ep: int = 1

    def __post_init__(self) -> None:
        for name in _DEGREES:
            value = getattr(self, name)
            if not 1 <= value <= _MOST_RANKS:
                raise ConfigError(f"{name}: got {value}; rule: 1 to {_MOST_RANKS:,}")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        check_choice("cp_method", self.cp_method, CP_METHODS)
        if self.sp and self.tp == 1:
            raise ConfigError("sp: got tp 1; rule: beside tensor parallelism; valid: --tp above 1")
        if self.tp > 1 and self.replicas > 1 and not self.fsdp:
            raise refuse_copies(self.tp, self.replicas)
        self._check_sharding()
        self._check_experts()

    def _check_experts(self) -> None:
        """Experts are spread over some of the ranks that split the batch, with fsdp."""
        if self.ep == 1:
            return
        if self.ep < 1 or self.dp % self.ep:
            raise _not_divided("ep", self.ep, "dp", self.dp)
        if not self.fsdp:
            raise ConfigError(f"ep: got {self.ep} without fsdp; rule: experts need --fsdp")
        beside = {"cp": self.cp > 1, "tp": self.tp > 1, "shard": self.shard is not None}
        for name in (name for name, stated in beside.items() if stated):
            raise ConfigError(f"ep: got {self.ep} with {name}; rule: beside dp and pp alone")
        if self.reshard is not None and not isinstance(self.reshard, bool):
            raise ConfigError(f"ep: got {self.ep} with reshard {self.reshard}; valid: true, false")

    def _check_sharding(self) -> None:
        """shard and reshard are of fsdp; a part of the dp ranks divides them."""
        shard, reshard = self.shard, self.reshard
        for name, value in (("shard", shard), ("reshard", reshard)):
            if value is not None and not self.fsdp:
                raise ConfigError(
                    f"{name}: got no fsdp; rule: of sharded parameters; valid: --fsdp"
                )
        if shard is not None and self.cp > 1:
            raise ConfigError(f"shard: got {shard} with cp {self.cp}; rule: all of dp x cp")
        if shard is not None and (shard < 1 or self.dp % shard):
            raise _not_divided("shard", shard, "dp", self.dp)
        if reshard is None or isinstance(reshard, bool):
            return
        if reshard < 1 or self.shard_ranks % reshard:
            raise _not_divided("reshard", reshard, "the sharding ranks", self.shard_ranks)
        check_kept(reshard, self.tp, self.shard_ranks)

    @property
    def replicas(self) -> int:
        """Ranks that have the same weights: each with its share of the batch and of every sequence."""
        return self.dp * self.cp

    @property
    def shard_ranks(self) -> int:
        """Ranks that fsdp splits parameters over."""
        return self.shard or self.replicas

    @property
    def frees_after_forward(self) -> bool | int:
        """fully_shard's reshard_after_forward of the blocks; the root keeps its own, gathered."""
        return self.pp == 1 if self.reshard is None else self.reshard

    @property
    def size(self) -> int:
        """Processes of the run."""
        return self.replicas * self.tp * self.pp

    def place(self, rank: int) -> Place:
        """Where a rank is."""
        stage, rest = divmod(rank, self.replicas * self.tp)
        share, part = divmod(rest, self.tp)
        return Place(stage, share // self.cp, part, share % self.cp)

    def stage_layers(self, layers: int) -> list[range]:
        """The blocks of each stage: equally many, the first stages one more where they must."""
        each, more = divmod(layers, self.pp)
        starts = [stage * each + min(stage, more) for stage in range(self.pp + 1)]
        return [range(a, b) for a, b in zip(starts, starts[1:], strict=False)]

    def plain(self) -> dict[str, Any]:
        """As a record keeps it; schedule is None without stages."""
        method = self.cp_method if self.cp > 1 else None
        schedule = self.schedule if self.pp > 1 else None
        return {**asdict(self), "schedule": schedule, "cp_method": method}


def layout_of(stated: Mapping[str, Any], size: int) -> Layout:
    """The layout of `size` processes; dp is what the other degrees leave. No option at all is DDP.

    stated: what the user gave of Layout's fields. Raises ConfigError when the degrees'
    product is not `size`, saying which are valid, or how to start so many processes.
    """
    tp, pp, cp = (stated.get(name, 1) for name in ("tp", "pp", "cp"))
    inner = tp * pp * cp
    if "schedule" in stated and pp == 1:
        raise ConfigError("schedule: got no stages; rule: of a pipeline; valid: --pp above 1")
    if "cp_method" in stated and cp == 1:
        raise ConfigError(
            "cp_method: got whole sequences; rule: of split ones; valid: --cp above 1"
        )
    dp = stated.get("dp", max(1, size // inner))
    if dp * inner != size:
        _refuse_product(
            {"dp": dp, **({"cp": cp} if cp > 1 else {}), "tp": tp, "pp": pp}, stated, size
        )
    more = ("schedule", "sp", "fsdp", "reshard", "shard", "cp_method", "ep")
    named = {name: stated[name] for name in more if name in stated}
    return Layout(dp=dp, tp=tp, pp=pp, cp=cp, **named)


def _refuse_product(degrees: dict[str, int], stated: Mapping[str, Any], size: int) -> None:
    """Say which degree cannot be, and what it could be with the others as they are."""
    name = next((n for n in ("tp", "pp", "cp", "dp") if stated.get(n, 1) > 1), "dp")
    if size == 1:
        wanted = math.prod(degrees.values())
        raise ConfigError(
            f"{name}: got {degrees[name]} in one process; rule: run under torchrun "
            f"--nproc-per-node {wanted}"
        )
    others = math.prod(value for n, value in degrees.items() if n != name and n in stated)
    free = any(n not in stated for n in degrees if n != name)
    left = size // others if size % others == 0 else 0
    valid = divisors(left) if free else [left] if left else []
    listing = ", ".join(map(str, valid)) or f"none with the other degrees at {others}"
    raise ConfigError(
        f"{name}: got {degrees[name]}; rule: {' x '.join(degrees)} = {size}, the processes of torchrun; "
        f"valid: {listing}"
    )


def _not_divided(name: str, got: int, whole: str, number: int) -> ConfigError:
    valid = ", ".join(map(str, divisors(number)))
    return ConfigError(f"{name}: got {got}; rule: divides {whole} = {number}; valid: {valid}")
