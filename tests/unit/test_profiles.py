"""Finding and reading profiles: spellings, aliases, refused names, hashes."""

from __future__ import annotations

import hashlib

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs import profiles


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A profile tree with two models and nothing else."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "llama-3.1-8b.toml").write_text(
        'name = "Llama 3.1 8B"\naliases = ["meta-llama/Llama-3.1-8B", "llama31"]\n'
    )
    (models / "gpt2.toml").write_text('name = "GPT-2"\n')
    monkeypatch.setattr(profiles, "profiles_dir", lambda: tmp_path)
    return models


def test_the_repository_has_the_kinds():
    assert (profiles.profiles_dir() / "gpus").is_dir()


def test_an_installed_package_reads_its_own_profiles(tmp_path, monkeypatch):
    package = tmp_path / "memcalc"
    (package / "inputs").mkdir(parents=True)
    monkeypatch.setattr(profiles, "__file__", str(package / "inputs" / "profiles.py"))
    assert profiles.profiles_dir() == tmp_path / "profiles"
    (package / "_profiles").mkdir()
    assert profiles.profiles_dir() == package / "_profiles"


def test_names_are_sorted_stems(folder):
    assert profiles.profile_names("models") == ["gpt2", "llama-3.1-8b"]
    assert profiles.profile_names("stacks") == []


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-8b", "Llama-3.1-8B", "llama 3.1 8b", "LLAMA_3.1_8b", "llama31",
        "meta-llama/Llama-3.1-8B", "META-LLAMA/llama-3.1-8b", " llama-3.1-8b ",
    ],
)  # fmt: skip
def test_usual_spellings_and_hub_ids_find_the_profile(folder, name):
    assert profiles.find_profile("models", name).stem == "llama-3.1-8b"
    assert profiles.load_profile("models", name)["name"] == "Llama 3.1 8B"


def test_an_exact_stem_opens_one_file(folder, monkeypatch):
    opened = []
    read = profiles.read_toml
    monkeypatch.setattr(profiles, "read_toml", lambda path: opened.append(path) or read(path))
    profiles.load_profile("models", "llama-3.1-8b")
    assert [path.stem for path in opened] == ["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("name", "near"), [("llama-3.1-8", "llama-3.1-8b"), ("meta-llama/Llama-3.1-9B", "meta-llama/")]
)
def test_a_wrong_name_says_the_nearest_stem_or_alias(folder, name, near):
    with pytest.raises(ConfigError, match=near) as error:
        profiles.load_profile("models", name)
    assert "\n" not in str(error.value)
    assert "nearest" in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "", "  ", "../gpus/h100-80gb", "..", "/etc/passwd", "models//gpt2", "gpt2\x00", "gpt2\n",
        "a\\b", "~/gpt2", "./gpt2", "gpt2/../gpt2", "*", "gpt2;", "x" * 300,
    ],
)  # fmt: skip
def test_path_tricks_and_non_names_are_refused(folder, name):
    if name == "gpt2\n":  # a trailing newline is a blank
        assert profiles.find_profile("models", name).stem == "gpt2"
        return
    with pytest.raises(ConfigError) as error:
        profiles.find_profile("models", name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_a_slash_never_descends_into_folders(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "gpt3.toml").write_text('name = "no"\n')
    with pytest.raises(ConfigError, match="not known"):
        profiles.find_profile("models", "deep/gpt3")


def test_a_wrong_kind_names_the_kinds(folder):
    with pytest.raises(ConfigError, match="nearest: models"):
        profiles.profile_names("model")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_not_toml_is_a_one_line_error(folder, content):
    (folder / "broken.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="valid TOML") as error:
        profiles.load_profile("models", "broken")
    assert "\n" not in str(error.value)


def test_aliases_must_be_a_list_of_strings(folder):
    (folder / "broken.toml").write_text('aliases = "x"\n')
    with pytest.raises(ConfigError, match="list of strings"):
        profiles.find_profile("models", "nosuch")


def test_the_hash_is_the_start_of_sha256(folder):
    path = folder / "gpt2.toml"
    assert profiles.profile_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    with pytest.raises(ConfigError, match="cannot read"):
        profiles.profile_hash(folder / "nosuch.toml")
