"""Bad input is refused in one line on stderr with exit status 2, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcalc.inputs.peft import METHODS
from memcalc.inputs.training_names import RECOMPUTE

_BAD = {
    "no model": ((), "argument: got none"),
    "unknown model": (("llama-9",), "model: got 'llama-9'"),
    "unknown gpu": (("gpt2", "--gpu", "h1000"), "nearest: h100"),
    "local gpu": (("gpt2", "--gpu", "local"), "--gpu: got local, but"),
    "unknown option": (("gpt2", "--precison", "bf16"), "nearest: --precision"),
    "unknown precision": (("gpt2", "--precision", "bf17"), "nearest: bf16"),
    "unknown stack": (("gpt2", "--stack", "torhc"), "nearest: torch"),
    "negative seq": (("gpt2", "--seq", "-5"), "--seq: got '-5'"),
    "zero seq": (("gpt2", "--seq", "0"), "at least 1"),
    "huge seq": (("gpt2", "--seq", "1e30"), "--seq"),
    "long seq": (("gpt2", "--seq", "1" + "0" * 30), "beyond any real run"),
    "seq beyond learned positions": (("gpt2", "--seq", "2048"), "at most 1024"),
    "zero micro-batch": (("gpt2", "--micro-batch", "0"), "--micro-batch"),
    "huge micro-batch": (("gpt2", "--micro-batch", "9" * 17), "micro_batch_size"),
    "absurd micro-batch": (("gpt2", "--micro-batch", "1073741824"), "at most 2^50"),
    "absurd depth": (("gpt2", "--set", "model.num_hidden_layers=1m"), "num_hidden_layers"),
    "batches that disagree": (
        ("gpt2", "--global-batch", "7", "--micro-batch", "2"), "a multiple of micro-batch"),
    "nan": (("gpt2", "--imbalance", "nan"), "finite"),
    "infinite": (("gpt2", "--dropout", "inf"), "finite"),
    "dropout": (("gpt2", "--dropout", "1"), "0 <= p < 1"),
    "memory without unit": (("gpt2", "--gpu-memory", "80"), "GB (10^9) or GiB"),
    "no memory": (("gpt2", "--gpu-memory", "0GiB"), "above 0"),
    "reserve all": (("gpt2", "--gpu", "h100", "--reserve", "200GB"), "--reserve"),
    "recompute": (("gpt2", "--recompute", "ful"), "nearest: full"),
    "phase": (("gpt2", "--phase", "evaluation"), "--phase: got 'evaluation', not known; nearest: eval"),
    "unread choice": (("gpt2", "--phase", "load", "--load-by", "bogus", "-q"), "--load-by: got 'bogus'"),
    "number with a unit": (("gpt2", "--imbalance", "$1,100.5"), "nearest valid: 1100.5"),
    "percentage": (("gpt2", "--imbalance", "40%"), "rule: a number; nearest valid: 40"),
    "recompute layers": (("gpt2", "--recompute", "full:13"), "at most the 12 layers"),
    "recompute none:3": (("gpt2", "--recompute", "sac:3"), "only full:N"),
    "recompute full:": (("gpt2", "--recompute", "full:"), "positive number"),
    "layers": (("gpt2", "--layers", "13"), "at most 12"),
    "missing value": (("gpt2", "--seq"), "got no value"),
    "option as value": (("gpt2", "--seq", "--json"), "got no value"),
    "value of a flag": (("gpt2", "--json=yes"), "takes no value"),
    "too many": (("gpt2", "gpt2-xl"), "too many"),
    "two forms": (("gpt2", "--json", "--csv"), "one form"),
    "set without field": (("gpt2", "--set", "loss"), "field=value"),
    "set table": (("gpt2", "--set", "trainin.loss=plain"), "nearest: training"),
    "set field": (("gpt2", "--set", "training.loss_chunk=4"), "nearest: loss_chunks"),
    "set type": (("gpt2", "--set", "training.reentrant=perhaps"), "true or false"),
    "set kernel": (("gpt2", "--set", "kernels.norm=quick"), "kernels.norm"),
    "set experts of none": (("gpt2", "--set", "model.moe.num_experts=2"), "has no moe"),
    "heads": (("gpt2", "--set", "model.num_key_value_heads=5"), "valid: 1, 2, 3, 4, 6, 12"),
    "missing file": (("./nothing/config.json",), "not found"),
    "missing run file": (("gpt2", "--config", "./nothing.toml"), "cannot read"),
    "timeline ending": (("gpt2", "--timeline", "step.txt"), ".csv or .json"),
    "unwritable out": (("gpt2", "-o", "./nothing/a.json"), "cannot write"),
    "directory as out": (("gpt2", "-o", "."), "directory"),
    "control characters": (("gpt2\n\x1b[31m",), "model"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), _BAD.values(), ids=_BAD.keys())
def test_bad_input_is_one_line_and_status_2(memcalc, words, said: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", *words)
    assert outcome.status == 2
    assert said in outcome.error and "\x1b" not in outcome.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("estimat", "gpt2"), "nearest: estimate"),
        (("--frobnicate",), "option"),
        (("list", "modles"), "nearest: models"),
        (("list", "--tp", "2"), "--tp"),
        (("show",), "argument"),
        (("show", "nosuchthing"), "show: got 'nosuchthing'"),
        (("show", "clusters", "dgx-h101"), "nearest: dgx-h100"),
        (("doctor", "now"), "too many"),
        (("explain", "gpt2", "--gpu", "h100"), "not an option of explain"),
        (("explain", "gpt2", "--csv"), "not an option of explain"),
        (("diff", "gpt2"), "memcalc diff A B"),
        (("diff", "gpt2", "gpt2 'open"), "closed quotes"),
    ],
)
def test_other_commands_refuse_alike(memcalc, words, said: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*words)
    assert outcome.status == 2 and said in outcome.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("estimate", "gpt2", "--batch-size", "4"), "not known; nearest valid: --micro-batch"),
        (("infer", "gpt2", "--batch-size", "4"), "nearest valid: --batch"),
        (("estimate", "gpt2", "-b", "4"), "nearest valid: --micro-batch"),
        (("estimate", "gpt2", "--gradient-checkpointing"), "nearest valid: --recompute full"),
        (("estimate", "gpt2", "--gradient_checkpointing"), "nearest valid: --recompute full"),
        (("infer", "gpt2", "--max-model-len", "8k"), "nearest valid: --context"),
        (("estimate", "gpt2", "--zero3"), "nearest valid: --zero 3 --stack deepspeed"),
        (("estimate", "gpt2", "--batch", "4"),
         "not an option of estimate, but of infer, solve, chart, verify, measure; nearest valid: "
         "--micro-batch"),
        (("infer", "gpt2", "--seq", "8k"), "nearest valid: --context"),
        (("estimate", "gpt2", "--format", "json"), "but of export, import; see `memcalc estimate -h`"),
        (("estimate", "gpt2", "--stack", "transformers"), "nearest valid: --stack hf"),
        (("compare", "gpt2", "--stack", "torch,Megatron-LM"), "nearest valid: --stack megatron"),
        (("estimate", "gpt2", "--optimizer", "adam"), "nearest valid: --optimizer adamw"),
        (("estimate", "gpt2", "--recompute", "true"), "nearest valid: --recompute full"),
        (("infer", "gpt2", "--engine", "ollama"), "nearest valid: --engine llama.cpp"),
        (("serve", "gpt2"), "nearest valid: memcalc infer"),
        (("version",), "nearest valid: memcalc --version"),
        (("llama-3.1-8b", "--gpu", "h100"), "nearest valid: memcalc estimate llama-3.1-8b"),
        (("--gpu", "h100", "estimate", "gpt2"), "got '--gpu' before the command"),
        (("solve", "gpt2", "seq", "--gpu", "t4"), "nearest valid: memcalc solve seq gpt2"),
        (("compare", "gpt2", "gpt2-xl"), "nearest valid: gpt2,gpt2-xl, commas between models"),
        (("chart", "breakdown", "gpt2", "gpt2-xl"), "nearest valid: gpt2,gpt2-xl"),
        (("compare", "gpt2", "--micro-batch", "1-4"), "nearest valid: 1..4"),
        (("train-time", "gpt2", "--gpu", "h100", "--tokens", "1e9"), "nearest valid: 1000000000"),
        (("estimate", "gpt2", "--gpu-memory", "40G"), "nearest valid: 40GB, 40GiB"),
        (("estimate", "gpt2", "--gpu", "8xH100"), "nearest valid: --gpu h100 --gpus 8"),
        (("estimate", "gpt2", "--gpu", "qwertz"), "see `memcalc list gpus`; or a .toml file"),
        (("estimate", "some/thing"), "nearest valid: `hf download some/thing config.json` first"),
        (("estimate", "some/thing-GGUF"), "the id of the model itself"),
        (("estimate", "https://huggingface.co/openai-community/gpt2/tree/main"),
         "rule: a Hub id; nearest valid: openai-community/gpt2"),
        (("accuracy", "--source", "qqqqq"), "see `memcalc accuracy`"),
    ],
)  # fmt: skip
def test_what_other_programs_call_it_is_answered_with_our_word(memcalc, words, said: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*words)
    assert outcome.status == 2 and said in outcome.error


def test_every_word_offered_for_another_programs_is_one_of_ours() -> None:
    from memcalc.cli import other_names
    from memcalc.cli.options import BY_FLAG, BY_NAME, COMMANDS
    from memcalc.inputs.profiles import profile_names

    offered = [flag for said in other_names._OPTIONS for flag in said.split() if flag[:2] == "--"]
    assert set(offered) <= set(BY_FLAG)
    assert {said.split()[0] for said in other_names._COMMANDS} <= {*COMMANDS, "--version"}
    for name, words in other_names._VALUES.items():
        known = BY_NAME[name].choices or [
            *profile_names("stacks"),
            *RECOMPUTE,
            *METHODS,
            "freeze:N",
        ]
        assert set(words) <= set(known), name


def test_a_run_file_in_the_place_of_a_model_is_told_so(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    assert memcalc("estimate", "gpt2", "--seq", "64", "--save", path).status == 0
    assert f"a run file; nearest valid: --config {path}" in memcalc("estimate", path).error


def test_a_profile_that_lies_here_is_named_by_its_file(
    memcalc, tmp_path: Path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "my-gpu.toml").write_text("marketed_gb = 16\n")
    monkeypatch.chdir(tmp_path)
    outcome = memcalc("estimate", "gpt2", "--gpu", "my-gpu")
    assert "nearest valid: my-gpu.toml, a file here" in outcome.error


def _config(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }  # fmt: skip
    return {**base, **changes}


_BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "not json": b"{'a': 1",
    "a list": b"[1, 2]",
    "json of another kind": b'{"name": "package", "version": "1.0"}',
    "deep nesting": b"[" * 100_000,
    "not a number": json.dumps(_config(hidden_size=float("nan"))).encode(),
    "infinite": json.dumps(_config(vocab_size=float("inf"))).encode(),
    "negative": json.dumps(_config(num_hidden_layers=-2)).encode(),
    "zero": json.dumps(_config(num_attention_heads=0)).encode(),
    "absurd": json.dumps(_config(hidden_size=10**30)).encode(),
    "text for a number": json.dumps(_config(hidden_size="many")).encode(),
    "heads not divisible": json.dumps(_config(num_key_value_heads=3)).encode(),
    "unknown model_type": json.dumps(_config(model_type="resnet")).encode(),
    "code of its own": json.dumps(
        _config(model_type="mystery", auto_map={"AutoModel": "m.Model"})
    ).encode(),
    "not utf-8": b"\xff\xfe\x00{",
}


@pytest.mark.parametrize("content", _BAD_FILES.values(), ids=_BAD_FILES.keys())
@pytest.mark.parametrize("command", ["estimate", "explain"])
def test_a_bad_config_is_one_line(memcalc, tmp_path: Path, command: str, content: bytes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    outcome = memcalc(command, path)
    assert outcome.status == 2 and outcome.error


def test_a_directory_without_config_and_a_huge_file_are_refused(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "config.json" in memcalc("estimate", f"{tmp_path}/").error
    huge = tmp_path / "config.json"
    with huge.open("wb") as file:
        file.truncate(100 * 10**6)
    outcome = memcalc("estimate", huge)
    assert outcome.status == 2 and "at most" in outcome.error


def test_debug_adds_the_traceback(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "nosuch", "--debug")
    assert outcome.status == 2 and "Traceback" in outcome.err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RuntimeError("boom\nand more"), 1, "error: internal: RuntimeError: boom and more"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(28, "No space left on device"), 2, "error: output: No space left on device"),
    ],
)
def test_what_goes_wrong_inside_is_one_line(memcalc, monkeypatch, error, status, said) -> None:  # type: ignore[no-untyped-def]
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("memcalc.cli.run.run_command", fail)
    monkeypatch.setattr("memcalc.__main__._drop_stdout", lambda: None)
    outcome = memcalc("doctor")
    assert outcome.status == status and outcome.err.startswith(said)
    assert len(outcome.err.splitlines()) == 1
