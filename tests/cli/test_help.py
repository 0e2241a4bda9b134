"""Help: the first screen, every command's page on a terminal, as Markdown and as a man page."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memcalc.cli.app import parse_arguments
from memcalc.cli.examples import EXAMPLES
from memcalc.cli.options import COMMANDS, OPTIONS, POSITIONALS, options_of
from memcalc.cli.pages.files import man_page, man_start
from memcalc.cli.pages.page import page_of, said_of
from memcalc.cli.pages.words import ABOUT, ARGUMENTS, GROUPS

DOCS = Path(__file__).parents[2] / "docs"
ALL = sorted(COMMANDS)


def _words(text: str) -> str:
    """The text as one line, whatever the wrapping."""
    return " ".join(text.split())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_first_screen_has_every_command_once_under_a_question(memcalc: Any, words: Any) -> None:
    text = memcalc(*words).out
    for command in COMMANDS:
        assert len(re.findall(rf"^  {command} ", text, re.MULTILINE)) == 1, command
    assert all(f"\n{question}\n" in text for question, _ in GROUPS)
    assert "Examples" in text and max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 52  # a screen of today


def test_every_command_is_in_one_group_and_has_prose_and_examples() -> None:
    grouped = [name for _, names in GROUPS for name in names]
    assert sorted(grouped) == ALL == sorted(ABOUT) == sorted(EXAMPLES)
    assert {word for words, _ in COMMANDS.values() for word in words.split()} == set(ARGUMENTS)


@pytest.mark.parametrize("command", ALL)
def test_help_has_every_option_with_its_meaning_choices_and_default(
    memcalc: Any, command: str
) -> None:
    text = memcalc(command, "--help").out
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    whole = _words(text)
    for option in options_of(command):
        assert f"{option.flag} " in whole, option.flag
        assert _words(said_of(option, command)) in whole, option.flag
        assert all(choice in said_of(option, command) for choice in option.choices)
        assert not option.default or f"[{option.default}]" in whole
    headings = re.findall(r"^\w.*$", text, re.MULTILINE)
    order = ["Usage", "Output", "Exit status", "Environment", "Examples"]
    assert [word for word in headings if word in order] == order
    for code, said in ABOUT[command].status:
        assert re.search(rf"^  {code} +{re.escape(said.split()[0])}", text, re.MULTILINE)
    assert memcalc("help", command).out == text


@pytest.mark.parametrize("command", ALL)
def test_the_short_help_names_every_option_and_is_shorter(memcalc: Any, command: str) -> None:
    text, full = memcalc(command, "-h").out, memcalc(command, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    assert all(option.flag in text for option in options_of(command))
    assert len(text) < len(full) and "Examples" in text


@pytest.mark.parametrize(
    ("command", "example"), [(c, line) for c, lines in EXAMPLES.items() for line in lines]
)
def test_an_example_is_a_command_line_that_is_understood(command: str, example: str) -> None:
    words = shlex.split(example)
    if words[0] == "torchrun":
        words = words[words.index("memcalc") :]
    assert words[:2] == ["memcalc", command]
    arguments = parse_arguments(command, words[2:])
    fewest, most = POSITIONALS[command]
    assert fewest <= len(arguments.positionals) <= most


def test_no_option_is_without_explanation_or_says_its_choices_twice() -> None:
    for option in OPTIONS:
        assert option.help[0].isupper() or option.help.split()[0].rstrip("'s,") in (
            "cuda", "grpo", "ppo", "torch.compile",
        )  # fmt: skip
        for command in option.commands:
            said = said_of(option, command)
            for choice in option.choices:
                assert said.count(f" {choice},") <= 1, (option.name, said)


def test_one_option_is_asked_for_by_name(memcalc: Any) -> None:
    out = memcalc("help", "estimate", "--seq", "recompute").out
    assert out.splitlines()[0].split()[:2] == ["--seq", "N"] and "--recompute" in out
    assert len(out.splitlines()) < 10
    outcome = memcalc("help", "infer", "--recompute")
    assert outcome.status == 2 and "--recompute" in outcome.error


@pytest.mark.parametrize(
    ("words", "said"),
    [(("help", "estimte"), "nearest: estimate"), (("estimte", "--help"), "nearest: estimate"),
     (("help", "--sequence"), "option"), (("help", "doctor", "--seq"), "--json"),
     (("help", "--seq"), "nearest valid: memcalc help estimate --seq"),
     (("help", "kv-cache"), "nearest valid: memcalc help infer --kv-cache"),
     (("help", "estimate", "nonsense"), "see `memcalc help estimate`")],
)  # fmt: skip
def test_help_on_what_is_not_known_is_one_line(memcalc: Any, words: Any, said: str) -> None:
    outcome = memcalc(*words)
    assert outcome.status == 2 and said in outcome.error


def test_help_imports_neither_typer_nor_rich() -> None:
    code = (
        "import sys; from memcalc.__main__ import main; main(['estimate', '--help'])\n"
        "print([m for m in ('typer', 'rich', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("command", ALL)
def test_a_man_page_has_every_option_and_no_line_that_roff_would_take(command: str) -> None:
    text = man_page(page_of(command))
    plain = text.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")
    assert all(option.flag in plain for option in options_of(command))
    requests = {line.split()[0] for line in text.splitlines() if line[:1] in (".", "'")}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".B", ".PP", ".nf", ".fi"}


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("text", [man_page(page_of("chart")), man_start()])
def test_man_reads_the_pages_without_a_warning(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.1").write_text(text)
    done = subprocess.run(
        ["man", "--warnings", "-l", str(tmp_path / "page.1")], capture_output=True, text=True,
        check=False, timeout=60, env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and "NAME" in done.stdout
