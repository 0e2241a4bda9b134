"""Wishes: what is searched for, and which values of each axis are allowed.

Checked by: unit/test_search_space.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from memcalc.engine.device_side import Device
from memcalc.engine.timing.topology import NODE_GPUS
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup

#: Axes that can be fixed or bounded, as the command line names them.
AXES: Final = (
    "tp", "pp", "vpp", "cp", "ep", "etp", "micro-batch", "schedule", "sp", "recompute", "zero",
    "reshard", "overlap-grad-reduce", "overlap-param-gather", "stage-layers",
)  # fmt: skip
#: Axes that are numbers, which --max-AXIS bounds.
NUMBERS: Final = ("tp", "pp", "vpp", "cp", "ep", "etp", "micro-batch")
#: Bounds where none is stated.
USUAL_MOST: Final = {"tp": 64, "vpp": 12}
#: Tokens of a micro-batch at most, unless its sequences are fixed or bounded.
MOST_TOKENS: Final = 1 << 17
RANKS: Final = ("tokens", "time", "cost")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """One search. gpus, batch: GPUs in all, sequences of a step. stacks: whose code may run.

    setup: what all setups share (sequence, precision, optimizer, ...). fixed: axis to the values allowed, as
    text; most: axis to its largest value. headroom: share of usable memory that must stay free. top: rows
    kept. rank: what the first row has the best of. offered: values that the spaces asked about, by axis.
    """

    config: ModelConfig
    setup: TrainingSetup
    device: Device
    gpus: int
    batch: int
    stacks: tuple[str, ...] = ("megatron",)
    fixed: Mapping[str, Collection[str]] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    headroom: float = 0.0
    rank: str = "tokens"
    top: int = 10
    price: float | None = None
    gpus_per_node: int | None = None
    offered: dict[str, dict[str, None]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"gpus: got {self.gpus}; rule: at least 1")
        if self.batch < 1:
            raise ConfigError(f"global-batch: got {self.batch}; rule: at least 1")
        if not 0 <= self.headroom < 1:
            raise ConfigError(f"min-headroom: got {self.headroom:.0%}; rule: 0 to below 100 %")
        for axis in (*self.fixed, *self.most):
            if axis not in AXES:
                raise ConfigError(f"fix: got {axis!r}; valid: {', '.join(AXES)}")

    def allows(self, axis: str, value: Any) -> bool:
        """Whether a value of an axis is wanted."""
        self.offered.setdefault(axis, {})[text_of(value)] = None
        most = self.most.get(axis, USUAL_MOST.get(axis))
        if axis == "micro-batch" and most is None:
            most = max(1, MOST_TOKENS // (self.setup.seq_len or 1))
        values = self.fixed.get(axis)
        if values is not None:
            return text_of(value) in values
        return most is None or not isinstance(value, int) or value <= most

    @property
    def domain(self) -> int:
        """GPUs of a fast domain."""
        cluster = self.device.cluster
        return self.gpus_per_node or (NODE_GPUS if cluster is None else cluster.domain_gpus)

    def chosen(self, axis: str, values: Collection[Any]) -> list[Any]:
        """Those of these values that are wanted."""
        return [value for value in values if self.allows(axis, value)]


def text_of(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
