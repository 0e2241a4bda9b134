"""What is kept of blocks of setups: held against all of them at once."""

from __future__ import annotations

import numpy as np
import pytest

from memcalc.planning.search.collect import Collector, Front, front_of

_SCALE = 1e3


def _blocks(seed: int, count: int):
    """Blocks of setups with seconds, bytes, and what is lacking; some places are none."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        shape = (3, int(random.integers(1, 20)), int(random.integers(1, 9)))
        allocated = random.uniform(1, _SCALE, shape)
        step = random.uniform(1, 2, shape) + 500 / allocated
        lacking = allocated - _SCALE / 2
        none = random.random(shape) < 0.2
        step[none] = allocated[none] = lacking[none] = np.inf
        yield step, allocated, lacking


@pytest.mark.parametrize("seed", range(6))
def test_what_is_kept_is_what_a_look_at_all_would_keep(seed):
    into, every = Collector(7, _SCALE), []
    for number, arrays in enumerate(_blocks(seed, 30)):
        into.add(arrays, int(np.isfinite(arrays[0]).sum()), number)
        every.append(np.stack([one.ravel() for one in arrays]))
    step, allocated, lacking = np.concatenate(every, axis=1)
    there, fits = np.isfinite(step), lacking <= 0
    assert (into.valid, into.may_fit) == (there.sum(), fits.sum())
    assert [one.step_s for one in into.fastest] == sorted(step[fits])[:7]
    front = front_of(allocated[fits], step[fits])
    expected = list(zip(allocated[fits][front], step[fits][front], strict=True))
    assert [(one.allocated, one.step_s) for one in into.front.points()] == expected
    out = there & ~fits
    misses = front_of(lacking[out], step[out])
    expected = list(zip(lacking[out][misses], step[out][misses], strict=True))
    assert [(one.lacking, one.step_s) for one in into.misses.points()] == expected


def test_a_kept_setup_knows_its_place():
    into = Collector(1, _SCALE)
    step = np.array([[[3.0, 2.0], [1.0, 4.0]]])
    into.add((step, step * 10, None), 4, "block")
    assert into.fastest[0].what == ("block", (0, 1, 0))


def test_memory_that_must_stay_free_counts_as_taken():
    into = Collector(3, _SCALE, limit_bytes=-50)
    lacking = np.array([-60.0, -40.0, 10.0])
    into.add((np.ones(3), np.ones(3), lacking), 3, None)
    assert into.may_fit == 1
    assert [one.lacking for one in into.misses.points()] == [-40.0]


def test_a_front_of_nothing_is_empty():
    assert Front(_SCALE, 1).points() == []
