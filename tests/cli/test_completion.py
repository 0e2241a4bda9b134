"""Shell completion: what is offered, in the form each shell takes, through a real bash, and set up."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memcalc.cli.complete import answer, candidates
from memcalc.cli.completion_setup import SHELLS
from memcalc.cli.options import COMMANDS, OPTIONS
from memcalc.inputs.profiles import profile_names


def _offered(line: str) -> list[str]:
    """The candidates at the end of a line; a trailing blank begins a new word."""
    words = shlex.split(line)[1:]
    last = "" if line.endswith(" ") else words.pop()
    return [one.word for one in candidates(words, last)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("memcalc esti", ["estimate"]),
        ("memcalc help estim", ["estimate"]),
        ("memcalc estimate llama-3.2-1", ["llama-3.2-1b"]),
        ("memcalc estimate LLAMA-3.2-1", ["llama-3.2-1b"]),
        ("memcalc estimate gpt2 --gpu h100-8", ["h100-80gb"]),
        ("memcalc estimate gpt2 --gpu=h100-8", ["--gpu=h100-80gb"]),
        ("memcalc estimate --gpu h100-8", ["h100-80gb"]),
        ("memcalc estimate gpt2 --gpu loc", ["local"]),
        ("memcalc estimate gpt2 --precision fp16", ["fp16-mixed"]),
        ("memcalc estimate gpt2 --stack torcht", ["torchtitan", "torchtune"]),
        ("memcalc estimate gpt2 --peft q", ["qlora"]),
        ("memcalc estimate gpt2 --opt", ["--optimizer", "--optimizer-impl", "--optimizer-dtype",
                                         "--optimizer-in-backward"]),
        ("memcalc compare gpt2 --gpu h100-80gb,b200-1", ["h100-80gb,b200-180gb"]),
        ("memcalc compare gpt2,llama-3.2-1", ["gpt2,llama-3.2-1b"]),
        ("memcalc search gpt2 --cluster dgx-h1", ["dgx-h100"]),
        ("memcalc search gpt2 --fix mic", ["micro-batch="]),
        ("memcalc solve mi", ["micro-batch"]),
        ("memcalc solve micro-batch llama-3.2-1", ["llama-3.2-1b"]),
        ("memcalc chart ro", ["roofline"]),
        ("memcalc list st", ["stacks"]),
        ("memcalc show gpus h100-8", ["h100-80gb"]),
        ("memcalc infer gpt2 --engine v", ["vllm"]),
        ("memcalc infer gpt2 --weights gguf:Q4_K_M", ["gguf:Q4_K_M"]),
        ("memcalc estimate gpt2 --calibration default-h", ["default-hopper"]),
        ("memcalc estimate ./conf", []),
        ("memcalc estimate gpt2 --config ", []),
        ("memcalc estimate gpt2 --seq ", []),
        ("memcalc import se", []),
        ("memcalc nonsense --gpu h", []),
    ],
)  # fmt: skip
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert _offered(line) == expected


def test_an_option_given_is_not_offered_again_unless_it_may_be_repeated() -> None:
    assert "--gpu" not in _offered("memcalc estimate gpt2 --gpu h100 --gpu")
    assert "--set" in _offered("memcalc estimate gpt2 --set a.b=1 --se")
    assert _offered("memcalc estimate gpt2 --peft lora --gpus 8 ") == []


def test_every_command_and_option_is_offered_with_its_meaning() -> None:
    assert set(COMMANDS) <= {one.word for one in candidates([], "")}
    for option in OPTIONS:
        found = candidates([option.commands[0]], option.flag)
        assert option.help in [one.said for one in found if one.word == option.flag]


def _said(capsys: Any, **environment: str) -> str:
    capsys.readouterr()
    assert answer(environment) == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [
        ("memcalc estimate gpt2 --gpu = h100-8", "5", "h100-80gb\n"),
        ("memcalc estimate gpt2 --gpu =", "4", None),
        ("memcalc infer gpt2 --weights gguf : Q4_K_M", "6", "Q4_K_M\n"),
        ("memcalc solve", "2", "micro-batch\nseq\ngpus\nlayers\nbatch\ncontext\n"),
        ("memcalc estimate 'unclosed", "2", ""),
        ("memcalc nonsense", "x", ""),
    ],
)
def test_bash_parts_words_its_own_way(
    capsys: Any, words: str, at: str, expected: str | None
) -> None:
    said = _said(capsys, _MEMCALC_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=at)
    gpus = "".join(f"{name}\n" for name in ["local", *profile_names("gpus")])
    assert said == (gpus if expected is None else expected)


def test_fish_and_zsh_get_a_line_a_candidate_with_its_meaning(capsys: Any) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "memcalc estimate gpt2 --re"}
    fish = _said(capsys, _MEMCALC_COMPLETE="complete_fish", **asked)
    assert len(fish.splitlines()) == len(_offered("memcalc estimate gpt2 --re"))
    assert all(line.startswith("--re") and "\t" in line for line in fish.splitlines())
    zsh = _said(capsys, _MEMCALC_COMPLETE="complete_zsh", **asked)
    assert zsh.startswith('_arguments \'*: :(("--recompute":"') and len(zsh.splitlines()) == 1
    nothing = {"_TYPER_COMPLETE_ARGS": "memcalc import x"}
    assert _said(capsys, _MEMCALC_COMPLETE="complete_zsh", **nothing) == "_files\n"
    action = {"_TYPER_COMPLETE_FISH_ACTION": "is-args", "_MEMCALC_COMPLETE": "complete_fish"}
    assert answer({**asked, **action}) == 0 and answer({**nothing, **action}) == 1
    power = {"_TYPER_COMPLETE_WORD_TO_COMPLETE": "infe", "_TYPER_COMPLETE_ARGS": "memcalc infe"}
    said = _said(capsys, _MEMCALC_COMPLETE="complete_powershell", **power)
    assert said.startswith("infer:::Serving")


@pytest.mark.parametrize("shell", SHELLS)
def test_typers_scripts_ask_as_we_answer(memcalc: Any, shell: str) -> None:
    script = memcalc("--show-completion", shell).out
    form = {"pwsh": "powershell"}.get(shell, shell)
    assert f"complete_{form}" in script and "_MEMCALC_COMPLETE" in script
    for variable in ("COMP_WORDS", "COMP_CWORD") if shell == "bash" else ("_TYPER_COMPLETE_ARGS",):
        assert variable in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_real_bash_completes_after_installation(
    memcalc: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert memcalc("--install-completion", "bash").status == 0
    script = tmp_path / ".bash_completions" / "memcalc.sh"
    assert script.is_file() and str(script) in (tmp_path / ".bashrc").read_text()
    assert memcalc("doctor", "--json").json["completion"]["installed_for"] == ["bash"]
    (tmp_path / "memcalc").write_text(f'#!/bin/sh\nexec {sys.executable} -m memcalc "$@"\n')
    (tmp_path / "memcalc").chmod(0o755)
    typed = (
        f"source {script}; COMP_WORDS=(memcalc estimate gpt2 --gpu h100-8); COMP_CWORD=4\n"
        "_memcalc_completion memcalc; echo ${COMPREPLY[@]}"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", typed], capture_output=True, text=True,
                          timeout=60, check=False, env=environment)  # fmt: skip
    assert (done.stdout, done.stderr) == ("h100-80gb\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--show-completion", "tcsh"), "shell: got 'tcsh'"),
        (("--show-completion", "bash", "x"), "too many"),
    ],
)
def test_a_shell_without_completion_is_refused_in_one_line(
    memcalc: Any, words: Any, said: str
) -> None:
    outcome = memcalc(*words)
    assert outcome.status == 2 and said in outcome.error


@pytest.mark.parametrize(
    ("name", "said"),
    [("pwsh", "pwsh is not installed"), ("/no/.bashrc", "No such file: /no/.bashrc")],
)
def test_a_script_that_cannot_be_put_in_place_is_offered_otherwise(
    memcalc: Any, monkeypatch: Any, name: str, said: str
) -> None:
    def fail(**_: Any) -> None:
        raise FileNotFoundError(2, "No such file", name)

    monkeypatch.setattr("typer.completion.install", fail)
    outcome = memcalc("--install-completion", "pwsh")
    assert (
        said in outcome.error and "nearest valid: memcalc --show-completion pwsh" in outcome.error
    )


def test_an_answer_takes_a_moment() -> None:
    environment = {**os.environ, "_MEMCALC_COMPLETE": "complete_bash", "COMP_CWORD": "4",
                   "COMP_WORDS": "memcalc estimate gpt2 --gpu h100-8"}  # fmt: skip
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "memcalc"], env=environment, check=True,
                       capture_output=True, timeout=60)  # fmt: skip
        times.append(time.perf_counter() - begun)
    assert min(times) < 1.0  # 0.07 s of an idle machine's
