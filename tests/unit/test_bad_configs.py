"""Everything wrong with a file or a value ends in one line that names it."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.hf import FAMILIES, load_config, model_from_config
from memcalc.inputs.hf_files import safetensors_notes

GOOD: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 4, "num_attention_heads": 4,
}  # fmt: skip


def one_line(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert "\n" not in text and 10 < len(text) < 700, text
    return text


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return one_line(error)


def refused_values(**changes: Any) -> str:
    config = {**GOOD, **changes}
    with pytest.raises(ConfigError) as error:
        model_from_config(config, "m")
    return one_line(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"{", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b"[1]", "a list"),
        (b"3", "a number"),
        (b'"x"', "a string"),
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xff\xfe"}', "not UTF-8"),
        (b"\x80\x04\x95", "not UTF-8"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert says in refused(file)
    assert says in refused(tmp_path)


def test_missing_file_and_directory_without_config(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "config.json")
    assert "no config.json" in refused(tmp_path)


def test_large_file_is_refused_by_size(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as out:
        out.truncate(20 * 10**6 + 1)
    assert "at most 20000000" in refused(file)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(GOOD))
    assert "never opened" in refused(file)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert load_config(file) == GOOD


@pytest.mark.parametrize("key", sorted(set(GOOD) - {"model_type"}))
@pytest.mark.parametrize("value", ["64", True, None, 1e30, 64.0, -4, 0, 10**400, [], {}, 1 << 40])
def test_sizes_must_be_whole_positive_and_sane(key: str, value: object) -> None:
    assert key in refused_values(**{key: value})


@pytest.mark.parametrize("key", sorted(set(GOOD) - {"model_type"}))
def test_required_keys(key: str) -> None:
    config = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(ConfigError, match=f"{key}: missing"):
        model_from_config(config, "m")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": None}, "model_type: missing"),
        ({"model_type": 3}, "model_type: got 3"),
        ({"model_type": ["llama"]}, "rule: a name"),
        ({"model_type": "lama"}, "nearest: llama"),
        ({"model_type": "zzz"}, "valid: baichuan, bert, bloom"),
        ({"model_type": "whisper"}, "not in this version"),
        ({"model_type": "umt5"}, "valid of these: bert, mt5, t5"),
        ({"num_attention_heads": 7}, "divides hidden_size = 64"),
        ({"num_key_value_heads": 3}, "divides num_attention_heads"),
        ({"num_hidden_layers": 100_000}, "at most 10000 layers"),
        ({"attention_dropout": 1.0}, "0 <= p < 1"),
        ({"attention_dropout": "0.1"}, "a number"),
        ({"attention_dropout": float("nan")}, "finite"),
        ({"attention_bias": "yes"}, "true or false"),
        ({"tie_word_embeddings": 1}, "true or false"),
        ({"hidden_act": "sillu"}, "nearest: silu"),
        ({"hidden_act": None}, "not known"),
        ({"torch_dtype": "int3"}, "valid: bfloat16"),
        ({"torch_dtype": 3}, "rule: a name"),
        ({"rope_scaling": "linear"}, "an object"),
        ({"quantization_config": []}, "an object"),
    ],
)
def test_bad_values(changes: dict[str, Any], says: str) -> None:
    assert says in refused_values(**changes)


def test_most_encoders_come_later() -> None:
    with pytest.raises(NotInThisVersionError):
        model_from_config({"model_type": "deberta"}, "m")


def test_misspelt_key_is_suggested() -> None:
    config = {k: v for k, v in GOOD.items() if k != "hidden_size"} | {"hiden_size": 64}
    with pytest.raises(ConfigError, match="nearest: hiden_size"):
        model_from_config(config, "m")


def tensor_file(path: Path, header: bytes, length: int | None = None, body: int = 0) -> Path:
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + header + b"\0" * body)
    return path


def test_safetensors_needs_a_config_beside_it(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        }
    ).encode()
    file = tensor_file(tmp_path / "model-00001-of-00002.safetensors", header, body=12)
    assert "no config.json beside" in refused(file)
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    assert load_config(file) == GOOD
    assert safetensors_notes(file) == (
        "model-00001-of-00002.safetensors (one shard of several): 2 tensors, "
        "8 bytes of BF16, 4 bytes of F32",
    )


@pytest.mark.parametrize(
    ("header", "length", "says"),
    [
        (b"", 0, "empty|not valid JSON"),
        (b"{}", 1 << 62, "names a header"),
        (b"{}", 50, "names a header"),
        (b"[]", None, "a list"),
        (b'{"a": 3}', None, "malformed entry"),
        (b'{"a": {"dtype": "F32", "data_offsets": [8, 0]}}', None, "malformed entry"),
        (b'{"a": {"dtype": "F32", "data_offsets": [true, 4]}}', None, "malformed entry"),
        (b"\xff\xff", None, "not UTF-8"),
    ],
)
def test_bad_safetensors(tmp_path: Path, header: bytes, length: int | None, says: str) -> None:
    text = refused(tensor_file(tmp_path / "model.safetensors", header, length))
    assert any(part in text for part in says.split("|"))


def test_truncated_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert "names a header" in refused(tmp_path / "model.safetensors")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


KEYS = (
    "sliding_window", "layer_types", "head_dim", "rope_scaling", "n_shared_experts",
    "num_experts_per_tok", "mlp_only_layers", "text_config", "partial_rotary_factor",
    "torch_dtype", "first_k_dense_replace", "num_kv_heads", "max_window_layers",
    "use_sliding_window", "q_lora_rank", "n_inner", "quantization_config", "auto_map",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(FAMILIES)),
    changes=st.dictionaries(st.sampled_from(sorted({*GOOD, *KEYS} - {"model_type"})), json_values),
    extra=st.dictionaries(st.text(max_size=6), json_values, max_size=3),
)
def test_any_json_is_a_model_or_a_config_error(
    kind: str, changes: dict[str, Any], extra: dict[str, Any]
) -> None:
    config = {**extra, **GOOD, "n_embd": 64, "n_layer": 2, "n_head": 2, **changes}
    try:
        model = model_from_config({**config, "model_type": kind}, "m")
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert model.num_hidden_layers <= 10_000
