"""What of a rank's exchanges shows in its step, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.timing.exchanges import Exchange
from memcalc.engine.timing.overlap import Exposed, Phases, exposed

#: Four blocks of 10 s forward and 20 s backward; 3 s and 6 s outside them.
PHASES = Phases(10.0, 20.0, 4, 3.0, 6.0)
SLOWER = SimpleNamespace(overlap_slowdown=0.05)


def one(kind: str, seconds: float, calls: int = 4, **more: object) -> Exchange:
    """So many calls of `seconds` in all, in a micro-batch's forward, with nothing beside them."""
    usual = {
        "axis": "shard", "call_bytes": 1, "ranks": 8, "when": "forward", "per": "micro-batch",
        "overlaps": False, "tier": "link",
    }  # fmt: skip
    return Exchange(kind=kind, seconds=seconds, calls=calls, **{**usual, **more})  # type: ignore[arg-type]


def gather(each: float, when: str = "forward", per: str = "micro-batch") -> Exchange:
    return one("all_gather", 4 * each, when=when, per=per, overlaps=True, place="block")


def scatter(each: float) -> Exchange:
    return one("reduce_scatter", 4 * each, when="backward", overlaps=True, place="block")


def test_nothing_is_exchanged_by_one_rank():
    assert exposed((), PHASES) == Exposed()


def test_layers_exchanges_show_by_direction():
    """Tensor parallelism: forward's in forward, backward's and what is run again in backward."""
    found = [
        one("all_reduce", 2.0, axis="tp"),
        one("all_reduce", 3.0, axis="tp", when="backward"),
        one("all_reduce", 4.0, axis="tp", when="recompute"),
    ]
    assert exposed(found, PHASES)[:4] == (2.0, 7.0, 0.0, 0.0)


def test_what_runs_beside_a_product_shows_beyond_it():
    """Four calls of 1 s beside 0.75 s of products each: 1 s shows, 3 s do not."""
    found = [one("reduce_scatter", 4.0, axis="tp", when="backward", overlaps=True, beside_s=0.75)]
    result = exposed(found, PHASES)
    assert (result.backward_s, result.hidden_s) == (1.0, 3.0)


def test_a_fast_gather_shows_once():
    """Gathers of 2 s beside blocks of 10 s: the first one, and the root's."""
    root = one("all_gather", 1.5, 1, place="root")
    result = exposed([root, gather(2.0)], PHASES)
    assert (result.forward_s, result.hidden_s) == (1.5 + 2.0, 6.0)


def test_a_slow_gather_shows_beyond_each_block():
    """Gathers of 12 s: the first, and 2 s of each other."""
    assert exposed([gather(12.0)], PHASES).forward_s == 12.0 + 3 * 2.0


def test_exposed_exchanges_of_a_block_make_room_for_its_gather():
    """Blocks of 10 s and 2 s of tensor parallelism each: nothing of a gather of 12 s is left."""
    found = [one("all_reduce", 8.0, axis="tp"), gather(12.0)]
    assert exposed(found, PHASES).forward_s == 8.0 + 12.0


def test_backward_gathers_and_scatters_share_the_wires():
    """8 + 14 s beside blocks of 20 s: 2 s show of three; the first gather has the head's 6 s beside it.

    First gather 2 s, last scatter 14 s, the root's 1 s.
    """
    root = one("reduce_scatter", 1.0, 1, when="backward", place="root")
    result = exposed([gather(8.0, "backward"), scatter(14.0), root], PHASES)
    assert result.backward_s == 1.0 + 2.0 + 14.0 + 3 * 2.0
    assert result.hidden_s == 6.0 + 3 * 20.0


def test_tiers_work_side_by_side():
    """HSDP: 14 s a block on the link and 24 s on the network beside 20 s: 4 s show of three blocks.

    The last block's scatter and sum have nothing beside them.
    """
    summed = scatter(24.0)._replace(kind="all_reduce", axis="replica", tier="network")
    result = exposed([scatter(14.0), summed], PHASES)
    assert result.backward_s == 14.0 + 24.0 + 3 * 4.0
    assert result.hidden_s == 4 * 38.0 - result.backward_s


def test_gradients_alone_show_for_the_last_block():
    """SHARD_GRAD_OP: no gather in backward; the last block's scatter has nothing beside it."""
    assert exposed([scatter(5.0)], PHASES).backward_s == 5.0


