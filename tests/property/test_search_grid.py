"""The arrays of a search against the scalar estimate: bytes exactly, seconds to 1e-9.

Every draw is one setup of a space: any layout, split, micro-batch, recomputation and way to hold states. All
1,000 with MEMCALC_DRAWS=all; benchmarks/engine_speed.py --search draws as many of the large spaces.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from memcalc.planning.search.collect import Collector, Kept
from memcalc.planning.search.megatron_search import Megatron
from memcalc.planning.search.megatron_space import megatron_space
from tests.draws import ALL
from tests.unit.search_support import case_maker, priced, wishes_of

#: Space -> what it is of; the last: setups drawn of it with all draws.
SPACES = {
    "gpt": (("gpt-3-175b", 256, 768), {"most": {"micro-batch": 4, "vpp": 6}}, 300),
    "llama": (
        ("llama-3.1-70b", 64, 64),
        {"seq": 4096, "most": {"micro-batch": 2, "vpp": 5}, "training": {"grad_clip": True}},
        200,
    ),
    "few layers": (("llama-3.2-1b", 16, 48), {"layers": 7, "most": {"micro-batch": 6}}, 150),
    "mixtral": (
        ("mixtral-8x7b", 32, 96),
        {"layers": 12, "most": {"micro-batch": 2, "tp": 4, "cp": 2}},
        150,
    ),
    "deepseek": (
        ("deepseek-v3", 64, 256),
        {"layers": 11, "most": {"micro-batch": 2, "tp": 2, "cp": 1}, "fixed": {"ep": ["1", "8"]}},
        200,
    ),
}


class _Sampler(Collector):
    """Keeps some setups of every block, drawn at random."""

    def __init__(self, seed: int) -> None:
        super().__init__(1, 1e12)
        self.choose, self.kept = random.Random(seed), []

    def add(self, arrays, valid, what):
        step = arrays[0]
        places = np.argwhere(np.isfinite(step))
        for _ in range(2):
            at = tuple(int(one) for one in places[self.choose.randrange(len(places))])
            self.kept.append((what, at, *(float(one[at]) for one in arrays)))
        self.valid += valid


def _count(every: int) -> int:
    return every if ALL else every // 12


@pytest.mark.parametrize("name", SPACES)
def test_arrays_say_what_the_scalar_path_says(name):
    (model, gpus, batch), more, every = SPACES[name]
    wishes = wishes_of(model, gpus, batch, **more)
    space = Megatron(wishes, megatron_space(wishes))
    drawn = _Sampler(7)
    space.run(drawn, None)
    choose, case_of = random.Random(11), case_maker(model, wishes)
    choose.shuffle(drawn.kept)
    for what, at, step_s, allocated, lacking in drawn.kept[: _count(every)]:
        case = case_of(space.options(Kept(step_s, allocated, lacking, (what, at))))
        result = priced(case)
        memory = result.memory
        assert memory.peak_allocated_bytes == allocated, case.command
        assert result.time.step_s == pytest.approx(step_s, rel=1e-9), case.command
        short = max(
            one.peak_allocated_bytes + one.context_bytes + one.communication_bytes
            for one in (memory.stages or (memory,))
        )
        assert short - wishes.device.usable_bytes == lacking, case.command
