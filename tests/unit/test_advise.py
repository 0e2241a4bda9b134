"""The parts of advise: changes as options, combinations, reasons, what money buys, partial recomputation."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from memcalc.cli.app import parse_arguments
from memcalc.cli.solve import base_options
from memcalc.cli.variant_cases import Maker
from memcalc.cli.variants import case_of
from memcalc.planning.advise.change import Change, Situation, kind_of, merged, words_of
from memcalc.planning.advise.combine import by_speed, to_fit, to_speed
from memcalc.planning.advise.layouts import layouts, stacks, way_of
from memcalc.planning.advise.money import more_gpus, other_gpus
from memcalc.planning.advise.partial import fewer_blocks
from memcalc.planning.advise.price import Prices
from memcalc.planning.advise.reasons import why
from memcalc.planning.advise.single import recompute, singles
from memcalc.planning.cases import point_of

_FUSED = Change("impl", "same", {"optimizer-impl": "fused"})
_EIGHT = Change("optimizer", "numerics", {"optimizer": "adamw-8bit"})


def _prices(words: str) -> Prices:
    case = case_of(parse_arguments("estimate", shlex.split(words)))
    result = point_of(case).result
    assert result is not None
    maker = Maker()

    def make(options: dict[str, Any]) -> Any:
        return maker.case({}, dict(options))

    return Prices(Situation(base_options(case), case, result), make)


def test_changes_are_options_put_over_those_stated() -> None:
    base = {"model": "gpt2", "tp": "2", "seq": "512"}
    change = Change("layout", "same", {"tp": None, "fsdp": True})
    assert merged(base, [change, _FUSED]) == {
        "model": "gpt2", "seq": "512", "fsdp": True, "optimizer-impl": "fused",
    }  # fmt: skip
    assert words_of(base, [change, _FUSED]) == "--fsdp --optimizer-impl fused no --tp"
    assert kind_of([_FUSED, _EIGHT]) == "numerics" and kind_of([]) == "same"


def test_what_a_setup_does_already_is_not_proposed() -> None:
    words = "gpt2 --gpu 4090 --optimizer-impl fused --recompute full --loss fused --precision bf16"
    found = singles(_prices(words).at)
    stated = {"optimizer-impl": "fused", "recompute": "full", "loss": "fused", "precision": "bf16"}
    assert found and not any(
        change.options.get(name) == value for change in found for name, value in stated.items()
    )


def test_a_price_is_that_of_its_command() -> None:
    prices = _prices("gpt2 --gpu 4090 --seq 256")
    priced = prices.exact(_FUSED)
    assert priced is not None and priced.command.endswith("--seq 256 --optimizer-impl fused")
    case = case_of(parse_arguments("estimate", shlex.split(priced.command)[2:]))
    alone = point_of(case).result
    assert alone is not None and alone.memory == priced.result.memory
    count = prices.count
    assert prices.exact(_FUSED) == priced and prices.count == count
    assert prices.quick(Change("pp", "same", {"pp": "99"})) is None


def test_a_quick_price_never_needs_more_than_the_exact_one() -> None:
    prices = _prices("llama-3.2-1b --gpu 4090 --layers 4")
    for change in singles(prices.at):
        quick, exact = prices.quick(change), prices.exact(change)
        if quick is not None and exact is not None:
            assert quick.need <= exact.need, change


def test_two_changes_are_combined_where_one_is_too_little() -> None:
    prices = _prices("llama-3.2-1b --gpu 4090 --gpu-memory 21.2GiB --micro-batch 2")
    alone = prices.quick_all(singles(prices.at))
    same = [one for one in alone if one.kind == "same" and one.changes[0].axis != "offload"]
    found = to_fit(prices, same, same)
    assert found and all(len(one.changes) > 1 and one.fits for one in found)
    assert not any(one.fits for one in same if len(one.changes) == 1)
    for one in found:  # each change of a combination is needed, or makes it faster
        for change in one.changes:
            fewer = prices.quick(*(kept for kept in one.changes if kept is not change))
            assert fewer is None or not fewer.fits or fewer.tokens_per_s < one.tokens_per_s


def test_gains_are_added_up_as_long_as_it_fits() -> None:
    prices = _prices("llama-3.2-1b --gpu h100 --attention eager --layers 4")
    gains = [one for one in prices.quick_all(singles(prices.at)) if one.kind == "same" and one.fits]
    best = to_speed(prices, gains)
    assert best is not None and best.fits and len(best.changes) > 1
    assert best.tokens_per_s > by_speed(gains)[0].tokens_per_s


def test_the_fewest_blocks_are_recomputed() -> None:
    prices = _prices("llama-3.2-1b --gpu h100 --micro-batch 8 --loss chunked --gpu-memory 45GiB")
    (found,) = fewer_blocks(prices)
    count = int(found.words.split("full:")[1])
    assert 1 < count < 16 and found.fits
    less = prices.exact(recompute(f"full:{count - 1}"))
    assert less is not None and not less.fits
    assert fewer_blocks(_prices("gpt2 --gpu 4090")) == []


def test_packed_weights_are_proposed_whole_on_every_gpu() -> None:
    prices = _prices("llama-3.2-1b --gpu 4090 --gpus 2 --fsdp --micro-batch 16")
    adapted = [change for change in singles(prices.at) if change.axis == "peft"]
    assert [change.options["peft"] for change in adapted] == ["lora", "qlora"]
    assert "fsdp" not in adapted[0].options and adapted[1].options["fsdp"] is None
    packed = prices.quick(adapted[1])
    assert packed is not None and " --peft qlora" in packed.command


def test_money_buys_more_gpus_or_larger_ones() -> None:
    at = _prices("llama-3.1-8b --gpu a100-40gb --global-batch 8 --micro-batch 1").at
    more = list(more_gpus(at))
    assert more[0].options["gpus"] == "2" and more[0].options["fsdp"] is True
    assert more[0].options["global-batch"] == "8"
    assert "the batch grows to 16" in more[3].words
    larger = [change.options["gpu"] for change in other_gpus(at)]
    assert "h100-80gb" in larger and "rtx-4090" not in larger and "mi300x" not in larger
    cluster = _prices("gpt2 --cluster hgx-h100 --gpus 8").at
    assert list(other_gpus(cluster)) == []


def test_layouts_keep_the_gpus_and_the_batch() -> None:
    prices = _prices("llama-2-7b --cluster hgx-h100 --gpus 8 --global-batch 16 --layers 8")
    assert stacks(prices.at) == ["torch", "megatron", "deepspeed"]
    found = layouts(prices)
    ways = {way_of(one)[1:] for one in found}
    assert {("torch", "fsdp", ""), ("megatron", "tp", "pp", "1"), ("deepspeed", "3")} <= ways
    for one in found:
        assert one.gpus == 8 and one.result.setup["global_batch"] == 16, one.words
    assert stacks(_prices("llama-2-7b --gpu h100 --gpus 2 --stack megatron --layers 2").at) == [
        "megatron"
    ]
    assert layouts(_prices("gpt2 --gpu h100")) == []


def test_reasons_name_what_moves() -> None:
    prices = _prices("llama-3.2-1b --gpu h100 --micro-batch 4")
    base = prices.at.result
    again, moved = prices.exact(recompute("full")), prices.exact(
        Change("offload", "same", {"offload": "activations"})
    )  # fmt: skip
    assert again is not None and moved is not None
    assert "activations -" in why(base, again.result)
    assert "recomputation +" in why(base, again.result)
    said = why(base, moved.result)
    assert "host memory +" in said and "offload +" in said and "offload 8" in said
    assert why(base, base) == "nothing moves"


@pytest.mark.parametrize("micro", [1, 4])
def test_larger_micro_batches_keep_the_batch_or_say_that_it_grows(micro: int) -> None:
    at = _prices(f"gpt2 --gpu h100 --micro-batch {micro} --grad-accum 2").at
    for change in singles(at):
        if change.axis == "micro":
            assert change.kind == "same" and change.options["global-batch"] == str(2 * micro)
    single = _prices(f"gpt2 --gpu h100 --micro-batch {micro}").at
    grown = [c for c in singles(single) if c.axis == "micro" and c.kind == "method"]
    assert grown and all("the batch grows" in change.words for change in grown)
