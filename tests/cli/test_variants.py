"""Lists, ranges and --setup: which cases a command line stands for, and which are refused."""

from __future__ import annotations

import shlex
import time

import pytest

from memcalc import estimate
from memcalc.cli.app import parse_arguments
from memcalc.cli.variants import case_of, cases_of, differing
from memcalc.errors import ConfigError
from memcalc.planning.cases import Case, Refused, point_of


def arguments(line: str):
    command, *words = shlex.split(line)
    return parse_arguments(command, words)


def cases(line: str):
    return cases_of(arguments(f"compare {line}"))


def texts(line: str, name: str) -> list[str]:
    return [case.labels[name] for case in cases(line)]


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("1,2,4", ["1", "2", "4"]),
        ("4,1,2", ["4", "1", "2"]),
        (" 1 , 2", ["1", "2"]),
        ("1..4", ["1", "2", "3", "4"]),
        ("1..8:3", ["1", "4", "7"]),
        ("1..8*2", ["1", "2", "4", "8"]),
        ("1,4..6,16", ["1", "4", "5", "6", "16"]),
        ("1,1024,1k,1", ["1", "1024"]),
    ],
)
def test_lists_and_ranges_of_a_count(stated: str, meant: list[str]) -> None:
    found = cases(f"gpt2 --micro-batch '{stated}'")
    assert [case.labels["micro-batch"] for case in found] == meant
    assert [case.setup.micro_batch_size for case in found] == [int(text) for text in meant]


def test_ranges_in_k_are_shown_in_k_and_mean_1024() -> None:
    found = cases("llama-3.2-1b --seq 1k..16k*2")
    assert [case.labels["seq"] for case in found] == ["1k", "2k", "4k", "8k", "16k"]
    assert [case.setup.seq_len for case in found] == [1024, 2048, 4096, 8192, 16384]


def test_ranges_of_numbers_stages_and_lists_of_names() -> None:
    assert texts("gpt2 --dropout 0..0.3:0.1", "dropout") == ["0", "0.1", "0.2", "0.3"]
    assert texts("gpt2 --zero 0..3 --gpus 8", "zero") == ["0", "1", "2", "3"]
    found = cases("gpt2 --recompute none,full:4,full")
    assert [(c.setup.recompute, c.setup.recompute_layers) for c in found] == [
        ("none", None), ("full", 4), ("full", None),
    ]  # fmt: skip


def test_every_list_is_crossed_the_last_one_fastest() -> None:
    line = "compare gpt2,gpt2-xl --micro-batch 1,2 --gpu h100,h200"
    assert differing(arguments(line)) == ["model", "micro-batch", "gpu"]
    found = cases_of(arguments(line))
    assert [tuple(case.labels.values()) for case in found[:3]] == [
        ("gpt2", "1", "h100"), ("gpt2", "1", "h200"), ("gpt2", "2", "h100"),
    ]  # fmt: skip
    assert len(found) == 8 and found[-1].device.gpu.slug == "h200-141gb"


def test_one_value_of_an_option_is_no_label() -> None:
    assert dict(cases("gpt2 --micro-batch 2 --gpu h100")[0].labels) == {}


def test_profiles_by_another_name_are_the_same() -> None:
    line = "compare gpt2,openai-community/gpt2,gpt2-xl --gpu h100,H100-80GB,h200"
    assert [tuple(case.labels.values()) for case in cases_of(arguments(line))] == [
        ("gpt2", "h100"), ("gpt2", "h200"), ("gpt2-xl", "h100"), ("gpt2-xl", "h200"),
    ]  # fmt: skip


def test_setups_are_bundles_crossed_with_the_lists() -> None:
    found = cases(
        "gpt2 --gpus 4 --no-sp --setup --fsdp --setup 'Tensors: --tp 2 --sp' --setup '' --micro-batch 1,2"
    )
    assert [case.labels["setup"] for case in found[::2]] == ["--fsdp", "Tensors", "as stated"]
    assert [(c.parallel.fsdp, c.parallel.tp, c.parallel.sp) for c in found[::2]] == [
        (True, 1, False), (False, 2, True), (False, 1, False),
    ]  # fmt: skip
    assert [case.setup.micro_batch_size for case in found] == [1, 2] * 3


def test_a_setup_may_name_its_model() -> None:
    found = cases("--setup 'gpt2 --micro-batch 4' --setup 'gpt2-xl'")
    assert [(case.model, case.setup.micro_batch_size) for case in found] == [
        ("gpt2", 4), ("gpt2-xl", None),
    ]  # fmt: skip


def test_a_single_setup_tells_nothing_apart() -> None:
    (case,) = cases("gpt2 --setup '--micro-batch 4'")
    assert dict(case.labels) == {} and case.setup.micro_batch_size == 4


@pytest.mark.parametrize("place", [0, 3, 5])
def test_the_command_of_a_case_prices_that_case_alone(memcalc, place: int) -> None:  # type: ignore[no-untyped-def]
    line = (
        "gpt2 --layers 2 --seq 64,128 --gpu h100 --set training.loss_chunks=2 "
        "--setup 'Plain: --loss chunked' --setup '--loss chunked --recompute full' --micro-batch 1,3"
    )
    case = cases(line)[place]
    words = shlex.split(case.command)
    assert words[:2] == ["memcalc", "estimate"]
    found = memcalc(*words[1:], "--json").json
    row = point_of(case).result.to_dict()
    assert found["memory"] == row["memory"] and found["time"] == row["time"]


