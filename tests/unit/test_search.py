"""A search's answers: the best is the true best, the front is the front, and what is said of it is so."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.parallel import divisors
from memcalc.planning.cases import Case
from memcalc.planning.search.search import search, spaces_of
from memcalc.planning.search.wishes import Wishes
from tests.unit.search_support import case_maker, interrupt, priced, wishes_of

#: Three small spaces, and how many setups `estimate` takes of each.
SPACES = {
    "dense": (
        ("llama-3.2-1b", 8, 16),
        {"layers": 4, "most": {"tp": 2, "cp": 1, "micro-batch": 2, "vpp": 2}, "memory": 9 << 30},
    ),
    "tied, uneven": (
        ("gpt2", 4, 8),
        {"layers": 5, "seq": 1024, "most": {"micro-batch": 4}, "memory": 5 << 29},
    ),
    "experts": (
        ("mixtral-8x7b", 8, 8),
        {"layers": 2, "seq": 512, "most": {"tp": 2, "cp": 1, "micro-batch": 1}, "memory": 30 << 30},
    ),
}


def _every(wishes: Wishes) -> Iterator[dict[str, Any]]:
    """Options of every setup that could be in a space, made without it: what is no setup is refused."""
    config, gpus, layers = wishes.config, wishes.gpus, wishes.config.num_hidden_layers
    moe = config.moe
    recomputes = ["none", "selective", *(f"full:{k}" for k in range(1, layers)), "full"]
    states = [("0", 1, flag, False) for flag in (False, True)]
    states += [("1", replicas, *flags) for replicas in (1, 2, 4) if replicas < gpus
               for flags in ((False, False), (True, False), (True, True))]  # fmt: skip
    most = {"tp": 64, "cp": gpus, "vpp": 12, "micro-batch": 32, **wishes.most}
    for tp, pp, cp in product(divisors(gpus), repeat=3):
        if tp * pp * cp > gpus or tp > most["tp"] or cp > most["cp"] or pp > layers:
            continue
        if cp > 1 and wishes.setup.seq_len // cp < 1024:
            continue
        dp = gpus // (tp * pp * cp)
        shapes = [{"vpp": str(v), "schedule": "interleaved"} for v in divisors(-(-layers // pp))
                  if 1 < v <= most["vpp"] and pp > 1 and pp * v <= layers]  # fmt: skip
        experts = product(divisors(moe.num_experts), sorted({1, tp})) if moe else [(1, None)]
        batches = [m for m in divisors(wishes.batch) if m <= most["micro-batch"]]
        sps = [None] if tp == 1 else [True] if moe else [True, False]
        for shape, (ep, etp), micro, recompute, state, sp in product(
            [{}, *shapes], list(experts), batches, recomputes, states, sps
        ):
            longest = -(-layers // (pp * int(shape.get("vpp", 1))))
            if recompute.startswith("full:") and int(recompute[5:]) >= longest:
                continue  # full, in other words
            yield from _one((tp, pp, cp, dp), shape, (ep, etp), (micro, recompute), state, sp, gpus)


def _one(degrees, shape, experts, batch, state, sp, gpus) -> Iterator[dict[str, Any]]:
    (tp, pp, cp, dp), (ep, etp), (micro, recompute) = degrees, experts, batch
    zero, replicas, reduce, gather = state
    shard = dp * cp // replicas
    if zero == "1" and (dp * cp % replicas or shard == 1):
        return
    if zero == "0" and reduce and dp * cp == 1:
        return
    found: dict[str, Any] = {
        "stack": "megatron", "gpus": str(gpus), "tp": str(tp), "pp": str(pp), "cp": str(cp),
        "ep": str(ep), "micro-batch": str(micro), "recompute": recompute, "zero": zero, **shape,
    }  # fmt: skip
    found |= {"etp": str(etp)} if etp is not None else {}
    found |= {"no-sp": True} if sp is False else {}
    found |= {"shard": str(shard)} if replicas > 1 else {}
    found |= {"overlap-grad-reduce": True} if reduce else {}
    found |= {"overlap-param-gather": True} if gather else {}
    yield found


@pytest.mark.parametrize("name", SPACES)
def test_the_best_is_the_true_best(name):
    (model, gpus, batch), more = SPACES[name]
    wishes = wishes_of(model, gpus, batch, fixed={"stage-layers": ["even"]}, **more)
    if wishes.config.moe:
        wishes = wishes_of(
            model, gpus, batch, **more,
            fixed={"stage-layers": ["even"], "recompute": ["none", "full", "full:1"]},
        )  # fmt: skip
    case_of = case_maker(model, wishes)
    found = search(wishes, case_of)
    every = []
    for options in _every(wishes):
        if wishes.config.moe and options["recompute"] == "selective":
            continue
        case = case_of(options)
        try:
            result = priced(case) if isinstance(case, Case) else None
        except ConfigError:
            continue
        if result is not None:
            every.append((result.time.step_s, result.memory.peak_allocated_bytes, case))
    assert found["valid"] == len(every)
    every.sort(key=lambda one: one[:2])
    best = next(one for one in every if priced(one[2], True).fits)
    assert found["best"][0]["step_s"] == pytest.approx(best[0], rel=1e-9)
    assert 0 < found["may_fit"] < found["valid"]  # else the memory decides nothing


@pytest.fixture(scope="module")
def answer():
    wishes = wishes_of("llama-3.2-3b", 32, 64, memory=24 << 30, top=4)
    return wishes, search(wishes, case_maker("llama-3.2-3b", wishes))


def test_rows_are_what_estimate_says(answer):
    wishes, found = answer
    case_of = case_maker("llama-3.2-3b", wishes)
    assert len(found["best"]) == 4
    assert {row["reserved"] for row in found["best"]} == {"simulated"}
    for row in found["best"]:
        result = priced(case_of(row["options"]), True)
        assert result.fits and result.verdict == row["verdict"]
        assert result.time.step_s == row["step_s"]
        assert result.memory.device_used_bytes == row["device_used_bytes"]
        assert result.memory.peak_requested_bytes == row["peak_requested_bytes"]


def test_rows_beyond_what_is_soon_replayed_are_scaled(monkeypatch):
    monkeypatch.setattr("memcalc.planning.search.search._MOST_REPLAYED", 1)
    wishes = wishes_of("llama-3.2-3b", 8, 16, top=3)
    case_of = case_maker("llama-3.2-3b", wishes)
    first, *others = search(wishes, case_of)["best"]
    assert first["reserved"] == "simulated"
    ratio = first["peak_reserved_bytes"] / first["peak_allocated_bytes"]
    for row in others:
        assert row["reserved"] == f"{ratio:.4f} of allocated bytes"
        assert row["peak_reserved_bytes"] == round(ratio * row["peak_allocated_bytes"])
        exact = priced(case_of(row["options"]), True)
        assert row["peak_requested_bytes"] == exact.memory.peak_requested_bytes
        assert row["device_used_bytes"] == pytest.approx(exact.memory.device_used_bytes, rel=0.1)


def test_rows_are_in_order_and_differ_in_more_than_states(answer):
    _, found = answer
    steps = [row["step_s"] for row in found["best"]]
    assert steps == sorted(steps)
    states = {"zero", "shard", "overlap-grad-reduce", "overlap-param-gather"}
    layouts = [
        tuple(item for item in row["options"].items() if item[0] not in states)
        for row in found["best"]
    ]
    assert len(set(layouts)) == len(layouts)


def test_the_front_trades_memory_for_speed(answer):
    _, found = answer
    memory = [point["allocated_bytes"] for point in found["pareto"]]
    speed = [point["tokens_per_s"] for point in found["pareto"]]
    assert len(memory) > 3
    assert memory == sorted(memory) and speed == sorted(speed)


def test_near_misses_are_faster_and_say_what_they_lack(answer):
    _, found = answer
    best = found["best"][0]["step_s"]
    assert found["near_misses"]
    for row in found["near_misses"]:
        assert row["step_s"] < best and row["fits"] is False and row["lacking_bytes"] > 0
        assert row["faster"] == pytest.approx(best / row["step_s"] - 1)


def test_why_adds_up(answer):
    _, found = answer
    saved = sum(part["saved_s"] for part in found["why"]["parts"].values())
    first, second = found["best"][:2]
    assert saved == pytest.approx(second["step_s"] - first["step_s"], rel=1e-6, abs=1e-9)
    assert found["why"]["differs"]
    assert 0 < found["stability"]["shared_share"] <= 1


def test_headroom_is_kept():
    wishes = wishes_of("llama-3.2-1b", 8, 16, memory=16 << 30, headroom=0.3, top=2)
    found = search(wishes, case_maker("llama-3.2-1b", wishes))
    for row in found["best"]:
        assert row["headroom_bytes"] >= 0.3 * wishes.device.usable_bytes


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt2"])
def test_one_gpu(model):
    wishes = wishes_of(model, 1, 4, layers=3, seq=1024, top=1)
    found = search(wishes, case_maker(model, wishes))
    assert found["valid"] == 3 * (4 + 1)  # three micro-batches, none to full and selective
    assert found["best"][0]["fits"]


def test_a_prime_number_of_gpus_leaves_data_parallelism():
    wishes = wishes_of("llama-3.2-1b", 7, 14, top=1)
    row = search(wishes, case_maker("llama-3.2-1b", wishes))["best"][0]
    assert row["dp"] == 7


def test_an_interrupted_search_keeps_what_it_found(monkeypatch):
    wishes = wishes_of("llama-3.2-1b", 8, 16, top=2)
    interrupt(monkeypatch)
    found = search(wishes, case_maker("llama-3.2-1b", wishes))
    assert found["interrupted"] and found["best"] and found["valid"] > 0


def test_other_stacks_have_spaces_of_their_own():
    wishes = wishes_of(
        "llama-3.2-1b", 4, 8, layers=2, stacks=("torchtitan", "deepspeed"), top=3,
        most={"micro-batch": 1, "tp": 2},
    )  # fmt: skip
    found = search(wishes, case_maker("llama-3.2-1b", wishes))
    assert {row["options"]["stack"] for row in found["best"]} <= {"torchtitan", "deepspeed"}
    assert found["valid"] > 10
    with pytest.raises(ConfigError, match="stack: got 'hf'; rule: a stack with a space"):
        spaces_of(wishes_of("llama-3.2-1b", 4, 8, stacks=("hf",)))
