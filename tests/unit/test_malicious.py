"""What someone might hand to memcalc on purpose: each is refused in one line, with status 2, at once.

What fuzzing found is here too, each under the name of what was wrong (docs/fuzzing.md). Oracle and
guard are those of the fuzzer: no traceback, one `error:` line, nothing run, nothing written elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memcalc.inputs.csv_text import safe_cell
from tests.fuzz import oracle, seeds
from tests.fuzz.oracle import Case, Ended

TINY = seeds.TINY


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Path]:
    """A folder to run in, with a good config.json."""
    with oracle.sandbox(tmp_path) as work:
        oracle.run(Case(["estimate", "gpt2", "--layers", "1"]), work)  # whatever is imported late
        (work / "ok.json").write_text(json.dumps(TINY))
        yield work


def ran(box: Path, *words: str) -> Ended:
    """How a command ended; nothing about that may be wrong."""
    ended, found = oracle.run(Case(list(words)), box, 10.0, keep=True)
    assert found is None, found
    return ended


def refused(box: Path, *words: str) -> str:
    """The one line of a refused command, said within a second of the processor's time."""
    ended = ran(box, *words)
    assert ended.status == 2, ended.out
    assert ended.seconds < 1.5, ended.seconds
    return ended.err.removeprefix("error: ").strip()


def config(**changes: Any) -> bytes:
    return json.dumps({**TINY, **changes}).encode()


def digits(count: int) -> bytes:
    return config(vocab_size=7).replace(b'"vocab_size": 7', b'"vocab_size": ' + b"9" * count)


_CONFIGS: dict[str, tuple[bytes, str]] = {
    "900 lists deep": (config(a=1)[:-1] + b',"b":' + b"[" * 900 + b"]" * 900 + b"}", "too deeply"),
    "40 objects deep": (b'{"a":' * 40 + b"1" + b"}" * 40, "too deeply"),
    "100,000 lists deep": (b"[" * 100_000, "too deeply"),
    "an integer of 100,000 digits": (digits(100_000), "not valid JSON"),
    "an integer of 4,000 digits": (digits(4000), "vocab_size: got a number of about 2^"),
    "2^63 + 1 layers": (config(num_hidden_layers=2**63 + 1), "num_hidden_layers"),
    "2^63 + 1 words": (config(vocab_size=2**63 + 1), "vocab_size"),
    "5,000 layers": (config(num_hidden_layers=5000), "at most 4096"),
    "a million layers named": (
        config(model_type="qwen3_moe", num_experts=4, mlp_only_layers=[1] * 10**6), "mlp_only_layers"),
    "NaN": (config(hidden_size=float("nan")), "NaN"),
    "Infinity": (config(rope_theta=float("inf")), "Infinity"),
    "1e999": (config(hidden_size=7).replace(b'"hidden_size": 7', b'"hidden_size": 1e999'), "1e999"),
    "a negative size": (config(hidden_size=-64), "hidden_size: got -64"),
    "true for a size": (config(hidden_size=True), "hidden_size: got True"),
    "a text for a size": (config(hidden_size="64"), "hidden_size: got '64'"),
    "a size as a fraction": (config(hidden_size=64.5), "hidden_size: got 64.5"),
    "a key twice": (b'{"hidden_size": 3, ' + config()[1:], "'hidden_size' twice"),
    "UTF-16": (config().decode().encode("utf-16"), "not UTF-8"),
    "UTF-32": (config().decode().encode("utf-32"), "not UTF-8"),
    "a zip file": (b"PK\x03\x04" + bytes(range(256)), "not UTF-8"),
    "a pickle": (b"\x80\x04\x95\x10\0\0\0", "not UTF-8"),
    "code for a model nobody knows": (
        config(model_type="mystery", auto_map={"AutoModel": "evil.Model"}), "not supported"),
    "an escape sequence in a name": (config(model_type="\x1b[31mred"), "not supported"),
    "a line break in a name": (config(model_type="a\nerror: b"), "not supported"),
}  # fmt: skip


@pytest.mark.parametrize("content, said", _CONFIGS.values(), ids=_CONFIGS.keys())
def test_a_malicious_config_is_refused(box: Path, content: bytes, said: str) -> None:
    (box / "config.json").write_bytes(content)
    assert said in refused(box, "estimate", "config.json")


def test_a_config_that_names_code_runs_none_of_it(box: Path) -> None:
    (box / "config.json").write_bytes(
        config(auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True)
    )
    for name in ("evil.py", "modeling.py", "configuration.py", "__init__.py", "sitecustomize.py"):
        (box / name).write_text("open('pwned', 'w').write('x')\n")
    ended = ran(box, "estimate", "config.json")
    assert ended.status == 0 and not (box / "pwned").exists()
    assert "never loaded or run" in ended.err


