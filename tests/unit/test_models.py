"""MODEL on the command line: paths, names and the local Hub cache, in that order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs import profiles
from memcalc.inputs.models import load_model

GOOD: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 4, "num_attention_heads": 4,
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--some-org--Some-Model_1.5"
    for commit, layers in (("a" * 40, 2), ("b" * 40, 3)):
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**GOOD, "num_hidden_layers": layers}))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    return repo


def failing(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_model(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_file_directory_and_named_file(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GOOD))
    (folder / "other.json").write_text(json.dumps(GOOD))
    assert load_model(str(folder)).name == "my-model"
    assert load_model(str(folder / "config.json")).name == "my-model"
    assert load_model(str(folder / "other.json")).name == "other"


def test_safetensors_file_adds_its_header_as_a_note(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    header = b'{"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}'
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert load_model(str(file)).notes == ("model.safetensors: 1 tensors, 4 bytes of BF16",)


def test_model_toml(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in GOOD.items()]
    file.write_text('name = "mine"\n[config]\n' + "\n".join(lines))
    assert load_model(str(file)).name == "mine"
    file.write_text("name = [")
    assert "not valid TOML" in failing(str(file))


def test_cache_prefers_the_commit_of_main(hub: Path) -> None:
    model = load_model("some-org/Some-Model_1.5")
    assert model.num_hidden_layers == 2 and model.name == "some-org/Some-Model_1.5"
    (hub / "refs" / "main").write_text("../../etc")
    assert load_model("some-org/Some-Model_1.5").num_hidden_layers in (2, 3)
    snapshot = hub / "snapshots" / ("b" * 40)
    assert load_model(str(snapshot)).name == "some-org/Some-Model_1.5"


def test_hf_home_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "models--org--name" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(GOOD))
    assert load_model("org/name").hidden_size == 64


def test_profiles_come_before_the_cache(hub: Path) -> None:
    assert load_model("gpt2").name == "gpt2"


def test_a_directory_named_like_a_profile_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("gpt2").name == "gpt2"
    assert "no config.json" in failing("./gpt2")
    assert "no config.json" in failing(".")


@pytest.mark.parametrize("name", ["missing.json", "nowhere.toml", "/nowhere/x", "./x", "~/nope-x"])
def test_what_looks_like_a_path_is_a_file_error(name: str) -> None:
    assert "not found" in failing(name) and "nearest" not in failing(name)


def test_existing_parent_makes_it_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "not found" in failing("runs/checkpoint-5")


def test_unknown_names_suggest_the_nearest() -> None:
    assert "nearest: llama-3.1-8b" in failing("lama-3.1-8b")


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 100_000, "a\0b", "../../etc/passwd2", "é", "a//b"]
)
def test_odd_names_are_refused_in_one_line(name: str) -> None:
    assert len(failing(name)) < 400


@pytest.mark.parametrize("name", ["llama-3.1-8b", "meta-llama/Llama-3.1-8B"])
def test_direct_names_open_one_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(kind: str) -> list[str]:
        raise AssertionError("scanned every profile")

    monkeypatch.setattr(profiles, "profile_names", never)
    assert load_model(name).name == "llama-3.1-8b"
