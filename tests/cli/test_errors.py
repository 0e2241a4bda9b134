"""Bad input is refused in one line on stderr with exit status 2, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