def test_commands_are_quoted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "a model, of ours"
    folder.mkdir()
    config = (
        '{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, '
        '"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, '
        '"max_position_embeddings": 128}'
    )
    (folder / "config.json").write_text(config)
    (case,) = cases(f"'{folder}' --seq 64")
    words = shlex.split(case.command)
    assert words[2] == str(folder)
    assert estimate(words[2], case.setup).model.name == "a model, of ours"


def test_values_that_do_not_go_together_are_refused_in_their_place() -> None:
    first, second = cases("gpt2 --sp --tp 1,2")
    assert isinstance(first, Refused) and isinstance(second, Case)
    assert "beside tensor parallelism" in first.reason and first.labels == {"tp": "1"}
    assert first.command == "memcalc estimate gpt2 --sp --tp 1"


def test_where_all_are_refused_the_first_reason_is_the_error() -> None:
    with pytest.raises(ConfigError, match="beside tensor parallelism"):
        cases("gpt2 --sp --micro-batch 1,2")


_BAD = {
    "nothing": ("gpt2 --micro-batch ''", "--micro-batch: got an empty value"),
    "only a comma": ("gpt2 --micro-batch ,", "--micro-batch: got ','"),
    "a hole": ("gpt2 --micro-batch 1,,2", "no value between commas is empty"),
    "backwards": ("gpt2 --micro-batch 8..1", "nearest valid: 1..8"),
    "no step": ("gpt2 --micro-batch 1..8:0", "a step above 0"),
    "factor of one": ("gpt2 --micro-batch 1..8*1", "times more than 1"),
    "from zero by a factor": ("gpt2 --micro-batch 0..8*2", "above 0"),
    "open range": ("gpt2 --micro-batch 1..", "FROM..TO"),
    "no factor": ("gpt2 --micro-batch '1..8*'", "FROM..TO"),
    "two units": ("gpt2 --seq 1..16k", "both ends in one unit"),
    "unknown unit": ("gpt2 --seq 1kb,2kb", "got unit 'kb'"),
    "units of memory": ("gpt2 --gpu-memory 40GB,80", "GB (10^9) or GiB"),
    "thousands": ("gpt2 --seq 1,024", "nearest valid: 1024"),
    "zero among them": ("gpt2 --micro-batch 1,0", "at least 1"),
    "not a number": ("gpt2 --micro-batch 1,x", "--micro-batch: got 'x'"),
    "unknown choice": ("gpt2 --precision bf16,bf17", "nearest: bf16"),
    "unknown GPU": ("gpt2 --gpu h100,h1000", "nearest: h100"),
    "unknown stack": ("gpt2 --stack hf,torhc", "nearest: torch"),
    "unknown calibration": ("gpt2 --calibration default,defalt", "calibration: got 'defalt'"),
    "unknown model": ("gpt2,gtp2-xl", "nearest: gpt2-xl"),
    "too many cases": ("gpt2 --micro-batch 1..201 --seq 1..100", "20,100 cases"),
    "a range too long": ("gpt2 --micro-batch 1..100000", "100,000 values"),
    "no model": ("--gpu h100", "got no model"),
    "two models": ("gpt2 --model gpt2-xl", "got MODEL too"),
    "list in a setup": ("gpt2 --setup '--micro-batch 1,2'", "lists stand beside --setup"),
    "said twice": ("gpt2 --micro-batch 1,2 --setup '--micro-batch 3'", "in one place"),
    "output in a setup": ("gpt2 --setup '--json'", "beside --setup, not in it"),
    "unknown in a setup": ("gpt2 --setup '--fsdpp'", "nearest: --fsdp"),
    "bad value in a setup": ("gpt2 --setup '--seq x' --setup --fsdp", "--seq: got 'x'"),
    "unknown GPU in a setup": ("gpt2 --setup '--gpu h1000' --setup --fsdp", "nearest: h100"),
    "open quote": ("""gpt2 --setup "--gpu 'h100" """, "closed quotes"),
    "one name for two": ("gpt2 --setup 'A: --fsdp' --setup 'A: --tp 2'", "a name of its own"),
}


@pytest.mark.parametrize(("line", "said"), _BAD.values(), ids=_BAD.keys())
def test_bad_lists_are_one_line_and_status_2(memcalc, line: str, said: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("compare", *shlex.split(line))
    assert outcome.status == 2
    assert said in outcome.error


def test_a_command_for_one_setup_names_the_list_it_cannot_take() -> None:
    assert case_of(arguments("report gpt2 --micro-batch 2")).setup.micro_batch_size == 2
    with pytest.raises(
        ConfigError, match="--micro-batch: got 2 values; rule: one for chart timeline"
    ):
        case_of(arguments("chart timeline gpt2 --micro-batch 1,2"))


def test_run_files_keep_lists_and_setups(memcalc, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    line = f"compare gpt2,gpt2-xl --micro-batch 1..2 --setup 'A: --recompute full' --setup '' --save {path}"
    first = cases_of(arguments(line))
    again = cases_of(arguments(f"compare --config {path}"))
    assert len(first) == 8
    assert sorted(c.command for c in again) == sorted(c.command for c in first)
    assert (
        cases_of(arguments(f"compare --model gpt2-medium --config {path}"))[0].model
        == "gpt2-medium"
    )


def test_two_thousand_cases_are_built_in_a_fraction_of_a_second() -> None:
    line = "llama-3.2-1b --gpu h100 --micro-batch 1..50 --seq 512..20480:512"
    cases("llama-3.2-1b --gpu h100 --seq 512,1024")
    start = time.process_time()
    found = cases(line)
    taken = time.process_time() - start
    assert len(found) == 2000 and taken < 0.3
    assert len({id(case.config) for case in found}) == len({id(c.device) for c in found}) == 1
    assert len({id(case.parallel) for case in found}) == 1