_PATHS: dict[str, tuple[str, str]] = {
    "a device without end": ("/dev/zero", "not a regular file"),
    "memory of the process": ("/proc/self/mem", "cannot read"),
    "the root": ("/", "no config.json"),
    "a Hub id with parents": ("meta-llama/../../etc/passwd", "a profile name"),
    "an absolute Hub id": ("//etc/passwd", ""),
    "a folder of the Hub's cache": ("models--a--b", "not known"),
    "NUL in a name": ("a\0b.json", "not found"),
    "NUL in a profile": ("a\0b", "a profile name"),
    "an unknown user's home": ("~nobody-here/config.json", "not found"),
    "5,000 characters": ("x" * 5000, "a profile name"),
    "an escape sequence": ("org/mo\x1b[31mdel", "a profile name"),
    "a second error line": ("a\nerror: b", "a profile name"),
    "markup": ("[red]x[/red]", "a profile name"),
    "text that runs backwards": ("a\u202eb", "a profile name"),
    "half a character": ("a\udcff", "a profile name"),
}  # fmt: skip


@pytest.mark.parametrize("name, said", _PATHS.values(), ids=_PATHS.keys())
def test_a_path_trick_is_refused(box: Path, name: str, said: str) -> None:
    assert said in refused(box, "estimate", name)


_READERS = (
    ("estimate", "{}"), ("infer", "{}"), ("estimate", "ok.json", "--gpu", "{}"),
    ("estimate", "ok.json", "--cluster", "{}"), ("show", "gpus", "{}"), ("diff", "{}", "{}"),
    ("estimate", "ok.json", "--gpu", "t4", "--calibration", "{}"), ("import", "{}"),
    ("estimate", "ok.json", "--config", "{}"), ("accuracy", "--rows", "{}"),
    ("chart", "accuracy", "--record", "{}"), ("chart", "timeline", "--record", "{}"),
)  # fmt: skip


@pytest.mark.parametrize("words", _READERS, ids=" ".join)
def test_no_command_waits_for_a_pipe_or_reads_a_device(box: Path, words: tuple[str, ...]) -> None:
    os.mkfifo(box / "pipe.toml")
    os.symlink("/dev/zero", box / "endless.toml")
    os.symlink("loop.toml", box / "loop.toml")
    (box / "folder.toml").mkdir()
    for name in ("pipe.toml", "endless.toml", "loop.toml", "folder.toml"):
        assert refused(box, *(word.format(name) for word in words))


_TOML = {
    "900 lists deep": "a = " + "[" * 900 + "]" * 900,
    "100,000 lists deep": "a = " + "[" * 100_000,
    "dotted 500 deep": ".".join("a" * 500) + " = 1",
    "an integer of 5,000 digits": "marketed_gb = " + "9" * 5000,
    "NaN": "marketed_gb = nan",
    "true": "marketed_gb = true",
    "a date": "marketed_gb = 1979-05-27",
    "a key twice": "a = 1\na = 2",
    "no UTF-8": b"a = '\xff'",
    "UTF-16": "a = 1".encode("utf-16"),
    "JSON": "{}",
}


