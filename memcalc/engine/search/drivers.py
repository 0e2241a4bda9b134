"""What the driver takes of a rank's memory, for many layouts: the context and NCCL's communicators.

A communicator's bytes depend on how many ranks it has only up to three, on whether they leave the fast
domain, and on how many of them are near. Layouts that are alike in all of that take the same, so one of
them is asked (`network/communication.py`). Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memcalc.engine.device_side import Device
from memcalc.engine.parallel.megatron.megatron_rules import expert_split
from memcalc.engine.parallel.network.communication import fabric_of
from memcalc.engine.plan import Plan
from memcalc.engine.rank_memory import communication_of
from memcalc.engine.search.splits import Cut, Split
from memcalc.engine.search.states_grid import StatesOption


class Drivers:
    """Bytes of the driver over layouts; plans: one of each layout."""

    def __init__(self, device: Device, plans: Sequence[Plan], gpus: int) -> None:
        self.device, self.plans, self.gpus = device, plans, gpus
        self.domain = fabric_of(device.cluster, plans[0].parallel.gpus_per_node).gpus
        self.known: dict[Any, int] = {}
        self.rows: dict[Any, Any] = {}

    def left(self, cut: Cut, option: StatesOption) -> Any:
        """What each kind of rank may allocate, (kinds, layouts); None: no device."""
        import numpy as np

        if self.device.usable_bytes is None:
            return None
        stages = self._stages(cut)
        key = (cut.split.pp, cut.split.schedule, stages, option.zero)
        if key not in self.rows:
            room = self.device.usable_bytes - self.device.context_bytes
            self.rows[key] = np.array(
                [
                    [
                        room - max(self._bytes(at, cut.split, stage, option) for stage in own)
                        for at in range(len(self.plans))
                    ]
                    for own in stages
                ],
                float,
            )
        return self.rows[key]

    def _stages(self, cut: Cut) -> tuple[tuple[int, ...], ...]:
        """Stages of each kind of rank that may differ in what they are near: its first two and last two."""
        found = []
        for kind in range(len(cut.ranks)):
            alike = [at for at, one in enumerate(cut.kind_of_rank) if one == kind]
            found.append(tuple(sorted({*alike[:2], *alike[-2:]})))
        return tuple(found)

    def _bytes(self, place: int, split: Split, stage: int, option: StatesOption) -> int:
        """Bytes of the communicators of a stage's rank."""
        layout, pp = self.plans[place].parallel, split.pp
        inner = layout.tp * layout.cp * pp
        dp = max(1, self.gpus // inner)
        step = layout.tp * layout.cp * dp
        near = min(step, self.domain)
        key = (
            self._alike(place, dp, pp), near, step % self.domain if near < step else 0,
            stage if near < self.domain else (stage == 0, stage == pp - 1), split.schedule,
            option.zero,
        )  # fmt: skip
        if key not in self.known:
            plan = self.plans[place]
            placed = replace(
                layout, dp=dp, pp=pp, vpp=split.vpp, schedule=split.schedule, gpus=inner * dp,
                zero=option.zero,
            )  # fmt: skip
            between = communication_of(plan._replace(parallel=placed), stage, self.device)
            self.known[key] = between.expected
        return self.known[key]

    def _alike(self, place: int, dp: int, pp: int) -> tuple[Any, ...]:
        """How the groups of a layout look: ranks up to three, whether they leave the domain, neighbours."""
        plan, domain = self.plans[place], self.domain
        layout = plan.parallel
        tp, cp, ep = layout.tp, layout.cp, layout.ep
        etp = expert_split(layout) if plan.config.moe else 1
        stage = tp * cp * dp
        experts = (min(ep, 8 * domain), etp, min(3, stage // (ep * etp)), stage > domain)
        return (
            min(tp, 3), tp > domain, min(cp, 3), min(cp, max(1, domain // tp), 3), tp * cp > domain,
            min(cp * dp, 3), stage > domain, min(pp, 3), stage * pp > domain, min(tp * pp, 3),
            tp > 1, experts if plan.config.moe else None, min(tp * cp, 3),
        )  # fmt: skip
