"""Goes through Megatron's space block by block; what a kept setup is, in options of the command line.

Checked by: property/test_search_grid.py, unit/test_search.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from memcalc.engine.search.cells import BEGINS, FINISHES, WHOLE, Family, Pricing, table_of
from memcalc.engine.search.grid_parts import Block, Job
from memcalc.engine.search.megatron_grid import MegatronGrid
from memcalc.engine.search.splits import Cut, alike, cut_of
from memcalc.engine.search.states_grid import StatesOption
from memcalc.engine.timing.topology import wires_of
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import sustained
from memcalc.inputs.stacks import load_stack
from memcalc.planning.search.collect import Collector, Kept
from memcalc.planning.search.megatron_space import MegatronSpace
from memcalc.planning.search.wishes import Wishes

Tell = Callable[[str, int, int], None]


class Setup(NamedTuple):
    """One setup of the space."""

    family: Family
    micro_batch: int
    again: int
    cut: Cut
    option: StatesOption

    def options(self, gpus: int) -> dict[str, str | bool]:
        """Its options, as `memcalc estimate` takes them."""
        layout, split = self.family.plan.parallel, self.cut.split
        dp = gpus // (layout.tp * layout.cp * split.pp)
        found: dict[str, Any] = {"stack": "megatron", "gpus": gpus, "tp": layout.tp}
        if layout.tp > 1 and not layout.sp:
            found["no-sp"] = True
        found |= {"pp": split.pp, "cp": layout.cp, "ep": layout.ep}
        if layout.etp is not None:
            found["etp"] = layout.etp
        if split.vpp > 1:
            found |= {"vpp": split.vpp, "schedule": split.schedule}
        if split.stage_layers is not None:
            found["stage-layers"] = ",".join(map(str, split.stage_layers))
        found |= {"micro-batch": self.micro_batch, **self._recompute(), **self._states(dp)}
        return {
            name: value if value is True else str(value)
            for name, value in found.items()
            if not (value == 1 and name in ("tp", "pp", "cp", "ep"))
        }

    def _recompute(self) -> dict[str, str]:
        setup = self.family.plan.resolved.setup
        if setup.recompute == "selective":
            modules = ",".join(setup.recompute_modules)
            named = {} if modules == "core_attn" else {"recompute-modules": modules}
            return {"recompute": "selective", **named}
        if self.again == 0:
            return {"recompute": "none"}
        every = self.again == self.cut.most_layers
        return {"recompute": "full" if every else f"full:{self.again}"}

    def _states(self, dp: int) -> dict[str, Any]:
        option, found = self.option, dict[str, Any]()
        if option.zero:
            found["zero"] = 1
            if option.replicas > 1:
                found["shard"] = dp * self.family.plan.parallel.cp // option.replicas
        found |= {"overlap-grad-reduce": True} if option.overlap_grad_reduce else {}
        found |= {"overlap-param-gather": True} if option.overlap_param_gather else {}
        return found


class Megatron:
    """A search through the space of stack megatron."""

    def __init__(self, wishes: Wishes, space: MegatronSpace) -> None:
        self.wishes, self.space = wishes, space
        self.stack, self.refused, self.considered = "megatron", dict(space.refused), 0

    def run(self, into: Collector, tell: Tell | None) -> None:
        """Price every setup. tell: of splits done."""
        import numpy as np

        wishes, families = self.wishes, self.space.families
        if not families or not self.space.options:
            return
        device = wishes.device
        assert device.gpu is not None
        rates = sustained(choose_rates(device.gpu, device.calibration)[0])
        whole = ParallelPlan(gpus=wishes.gpus, dp=wishes.gpus, gpus_per_node=wishes.gpus_per_node)
        wires = wires_of(device, whole, rates)
        stack = load_stack("megatron").parallel
        staged = any(split.pp > 1 for split in self.space.splits)
        alone = any(split.pp == 1 for split in self.space.splits)
        tied = wishes.config.tie_word_embeddings or not staged
        ends = ([WHOLE] if alone and tied else []) + ([BEGINS, FINISHES] if staged else [])
        pricing = Pricing(rates, wires, bool(stack.get("tp_beside_products", False)))
        table = table_of(families, ends, pricing)
        cuts = [cut_of(wishes.config, split) for split in self.space.splits]
        grid = MegatronGrid(families, Job(wishes.gpus, wishes.batch, device, rates, wires), cuts)
        by_name = np.array([bool(f.plan.resolved.setup.recompute != "none") for f in families])
        parts = [table.take(np.flatnonzero(by_name[table.family] == one)) for one in (False, True)]
        for done, own in enumerate(groups := alike(cuts)):
            if tell is not None:
                tell("splits", done, len(groups))
            cut = own[0]
            for selective, part in enumerate(parts):
                again = np.array([0]) if selective else self._again(cut)
                self.considered += (
                    len(part.family) * len(own) * len(again) * len(self.space.options)
                )
                if len(part.family) and len(again):
                    for block in grid.blocks(part, again, own, self.space.options):
                        self._add(into, part, block)

    def _add(self, into: Collector, part: Any, block: Block) -> None:
        arrays = (block.step_s, block.allocated, block.lacking)
        valid = int(block.possible.sum()) * len(block.again)
        what = (self, part, block.cuts, block.options, (block.rows, block.which), block.again)
        into.add(arrays, valid, what)

    def _again(self, cut: Cut) -> Any:
        """Numbers of blocks computed again that are wanted; none of them is recompute none."""
        import numpy as np

        texts = self.wishes.fixed.get("recompute")
        most = cut.most_layers
        if texts is None:
            return np.arange(most + 1)
        wanted = {0} if "none" in texts else set()
        wanted |= {most} if "full" in texts else set()
        counts = (text.partition(":")[2] for text in texts if text.startswith("full:"))
        wanted |= {int(one) for one in counts if one.isdecimal() and 0 < int(one) <= most}
        return np.array(sorted(wanted), int)

    def setup(self, kept: Kept) -> Setup:
        """The setup that was kept of a block."""
        (_, part, cuts, options, (rows, which), again), (choice, column, row) = kept.what
        place, cut = rows[row], cuts[which[row]]
        family = self.space.families[int(part.family[place])]
        return Setup(family, int(part.micro_batch[place]), int(again[column]), cut, options[choice])

    def options(self, kept: Kept) -> dict[str, str | bool]:
        """A kept setup's options of `memcalc estimate`."""
        return self.setup(kept).options(self.wishes.gpus)

    def stages(self, kept: Kept) -> tuple[int, ...]:
        """The first stage of each kind of rank: of equal ranks it holds most."""
        return tuple(rank for rank, _ in kept.what[0][2][0].ranks)