@pytest.mark.parametrize("words", _READERS[:9], ids=" ".join)
@pytest.mark.parametrize("text", _TOML.values(), ids=_TOML.keys())
def test_malicious_toml_is_refused(box: Path, words: tuple[str, ...], text: str | bytes) -> None:
    (box / "x.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    extra = ["--model", "ok.json"] if words[0] == "import" else []
    ended = ran(box, *(word.format("x.toml") for word in words), *extra)
    assert ended.status == 2 or words[0] == "import", ended


_HEADERS = {
    "2^62 bytes of header": struct.pack("<Q", 1 << 62) + b"{}",
    "100 MB of header": struct.pack("<Q", 10**8) + b"{}",
    "no header": struct.pack("<Q", 0) + b"{}",
    "a deep header": struct.pack("<Q", 2000) + b"[" * 2000,
    "an entry without end": struct.pack("<Q", 60)
    + b'{"a":{"dtype":"F32","data_offsets":[0,1e400]}}'.ljust(60),
    "a zip file": b"PK\x03\x04" + b"\0" * 60,
}  # fmt: skip


@pytest.mark.parametrize("content", _HEADERS.values(), ids=_HEADERS.keys())
def test_a_safetensors_header_of_wild_length_is_refused(box: Path, content: bytes) -> None:
    (box / "m.safetensors").write_bytes(content)
    assert refused(box, "estimate", "m.safetensors")


_YAML = {
    "an object": '!!python/object/apply:os.system ["touch pwned"]',
    "a module": "distributed_type: !!python/module:os",
    "a name": "distributed_type: !!python/name:os.system",
    "laughs": "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]",
    "itself": "a: &a [*a]",
    "5,000 lists deep": "a: " + "[" * 5000,
    "keys that are lists": "? [1]\n: 2",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("text", _YAML.values(), ids=_YAML.keys())
def test_yaml_makes_no_objects_and_follows_no_alias(box: Path, text: str) -> None:
    pytest.importorskip("yaml")
    (box / "a.yaml").write_text(text)
    assert refused(box, "import", "a.yaml", "--model", "ok.json")
    assert not (box / "pwned").exists()


def test_a_cell_of_csv_is_no_formula(box: Path) -> None:
    (box / "=cmd").mkdir()
    (box / "=cmd" / "config.json").write_bytes(config())
    words = [
        "compare",
        "=cmd/",
        "--setup",
        "=1+1: --grad-clip",
        "--setup",
        "@x: --recompute full",
        "--csv",
    ]
    ended = ran(box, *words)
    cells = [cell for row in csv.reader(io.StringIO(ended.out)) for cell in row]
    assert ended.status == 0 and "'=1+1" in cells and "'@x" in cells
    assert not [cell for cell in cells if cell[:1] in ("=", "@")]
    kept = ("-1.5e-3", "+3", "-", "1,234", "-5%", "plain", "", 3, None, -0.5)
    assert [safe_cell(value) for value in kept] == list(kept)
    for text in ("=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\rx", "-1; x"):
        assert str(safe_cell(text))[:1] in ("'", "?")


_BOMBS: dict[str, tuple[tuple[str, ...], str]] = {
    "seq 10**30": (("estimate", "ok.json", "--seq", "1" + "0" * 30), "beyond any real run"),
    "a number of 100,000 digits": (("estimate", "ok.json", "--seq", "9" * 100_000), "100000 digits"),
    "an expression": (("estimate", "ok.json", "--seq", "10**30"), "a positive number"),
    "a range of 10^9": (("compare", "ok.json", "--seq", "1..1000000000"), "1,000,000,000 values"),
    "the same in a chart": (("chart", "sweep", "ok.json", "--seq", "1..1000000000"), "values"),
    "steps of 1e-12": (("compare", "ok.json", "--dropout", "0..0.9:1e-12"), "values; rule: at most"),
    "steps that hardly grow": (("compare", "ok.json", "--imbalance", "1..1e300*1.0000001"), "about 1e+307"),
    "10^10 cases": (
        ("compare", "ok.json", "--seq", "1..20000", "--micro-batch", "1..20000"), "400,000,000 cases"),
    "a million stages": (
        ("estimate", "ok.json", "--pp", "4", "--stage-layers", "1," * 10**6 + "1"), "1000001 values"),
    "10^9 layers": (("estimate", "ok.json", "--layers", "1000000000"), "at most 2"),
    "10^9 GPUs": (("estimate", "ok.json", "--gpus", "1000000000"), "1 to 1,048,576"),
    "a pipeline of 10^6 micro-batches": (
        ("estimate", "ok.json", "--pp", "2", "--grad-accum", "1000000"), "nearest valid: 131072"),
    "10^9 chunks of a loss": (
        ("estimate", "ok.json", "--loss", "chunked", "--set", "training.loss_chunks=1000000000"),
        "loss_chunks"),
}  # fmt: skip


@pytest.mark.parametrize("words, said", _BOMBS.values(), ids=_BOMBS.keys())
def test_a_legitimate_option_is_no_bomb(box: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(box, *words)


_WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "a superscript as a number": (
        ("estimate", "ok.json", "--set", "model.layer_types=\u00b2,full"), "layer_types"),
    "a layer that is a text": (
        ("estimate", "moe.json", "--set", "model.moe.sparse_layers=a,1"), "sparse_layers"),
    "thousands of digits in a list": (
        ("estimate", "ok.json", "--set", "training.recompute_modules=" + "9" * 6000), "digits"),
    "NUL in the folder of a bundle": (("calibrate", "--contribute", "a\0b"), "a folder's name"),
    "a home nobody has": (("import", "~nobody-here/a.json", "--model", "ok.json"), "cannot read"),
    "a run file's table that is a number": (("estimate", "--config", "run.toml"), "rule: a table"),
}  # fmt: skip


@pytest.mark.parametrize("words, said", _WORDS.values(), ids=_WORDS.keys())
def test_a_word_that_once_was_an_error_of_ours_is_refused(
    box: Path, words: tuple[str, ...], said: str
) -> None:
    (box / "run.toml").write_text("training = 3\n")
    (box / "moe.json").write_bytes(config(model_type="mixtral"))
    assert said in refused(box, *words)
