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
        self.alike: dict[int, tuple[list[tuple[Any, int]], Any]] = {}

    def left(self, cut: Cut, option: StatesOption) -> Any:
        """What each kind of rank may allocate, (kinds, layouts); None: no device."""
        import numpy as np

        if self.device.usable_bytes is None:
            return None
        stages = self._stages(cut)
        key = (cut.split.pp, cut.split.schedule, stages, option.zero)
        if key not in self.rows:
            room = self.device.usable_bytes - self.device.context_bytes
            classes, of_layout = self._classes(cut.split.pp)
            found = [
                [
                    room - max(self._bytes(one, cut.split, stage, option) for stage in own)
                    for one in classes
                ]
                for own in stages
            ]
            self.rows[key] = np.array(found, float)[:, of_layout]
        return self.rows[key]

    def _stages(self, cut: Cut) -> tuple[tuple[int, ...], ...]:
        """Stages of each kind of rank that may differ in what they are near: its first two and last two."""
        found = []
        for kind in range(len(cut.ranks)):
            alike = [at for at, one in enumerate(cut.kind_of_rank) if one == kind]
            found.append(tuple(sorted({*alike[:2], *alike[-2:]})))
        return tuple(found)

    def _classes(self, pp: int) -> tuple[list[tuple[Any, int]], Any]:
        """Classes of layouts with so many stages, each with the place of its first; the class of each."""
        import numpy as np

        if pp not in self.alike:
            firsts: dict[Any, int] = {}
            keys = []
            for place, plan in enumerate(self.plans):
                inner = plan.parallel.tp * plan.parallel.cp
                dp = max(1, self.gpus // (inner * pp))
                near = min(inner * dp, self.domain)
                beyond = inner * dp % self.domain if near < inner * dp else 0
                keys.append((self._alike(place, dp, pp), near, beyond))
                firsts.setdefault(keys[-1], place)
            number = {key: at for at, key in enumerate(firsts)}
            self.alike[pp] = (list(firsts.items()), np.array([number[key] for key in keys]))
        return self.alike[pp]

    def _bytes(self, one: tuple[Any, int], split: Split, stage: int, option: StatesOption) -> int:
        """Bytes of the communicators of a stage's rank, of a class of layouts."""
        (alike, near, beyond), place = one
        pp = split.pp
        where = stage if near < self.domain else (stage == 0, stage == pp - 1)
        key = (alike, near, beyond, where, split.schedule, option.zero)
        if key not in self.known:
            plan = self.plans[place]
            layout = plan.parallel
            inner = layout.tp * layout.cp * pp
            dp = max(1, self.gpus // inner)
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
