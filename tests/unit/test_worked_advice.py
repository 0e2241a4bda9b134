"""What a planner must advise (cases A1 to A6), for the reasons that the estimates give.

Each case is a model, GPUs and a network; what is recommended must come out of the prices: the order from
speed, the reasons from the parts of time and memory. Layouts are compared at the same batch.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worked.advice import (
    ACTIVATIONS_TOO_LARGE,
    DIVIDED,
    FAST_NETWORK,
    NO_NVLINK,
    PLAIN,
    SLOW_NETWORK,
    STATES_TOO_LARGE,
    THOUSANDS,
    WHOLE,
)
from benchmarks.worked.case import Case, answer
from tests.unit.worked_support import cases, hold

Row = dict[str, Any]


@cases("A")
def test_case(case: Case) -> None:
    hold(case)


def _advised(words: str) -> dict[str, Any]:
    return answer(f"advise {words} --top 60")


def _rows(words: str, kind: str = "same") -> list[Row]:
    return [row for row in _advised(words)["advice"] if row["kind"] == kind]


def _words(row: Row) -> set[str]:
    return set(row["change"].split())


def _share(row: Row, part: str) -> float:
    return float(row["time"][part] / row["step_s"])


def _fastest(rows: list[Row], *flags: str, without: tuple[str, ...] = ()) -> Row:
    """The fastest row whose change has all these options and none of those; rows that fit."""
    found = [
        row
        for row in rows
        if row["fits"] and set(flags) <= _words(row) and _words(row).isdisjoint(without)
    ]
    return max(found, key=lambda row: row["tokens_per_s"])


def test_a1_one_gpu_that_the_model_fits_is_used_plainly() -> None:
    """Nothing is offloaded, recomputed or adapted: each of these is priced, and slower or needless."""
    words = PLAIN
    found = _advised(words)
    assert found["fits"] is True and found["recommended"]
    costly = {"--offload", "--recompute", "--fsdp", "--peft", "--gpus", "--gpu", "--seq"}
    for row in found["advice"]:
        assert _words(row).isdisjoint(costly), row["change"]
        assert row["speed_change"] > 0 and row["fits"]
    as_stated = found["setup"]["tokens_per_s"]
    tried = [row for row in found["considered"] if _words(row) & {"--offload", "--recompute"}]
    assert len(tried) >= 5 and all(row["tokens_per_s"] < as_stated for row in tried)
    assert all(row["time"]["recompute_s"] or row["time"]["offload_s"] for row in tried)


def test_a2_one_gpu_too_small_for_the_states_offloads_or_trains_adapters() -> None:
    """8B on 24 GB: recomputing alone lowers nothing that decides; offload fits and takes the host's
    time; adapters have no states to speak of, are faster, and come last: they change the training."""
    words = STATES_TOO_LARGE
    found = _advised(words)
    assert found["fits"] is False
    kinds = [row["kind"] for row in found["advice"]]
    assert kinds == sorted(kinds, key=["same", "money", "numerics", "method"].index)
    offload = found["advice"][0]
    assert "--offload" in _words(offload) and offload["memory"]["host_bytes"] > 100e9
    assert _share(offload, "offload_s") > 0.5
    adapters = {row["change"].split("--peft ")[1].split()[0]: row for row in _rows(words, "method")
                if "--peft" in row["change"]}  # fmt: skip
    assert set(adapters) == {"lora", "qlora"}
    for row in adapters.values():
        assert "--recompute" in _words(row)  # the weights alone leave too little for activations
        assert row["memory"]["breakdown"]["optimizer"] < 1e9 and "adapters" in row["words"]
        assert row["tokens_per_s"] > 5 * offload["tokens_per_s"]
    assert (
        adapters["qlora"]["memory"]["breakdown"]["parameters"]
        < 0.5 * (adapters["lora"]["memory"]["breakdown"]["parameters"])
    )


def test_a2_one_gpu_too_small_for_activations_recomputes_before_it_offloads() -> None:
    """Both are enough; they are in the order of the time they take, after what takes none."""
    rows = _rows(ACTIVATIONS_TOO_LARGE)
    changes = [row["change"] for row in rows]
    recomputed = next(row for row in rows if "--recompute" in row["change"])
    offloaded = next(row for row in rows if "--offload activations" in row["change"])
    assert changes.index(recomputed["change"]) < changes.index(offloaded["change"])
    assert 0.05 < _share(recomputed, "recompute_s") < 0.4 < _share(offloaded, "offload_s")
    assert rows[0]["time"]["recompute_s"] == rows[0]["time"]["offload_s"] == 0
    assert rows[0]["tokens_per_s"] >= recomputed["tokens_per_s"]


def test_a3_one_node_whose_gpus_each_hold_the_model_keeps_it_whole() -> None:
    """Copies that at most share the optimizer: gathering or splitting weights exchanges more."""
    words = WHOLE
    assert _advised(words)["fits"] is True
    best = _rows(words)[0]
    assert _words(best).isdisjoint({"--tp", "--pp", "--fsdp"}) and "--zero" in _words(best)
    assert best["change"].split("--zero ")[1][0] in "12"
    more = ("--offload", "--optimizer-impl", "--compile")  # what is added to either
    considered = _advised(words)["considered"]
    split = _fastest(considered, "--tp", without=more)
    shared = _fastest(considered, "--fsdp", without=(*more, "--tp"))
    whole = _fastest(considered, "--zero", without=(*more, "--tp", "--pp"))
    assert whole["tokens_per_s"] > max(shared["tokens_per_s"], split["tokens_per_s"])
    assert _share(split, "exposed_communication_s") > _share(whole, "exposed_communication_s")


def test_a3_one_node_whose_gpus_do_not_hold_it_splits_it() -> None:
    words = DIVIDED
    found = _advised(words)
    assert found["fits"] is False
    rows = _rows(words)
    for way in ("--tp", "--pp", "--fsdp"):
        row = _fastest(rows, way)
        held, whole = (one["memory"]["breakdown"]["optimizer"] for one in (row, found["setup"]))
        assert held * 5 < whole  # an eighth; with fp32 copies of weights, where Megatron runs
        assert row["tokens_per_s"] > 0.9 * found["setup"]["tokens_per_s"]  # if it did fit
    assert not any(row["fits"] for row in found["considered"] if row["change"] == "--zero 1")


def test_a3_without_nvlink_stages_go_before_tensors() -> None:
    words = NO_NVLINK
    rows = _rows(words)
    assert "--pp" in _words(rows[0]) and "--tp" not in _words(rows[0])
    considered = _advised(words)["considered"]
    stages = _fastest(considered, "--pp", without=("--tp",))
    tensors = _fastest(considered, "--tp", without=("--pp",))
    assert stages["tokens_per_s"] > 1.2 * tensors["tokens_per_s"]
    assert _share(stages, "exposed_communication_s") < 0.1
    assert _share(tensors, "exposed_communication_s") > 0.3
    linked = _advised("llama-2-7b --cluster hgx-h100 --gpus 8 --global-batch 32")["considered"]
    over_nvlink = _fastest(linked, "--tp", without=("--pp",))
    assert _share(over_nvlink, "exposed_communication_s") < 0.2


def test_a4_many_nodes_and_a_fast_network_shard_or_split_in_three_ways() -> None:
    words = FAST_NETWORK
    rows = _rows(words)
    sharded = _fastest(rows, "--fsdp", without=("--tp", "--pp"))
    three = _fastest(rows, "--tp", "--pp", "--zero")
    assert abs(sharded["tokens_per_s"] / three["tokens_per_s"] - 1) < 0.25
    assert _share(sharded, "exposed_communication_s") < 0.15
    considered = _advised(words)["considered"]
    inside = [row for row in considered if "--tp 8" in row["change"] and row["fits"]]
    over = [row for row in considered if "--tp 16" in row["change"] and row["fits"]]
    best_in, best_over = (max(some, key=lambda row: row["tokens_per_s"]) for some in (inside, over))
    assert best_in["tokens_per_s"] > 1.2 * best_over["tokens_per_s"]
    assert _share(best_over, "exposed_communication_s") > 0.3


def test_a5_many_nodes_a_slow_network_and_little_memory_split_in_three_ways_with_zero_1() -> None:
    """25 Gb/s between nodes of 8 V100 with 16 GB: gathering weights over the network takes the step."""
    words = SLOW_NETWORK
    rows = _rows(words)
    three = _fastest(rows, "--tp", "--pp", "--zero")
    assert "--zero 1" in three["change"]
    assert three["tokens_per_s"] == rows[0]["tokens_per_s"]
    assert _share(three, "exposed_communication_s") < 0.15
    for row in rows:
        if "--fsdp" in _words(row) or "--zero 3" in row["change"]:
            assert row["tokens_per_s"] < 0.3 * three["tokens_per_s"]
            assert _share(row, "exposed_communication_s") > 0.7


def test_a6_thousands_of_gpus_split_in_three_ways_before_they_shard() -> None:
    """One sequence a GPU: sharding gathers all weights for it, or recomputes to fit; 3D does neither."""
    rows = _rows(THOUSANDS)
    assert {"--tp", "--pp", "--zero"} <= _words(rows[0]) and "--zero 1" in rows[0]["change"]
    assert "--recompute" not in _words(rows[0])
    sharded = [r for r in rows if "--fsdp" in _words(r) or "--zero 3" in r["change"]]
    assert sharded
    for row in sharded:
        assert row["tokens_per_s"] < rows[0]["tokens_per_s"]
        waits = _share(row, "exposed_communication_s") > 0.3
        assert waits or _share(row, "recompute_s") > 0.15
