"""Which layouts there are for so many processes, who is where, and which models they can run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.harness.ranks.layout import Layout, layout_of, world
from memcalc.harness.ranks.layout_rules import check_layout
from memcalc.inputs.model import ModelConfig
from tests.harness.models import GPT2, LLAMA, MIXTRAL, cpu_plan


@pytest.mark.parametrize(
    ("stated", "size", "degrees"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 8, (8, 1, 1)),
        ({"tp": 2, "fsdp": True}, 8, (4, 2, 1)),
        ({"tp": 2, "pp": 4}, 8, (1, 2, 4)),
        ({"dp": 2, "pp": 2}, 4, (2, 1, 2)),
    ],
)
def test_dp_is_what_the_other_degrees_leave(
    stated: dict[str, Any], size: int, degrees: tuple[int, int, int]
) -> None:
    layout = layout_of(stated, size)
    assert (layout.dp, layout.tp, layout.pp) == degrees and layout.size == size


@pytest.mark.parametrize(
    ("stated", "size", "line"),
    [
        ({"tp": 2}, 1, "tp: got 2 in one process; rule: run under torchrun --nproc-per-node 2"),
        ({"pp": 2, "tp": 4}, 1,
         "tp: got 4 in one process; rule: run under torchrun --nproc-per-node 8"),
        ({"tp": 3}, 8,
         "tp: got 3; rule: dp x tp x pp = 8, the processes of torchrun; valid: 1, 2, 4, 8"),
        ({"dp": 3, "tp": 1, "pp": 1}, 4,
         "dp: got 3; rule: dp x tp x pp = 4, the processes of torchrun; valid: 4"),
        ({"dp": 3, "pp": 2}, 8,
         "pp: got 2; rule: dp x tp x pp = 8, the processes of torchrun; "
         "valid: none with the other degrees at 3"),
        ({"schedule": "gpipe"}, 2,
         "schedule: got no stages; rule: of a pipeline; valid: --pp above 1"),
        ({"pp": 2, "schedule": "1f1b2"}, 2, "schedule: got '1f1b2', not known; nearest: 1f1b"),
        ({"sp": True}, 2,
         "sp: got tp 1; rule: beside tensor parallelism; valid: --tp above 1"),
        ({"tp": 2}, 4,
         "tp: got 2 with dp 2 and no fsdp; rule: DDP takes no split parameters; "
         "valid: --fsdp, or --tp 4"),
    ],
)  # fmt: skip
def test_degrees_that_cannot_be_are_refused_in_a_line(
    stated: dict[str, Any], size: int, line: str
) -> None:
    with pytest.raises(ConfigError) as error:
        layout_of(stated, size)
    assert str(error.value) == line


def test_every_rank_has_a_place_of_its_own() -> None:
    layout = Layout(dp=2, tp=2, pp=3, fsdp=True)
    places = [layout.place(rank) for rank in range(12)]
    assert len(set(places)) == 12
    assert places[0] == (0, 0, 0, 0)
    assert places[1] == (0, 0, 1, 0)  # parts of a layer are neighbours
    assert places[2] == (0, 1, 0, 0) and places[4] == (1, 0, 0, 0)


def test_ranks_that_share_sequences_lie_between_parts_and_copies() -> None:
    layout = Layout(dp=2, cp=3, tp=2, fsdp=True)
    places = [layout.place(rank) for rank in range(layout.size)]
    assert len(set(places)) == 12 and layout.shard_ranks == 6
    assert places[2] == (0, 0, 0, 1) and places[6] == (0, 1, 0, 0)


@pytest.mark.parametrize(("layers", "pp"), [(12, 4), (3, 2), (7, 3), (2, 2)])
def test_stages_have_all_blocks_once_and_differ_by_one(layers: int, pp: int) -> None:
    stages = Layout(pp=pp).stage_layers(layers)
    assert [index for stage in stages for index in stage] == list(range(layers))
    sizes = [len(stage) for stage in stages]
    assert len(sizes) == pp and sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


TP, PP, FSDP = Layout(tp=2), Layout(pp=2), Layout(dp=2, fsdp=True)
MLP = replace(LLAMA, intermediate_size=161)
VOCABULARY = replace(LLAMA, vocab_size=501)
OLMO = replace(LLAMA, qk_norm="full")
ALIBI = replace(GPT2, position_embedding="alibi")


@pytest.mark.parametrize(
    ("layout", "config", "setup", "words"),
    [
        (Layout(tp=4), LLAMA, {}, "tp: got 4; rule: divides num_key_value_heads = 2; valid: 1, 2"),
        (Layout(tp=3), LLAMA, {}, "divides num_attention_heads = 4; valid: 1, 2"),
        (TP, MLP, {}, "divides intermediate_size = 161; valid: 1"),
        (TP, VOCABULARY, {}, "divides vocab_size = 501; valid: 1; or --set model.vocab_size=502"),
        (Layout(tp=2, sp=True), LLAMA, {"seq_len": 49}, "seq: got 49 with sp over 2 ranks; "
         "rule: a multiple of 2; nearest valid: 48"),
        (TP, MIXTRAL, {}, "experts are not split over ranks; valid: 1"),
        (TP, OLMO, {}, "q and k are normed over all heads; valid: 1"),
        (TP, ALIBI, {"attention": "eager"}, "alibi positions differ from head to head; valid: 1"),
        (TP, LLAMA, {"loss": "fused"}, "loss: got fused with tp 2"),
        (TP, LLAMA, {"optimizer": "muon"}, "optimizer: got muon with tp"),
        (FSDP, LLAMA, {"optimizer": "adafactor"}, "optimizer: got adafactor with fsdp"),
        (FSDP, LLAMA, {"recompute": "full", "reentrant": True}, "reentrant: got true with fsdp"),
        (FSDP, LLAMA, {"precision": "fp8-mixed"}, "precision: got fp8-mixed with fsdp"),
        (PP, LLAMA, {}, "grad-accum: got 1; rule: for 1f1b at least the 2 stages"),
        (Layout(pp=4, schedule="gpipe"), LLAMA, {}, "pp: got 4; rule: a block for each stage; "
         "valid: 1 to 2"),
        (PP, GPT2, {"grad_accum_steps": 2}, "whose head is its embedding"),
    ],
)  # fmt: skip
def test_models_a_layout_cannot_run_are_refused_in_a_line(
    layout: Layout, config: ModelConfig, setup: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
        check_layout(layout, cpu_plan(config, **setup))
    assert words in str(error.value)


def test_the_same_models_run_in_layouts_that_do_not_split_them() -> None:
    for config in (MLP, VOCABULARY, OLMO, MIXTRAL):
        check_layout(FSDP, cpu_plan(config))
        check_layout(Layout(dp=2), cpu_plan(config, optimizer="muon"))
        check_layout(PP, cpu_plan(config, grad_accum_steps=2))


def test_torchruns_environment_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world() == (1, 0, 0, 1)
    given = {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert world() == (16, 9, 1, 8) and world().hosts == 2
