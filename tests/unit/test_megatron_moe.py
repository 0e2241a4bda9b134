"""Experts on stack megatron: rows a rank sends and computes, what a sparse layer keeps, its buffers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.unit.megatron_support import deepseek, llama, megatron

MIXTRAL = load_model("mixtral-8x7b")
S, H, A, K, D, E, T_EXPERTS, M = 2048, 4096, 32, 8, 128, 8, 2, 14336


def attention(tp: int = 1, sp: bool = False) -> int:
    """x, normed and its statistic of the rank's positions; q, k, v, output, log-sum-exp; a generator."""
    own = S // tp if sp else S
    return own * (4 * H + 4) + S * (2 * D * (2 * A + 2 * K) + 4 * A) // tp + 16


def mixture(tokens: int, rows: int, width: int = M, several: bool = True) -> int:
    """Norm; router's choice (int64) and softmax (fp32); map of rows; sorted rows; fc1, act, their weight.

    tokens of the rank's stream, rows its experts compute; sorting keeps an int32 a row, twice.
    """
    router = tokens * T_EXPERTS * (8 + 4)
    maps = 4 * tokens * (2 * E + 1) + 2 * 4 * rows * several
    return tokens * (4 * H + 4) + router + maps + rows * (2 * H + 6 * width + 2)


def kept(config: ModelConfig = MIXTRAL, layout: dict[str, object] | None = None, **setup: object):
    return megatron(config, ParallelPlan(**layout or {}), **setup)[1].saved_per_layer_bytes


def test_every_rank_with_all_experts():
    assert kept() == attention() + mixture(S, S * T_EXPERTS)


def test_one_expert_a_rank_needs_no_sorting():
    """ep 8 of 8: as many rows come as go, where every rank receives the same."""
    expected = attention() + mixture(S, S * T_EXPERTS, several=False)
    assert kept(layout={"dp": 8, "ep": 8}) == expected


def test_an_expert_whole_beside_tensor_parallelism():
    """tp 2, etp 1: half the positions a rank, whole experts."""
    layout = {"tp": 2, "sp": True, "dp": 4, "ep": 4, "etp": 1}
    own = S // 2
    assert kept(layout=layout) == attention(2, True) + mixture(own, own * T_EXPERTS)


def test_an_expert_divided_over_tensor_parallel_ranks():
    """tp 2, etp 2: rows of both ranks, half of each expert's width."""
    layout = {"tp": 2, "sp": True, "dp": 4, "ep": 4}
    own = S // 2
    assert kept(layout=layout) == attention(2, True) + mixture(own, 2 * own * T_EXPERTS, M // 2)


@pytest.mark.parametrize("imbalance", [1.0, 1.5, 4.0])
def test_imbalance_multiplies_the_rows_of_the_fullest_rank(imbalance):
    rows = int(S * T_EXPERTS * imbalance)
    expected = attention() + mixture(S, rows, several=False)
    assert kept(layout={"dp": 8, "ep": 8}, imbalance=imbalance) == expected


def test_imbalance_between_ranks_is_nothing_where_each_has_every_expert():
    assert kept(imbalance=4.0) == kept()


def test_a_capacity_bounds_the_rows_of_the_fullest_rank():
    """Factor 1.25: an expert takes 640 rows of each of 8 ranks; one byte an entry marks which."""
    rows = 8 * 640
    layout = {"dp": 8, "ep": 8}
    expected = attention() + mixture(S, rows, several=False) + S * E
    assert kept(layout=layout, imbalance=4.0, capacity_factor=1.25) == expected
    balanced = attention() + mixture(S, S * T_EXPERTS, several=False) + S * E
    assert kept(layout=layout, capacity_factor=1.25) == balanced


def test_padding_to_the_capacity_computes_it_whatever_comes():
    """Two experts a rank: chunks of one length need no map of where each row went."""
    layout = {"dp": 8, "ep": 4}
    rows = 640 * E
    expected = attention() + mixture(S, rows) - 8 * rows + S * E
    assert kept(layout=layout, capacity_factor=1.25, pad_to_capacity=True) == expected
    alone = attention() + mixture(S, rows) - 8 * rows + S * E
    assert kept(capacity_factor=1.25, pad_to_capacity=True) == alone


def test_a_capacity_below_the_mean_drops_rows():
    """Factor 0.5: a quarter of 512 rows an expert."""
    plan, _ = megatron(MIXTRAL, ParallelPlan(dp=8, ep=8), capacity_factor=0.5)
    assert (plan.values["C"], plan.values["R_s"], plan.values["R"]) == (256, 2048, 2048)


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"capacity_factor": 0.0}, "rule: 0 < factor"),
        ({"pad_to_capacity": True}, "rule: beside one"),
        ({"capacity_factor": 1.25, "stack": "torch"}, "valid: --stack megatron"),
    ],
)
def test_capacities_that_mean_nothing_are_refused(setup, said):
    with pytest.raises(ConfigError, match=said):
        TrainingSetup(**{"stack": "megatron"} | setup)


def test_a_capacity_of_a_model_without_experts_is_said_to_mean_nothing():
    plan, _ = megatron(llama(), capacity_factor=1.25)
    assert any("capacity-factor 1.25 has no effect" in said for said in plan.resolved.notes)


def test_a_router_in_fp32_keeps_wider_probabilities():
    """DeepSeek's: weights of rows (R), of a token's choice (T t) and sum (T), scores (T E) at 4 bytes."""
    tokens, rows, experts, each = S, S * 8, 256, 8
    narrow = deepseek()
    assert narrow.moe is not None
    wide = deepseek(moe=replace(narrow.moe, scoring="sigmoid", fp32_router=True))
    narrow = deepseek(moe=replace(narrow.moe, scoring="sigmoid"))
    once = 2 * (rows + tokens * each + tokens)
    scores = 2 * tokens * experts  # bf16 scores beside the fp32 sigmoid; in fp32 they are one
    assert kept(wide) - kept(narrow) == once - scores


def test_dispatchers_hold_what_the_next_micro_batch_replaces():
    """Each sparse layer: probabilities (2 bytes) and map of (T, E); rows' places if computed again."""
    tables = S * E * (2 + 1)
    places = S * (2 * E + 1) * 4
    plan, _ = megatron(MIXTRAL)
    whole, _ = megatron(MIXTRAL, recompute="full")
    dense = dict(plan.strategy.fixed_bytes(plan))
    again = dict(whole.strategy.fixed_bytes(whole))
    assert again["buffers"] - dense["buffers"] == 32 * places
    fewer, _ = megatron(MIXTRAL, num_layers=31)
    assert dense["buffers"] - fewer.strategy.fixed_bytes(fewer)["buffers"] == tables


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"dp": 8, "ep": 3}, "valid: 1, 2, 4, 8"),
        (
            {"tp": 2, "dp": 4, "ep": 8},
            "etp .tp unless stated.: got 2 beside ep 8; .* valid: --etp 1$",
        ),
        ({"dp": 8, "ep": 2, "etp": 3}, "divides an expert's width 14336"),
        ({"tp": 2, "sp": False, "dp": 4}, "valid: --sp"),
    ],
)
def test_layouts_experts_cannot_have(layout, said):
    with pytest.raises(ConfigError, match=said):
        megatron(MIXTRAL, ParallelPlan(**layout))


def test_experts_of_a_model_without_any():
    with pytest.raises(ConfigError, match="etp: got 2; rule: llama has no experts"):
        megatron(llama(), ParallelPlan(dp=2, etp=2))
