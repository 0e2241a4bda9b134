"""Settings as text: written plainly, read safely whatever the file holds."""

from __future__ import annotations

import json

import pytest

from memcalc.errors import ConfigError
from memcalc.planning.interop.formats import NAMES, format_of, parsed
from memcalc.planning.interop.rows import Reading
from memcalc.planning.interop.shell import (
    megatron_document,
    megatron_text,
    script_words,
    titan_document,
    titan_text,
)
from memcalc.planning.interop.texts import flat, nested, write_yaml
from memcalc.planning.interop.tool import read
from tests.unit.interop_support import SETUPS, export_of


@pytest.mark.parametrize("tool", NAMES)
@pytest.mark.parametrize("version", ["", "0.2"])
def test_what_is_written_reads_back_as_the_same_keys(tool, version):
    if version and tool != "torchtitan":
        pytest.skip("one form")
    if tool == "accelerate":
        pytest.importorskip("yaml", reason="YAML is read by PyYAML; pip install 'memcalc[interop]'")
    ending = {"deepspeed": "json", "accelerate": "yaml"}.get(tool, "toml" if version else "txt")
    for words in SETUPS[tool]:
        found = export_of(tool, words, version)
        _, document = parsed(found.text.encode(), f"x.{ending}", tool)
        assert list(map(str, document)) and {k: _text(v) for k, v in document.items()} == {
            k: _text(v) for k, v in found.document.items()
        }, words


def _text(value: object) -> str:
    """A value as a word of a command line would be."""
    if isinstance(value, bool):
        return str(value)
    try:
        return f"{float(str(value)):g}"
    except ValueError:
        return str(value)


def test_nested_and_flat_are_each_others_inverse():
    document = {"a": 1, "b.c": True, "b.d.e": [1, 2], "b.d.f": "x"}
    assert flat(nested(document), "x") == document


def test_yaml_is_written_so_that_words_stay_words():
    yaml = pytest.importorskip("yaml")
    document = {"a": "no", "b": "bf16", "c.d": "0.5", "c.e": True, "f": "x: y # z", "g": 8}
    assert yaml.safe_load(write_yaml(document)) == nested(document)


def test_a_script_is_read_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    text = f"""
    N=8; export TP=2
    X=$(touch {trap})
    ARGS="--num-layers 4 --hidden-size $N"  # a comment --seq-length 9
    torchrun --nproc_per_node ${{N}} --nnodes $((N*2)) train.py $ARGS --tensor-model-parallel-size $TP \\
        --bf16 --recompute-modules mlp core_attn --save `touch {trap}` --seq-length=1024
    """
    document = megatron_document(text)
    assert not trap.exists()
    assert document["num-layers"] == "4" and document["hidden-size"] == "8"
    assert document["tensor-model-parallel-size"] == "2" and document["bf16"] is True
    assert document["recompute-modules"] == ["mlp", "core_attn"]
    assert document["seq-length"] == "1024" and "world" not in document


def test_a_variable_without_a_value_is_said_and_not_taken():
    tool, document = parsed(b"--num-layers $L --micro-batch-size 2 --tensor-model-parallel-size $TP",
                            "arguments", "megatron")  # fmt: skip
    from memcalc.inputs.models import load_model

    reading = read(tool, document, Reading(load_model("llama-3.1-8b")))
    said = {remark.key: remark.kind for remark in reading.remarks}
    assert said["num-layers"] == said["tensor-model-parallel-size"] == "not known"
    assert reading.fields["micro_batch_size"] == 2 and "tp" not in reading.fields


def test_flags_are_written_and_read_both_ways():
    document = {"a.b_c": True, "a.d": False, "x.y": 3, "compile.components": ["model", "loss"],
                "activation-checkpoint": "full"}  # fmt: skip
    text = titan_text(document)
    assert text.splitlines()[-1] == "activation-checkpoint:full"
    again = titan_document(text)
    assert again == {**document, "x.y": "3"}
    assert titan_document("--a.b-c --x.y=3")["a.b_c"] is True
    assert megatron_document(megatron_text({"a": True, "b": [1, 2], "c": 0.5})) == {
        "a": True, "b": ["1", "2"], "c": "0.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "name", "tool"),
    [
        (b"", "x.json", "deepspeed"), (b"[]", "x.json", "deepspeed"), (b"{", "x.json", "deepspeed"),
        (b'{"train_batch_size": NaN}', "x.json", "deepspeed"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "x.json", "deepspeed"),
        (json.dumps({"zero_optimization": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {
            "j": {"k": {"l": {"m": {"n": 1}}}}}}}}}}}}}}}).encode(), "x.json", "deepspeed"),
        (b"a = [[[", "x.toml", "torchtitan"), (b"\xff\xfe", "x.toml", "torchtitan"),
        (b"a = " + b"[" * 4000 + b"]" * 4000, "x.toml", "torchtitan"),
        (b"- 1\n- 2\n", "x.yaml", "accelerate"), (b"a: [", "x.yaml", "accelerate"),
        (b"a: &x [1]\nb: *x\n", "x.yaml", "accelerate"),
        (b"!!python/object/apply:os.system ['true']", "x.yaml", "accelerate"),
        (b"1: 2\n", "x.yaml", "accelerate"), (b"\xff", "x.yaml", "accelerate"),
        (b"a: " + b"{a: " * 3000 + b"1" + b"}" * 3000, "x.yaml", "accelerate"),
        (b"--num-layers 'x", "x.txt", "megatron"), (b"\xff\xfe--num-layers", "x.txt", "megatron"),
        (b"--num-layers 3\0", "x.txt", "megatron"), (b"plain text", "x.txt", None),
        (b"{}", "x.json", "ansible"),
    ],
    ids=lambda value: None if not isinstance(value, bytes) else repr(value[:24]),
)  # fmt: skip
def test_odd_files_are_one_line(data, name, tool):
    if name.endswith("yaml"):
        pytest.importorskip("yaml", reason="YAML is read by PyYAML; pip install 'memcalc[interop]'")
    with pytest.raises(ConfigError) as caught:
        found, document = parsed(data, name, tool)
        read(found, document, Reading())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_document_of_too_many_keys_is_refused():
    tool, document = parsed(
        json.dumps({f"k{n}": n for n in range(6000)}).encode(), "x.json", "deepspeed"
    )
    with pytest.raises(ConfigError, match="at most 5000"):
        read(tool, document, Reading())


def test_versions_of_tools():
    assert format_of("torchtitan").tool.known == "torchtitan 0.3.0"
    for name, version in (("torchtitan", "0.9"), ("megatron", "0.3"), ("nemo", None)):
        with pytest.raises(ConfigError):
            format_of(name, version)


def test_words_of_a_script_are_limited():
    assert all(len(word) <= 10_000 for word in script_words("A=" + "x" * 9000 + "; echo $A$A$A$A"))
