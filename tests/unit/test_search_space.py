"""Megatron's space: what is in it, what is left out, and that every setup is one `estimate` takes."""

from __future__ import annotations

import pytest

from memcalc.engine.search.splits import Split, breaks_of, cut_of
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.planning.search.megatron_space import megatron_space, uneven
from memcalc.planning.search.wishes import Wishes
from tests.unit.search_support import wishes_of


def _degrees(wishes: Wishes, name: str) -> set[int]:
    return {getattr(one.plan.parallel, name) for one in megatron_space(wishes).families}


def test_degrees_divide_what_they_must():
    wishes = wishes_of("llama-3.1-8b", 64, 64, seq=8192)
    assert _degrees(wishes, "tp") == {1, 2, 4, 8}  # 8 key/value heads
    assert _degrees(wishes, "cp") == {1, 2, 4, 8}  # 1,024 positions a rank at least
    assert _degrees(wishes, "ep") == {1}
    splits = megatron_space(wishes).splits
    assert {split.pp for split in splits} == {1, 2, 4, 8, 16, 32}
    assert all(split.chunks <= 32 for split in splits)


def test_fixed_and_bounded_axes():
    wishes = wishes_of(
        "llama-3.1-8b", 64, 64, fixed={"tp": ["4"], "pp": ["2", "8"], "sp": ["yes"]},
        most={"vpp": 2, "cp": 1, "micro-batch": 2},
    )  # fmt: skip
    space = megatron_space(wishes)
    assert _degrees(wishes, "tp") == {4} and _degrees(wishes, "cp") == {1}
    assert {one.plan.parallel.sp for one in space.families} == {True}
    assert {split.pp for split in space.splits} == {2, 8}
    assert {split.vpp for split in space.splits} == {1, 2}
    assert all(one.micro_batches == (1, 2) for one in space.families)


def test_experts():
    wishes = wishes_of("mixtral-8x7b", 16, 64, layers=4, most={"tp": 2, "cp": 1})
    layouts = {
        (one.plan.parallel.tp, one.plan.parallel.ep, one.plan.parallel.etp)
        for one in megatron_space(wishes).families
    }
    assert layouts == {(tp, ep, etp) for tp in (1, 2) for ep in (1, 2, 4, 8) for etp in {1, tp}}
    assert all(one.plan.parallel.sp for one in megatron_space(wishes).families
               if one.plan.parallel.tp > 1)  # fmt: skip


def test_ways_to_hold_states():
    options = megatron_space(wishes_of("llama-3.2-1b", 8, 8)).options
    assert len(options) == len(set(options))
    assert not any(one.overlap_param_gather and not one.overlap_grad_reduce for one in options)
    assert {one.replicas for one in options if one.zero} == {1, 2, 4}
    fixed = megatron_space(wishes_of("llama-3.2-1b", 8, 8, fixed={"zero": ["0"]})).options
    assert {one.zero for one in fixed} == {0}


@pytest.mark.parametrize(("layers", "split"), [(126, Split(16)), (96, Split(8)), (61, Split(4))])
def test_uneven_stages_hold_every_block_and_fewer_at_the_ends(layers, split):
    found = list(uneven(layers, split))
    assert found and len(found) == len(set(found))
    for counts in found:
        assert sum(counts) == layers and len(counts) == split.chunks
        first, *inner, last = counts
        assert len(set(inner)) == 1
        assert inner[0] >= max(first, last) and 2 * min(first, last) >= inner[0]


def test_llama_405b_has_the_published_stages():
    """arXiv:2407.21783, section 3.3.2: one block fewer on the first and on the last stage."""
    assert (7, *(8,) * 14, 7) in set(uneven(126, Split(16)))
    assert list(uneven(126, Split(16, 4, "interleaved"))) == [(1, *(2,) * 62, 1)]


def test_ranks_that_are_alike_are_one_kind():
    cut = cut_of(load_model("deepseek-v3"), Split(16))
    assert sum(chunk.layers for chunk in map(cut.classes.__getitem__, cut.of)) == 61
    assert cut.classes[cut.of[0]][:2] == (3, 1)  # dense blocks come first
    assert [rank for rank, _ in cut.ranks] == [0, 1, 13, 15]
    assert breaks_of(cut.classes, cut.most_layers) == [0, 3, 4]


def test_what_no_stack_searches_is_refused():
    with pytest.raises(ConfigError, match="fix: got 'dp'; valid: tp"):
        wishes_of("llama-3.2-1b", 8, 8, fixed={"dp": ["8"]})
    with pytest.raises(ConfigError, match="gpus: got 0; rule: at least 1"):
        wishes_of("llama-3.2-1b", 0, 8)
    with pytest.raises(ConfigError, match="min-headroom: got 100%"):
        wishes_of("llama-3.2-1b", 8, 8, headroom=1.0)
