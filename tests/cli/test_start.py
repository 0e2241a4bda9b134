"""Start-up, help and pipes: what only a process of its own shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_HEAVY = ("torch", "pandas", "matplotlib", "numpy", "rich", "transformers")


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("['estimate', 'gpt2', '--seq', '64', '--gpu', 'h100', '--json']", ()),
        ("['estimate', 'gpt2', '--seq', '64', '--quiet']", ("rich",)),
        ("['estimate', 'gpt2', '--seq', '64']", ("rich",)),
        ("['list', 'stacks', '--json']", ()),
        ("['doctor', '--json']", ()),
    ],
)
def test_a_command_imports_nothing_it_does_not_need(words: str, allowed: tuple[str, ...]) -> None:
    code = (
        "import sys; from memcalc.__main__ import main\n"
        f"status = main({words})\n"
        f"print([m for m in {_HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = _run("-c", code)
    assert done.returncode == 0
    assert set(eval(done.stderr.splitlines()[-1])) <= set(allowed)


def test_no_colour_in_a_pipe_even_if_a_variable_asks_for_it() -> None:
    done = _run("-m", "memcalc", "estimate", "gpt2", "--seq", "64", FORCE_COLOR="1")
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [(), ("--help",), ("estimate", "--help"), ("diff", "-h")])
def test_help_fits_80_columns_with_examples(words: tuple[str, ...]) -> None:
    done = _run("-m", "memcalc", *words, COLUMNS="80", FORCE_COLOR="1")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Examples" in done.stdout and "memcalc " in done.stdout


def test_typer_reads_a_command_into_arguments() -> None:
    from memcalc.cli.app import parse_arguments

    read = parse_arguments("estimate", ["gpt2", "--seq", "64", "--set", "a.b=1", "--set", "c.d=2"])
    assert read.positionals == ["gpt2"] and not read.wants_json
    assert read.options == {"seq": "64", "set": ["a.b=1", "c.d=2"]}


def test_a_closed_pipe_and_a_full_disk_leave_no_traceback() -> None:
    command = f"{sys.executable} -m memcalc list models"
    piped = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert piped.stderr == ""
    if os.path.exists("/dev/full"):
        full = subprocess.run(
            ["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert full.returncode == 2 and full.stderr.startswith("error: output:")
        assert len(full.stderr.splitlines()) == 1


def test_version_is_the_packages() -> None:
    import memcalc

    assert _run("-m", "memcalc", "--version").stdout == f"memcalc {memcalc.__version__}\n"