def test_buckets_run_beside_the_last_backward():
    """60 s of buckets beside 80 s of blocks: the last bucket shows; 100 s: 20 s more."""
    last = one(
        "all_reduce", 2.0, 1, axis="dp", when="backward", per="step", overlaps=True, place="last"
    )
    rest = last._replace(seconds=60.0, calls=12, place="")
    assert exposed([rest, last], PHASES)[:4] == (0.0, 0.0, 2.0, 0.0)
    assert exposed([rest._replace(seconds=100.0), last], PHASES).last_s == 22.0


def test_what_comes_after_backward_shows_whole():
    """Megatron's default: gradients and parameters once a step; so does the norm."""
    found = [one("reduce_scatter", 5.0, 1, axis="dp", when="step", per="step")]
    assert exposed(found, PHASES._replace(micro_batches=8))[:4] == (0.0, 0.0, 0.0, 5.0)


def test_parameters_ahead_of_the_first_forward():
    """overlap_param_gather: 50 s beside 40 s of blocks, once."""
    found = [one("all_gather", 50.0, 1, axis="dp", per="step", overlaps=True)]
    assert exposed(found, PHASES)[:4] == (0.0, 0.0, 10.0, 0.0)


def test_reductions_without_overlap_show_in_the_last_micro_batch():
    """DeepSpeed's stage 1: in the backward of the last micro-batch, with nothing beside it."""
    found = [one("all_reduce", 7.0, 2, axis="dp", when="backward", per="step")]
    assert exposed(found, PHASES)[:4] == (0.0, 0.0, 7.0, 0.0)


def test_sends_between_stages_are_the_schedules():
    assert exposed([one("send", 9.0, axis="pp")], PHASES) == Exposed()


def test_compute_beside_a_collective_is_slower():
    """6 s hidden a micro-batch: 5 % of them, in the phase and in the step's sum."""
    result = exposed([gather(2.0)], PHASES._replace(micro_batches=3), SLOWER)  # type: ignore[arg-type]
    assert result.forward_s == pytest.approx(2.0 + 0.05 * 6.0)
    assert (result.hidden_s, result.slowed_s) == pytest.approx((18.0, 0.9))


_SECONDS = st.floats(0.0, 100.0)


@settings(max_examples=200, deadline=None)
@given(_SECONDS, _SECONDS, _SECONDS, _SECONDS, st.floats(0.0, 1.0), _SECONDS)
def test_slower_exchanges_never_shorten_a_step(fore, back, scattered, layer, faster, block):
    """All exchanges `faster` times as long: no phase gets longer; nothing shows beyond its seconds."""
    found = [
        gather(fore), gather(back, "backward"), scatter(scattered),
        one("all_reduce", layer, axis="tp", overlaps=True, beside_s=block / 8),
        one("all_reduce", back, 1, axis="dp", when="backward", per="step", overlaps=True),
    ]  # fmt: skip
    phases = Phases(block, 2 * block, 4, block / 3, block / 2)
    usual = exposed(found, phases, SLOWER)  # type: ignore[arg-type]
    quick = exposed(
        [o._replace(seconds=faster * o.seconds) for o in found],
        phases,
        SLOWER,  # type: ignore[arg-type]
    )
    for more, less in zip(usual[:4], quick[:4], strict=True):
        assert less <= more + 1e-9
    alone = sum(o.seconds for o in found)
    shown = sum(usual[:4]) - usual.slowed_s
    assert shown + usual.hidden_s == pytest.approx(alone)


def test_arrays_equal_numbers():
    numpy = pytest.importorskip("numpy")
    seconds = numpy.array([1.0, 8.0, 30.0])
    blocks = numpy.array([2.0, 10.0, 10.0])

    def both(each: object, block: object) -> Exposed:
        root = one("all_gather", each, 1, place="root")  # type: ignore[arg-type]
        found = [root, gather(each), gather(each, "backward"), scatter(each)]  # type: ignore[arg-type]
        return exposed(found, PHASES._replace(block_forward_s=block), SLOWER)  # type: ignore[arg-type]

    many = both(seconds, blocks)
    for index in range(3):
        single = both(float(seconds[index]), float(blocks[index]))
        assert many.forward_s[index] == single.forward_s
        assert many.backward_s[index] == single.backward_s


def test_copies_around_an_exchange_always_show():
    """On the compute stream: 0.5 s of a gather in each forward, 0.25 s once after the last backward."""
    found = [
        gather(2.0)._replace(copy_s=0.5),
        one("all_gather", 3.0, 1, axis="dp", when="step", per="step")._replace(copy_s=0.25),
    ]
    result = exposed(found, PHASES)
    assert (result.forward_s, result.step_s) == (2.0 + 0.5, 3.0 + 0.25)
