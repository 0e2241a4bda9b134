"""Every `memcalc` command and Python block of the README and docs runs, with the output shown; links lead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.doc_outputs import PAGES, ROOT, Shown, blocks, commands, furnish, run, steady
from tests.draws import ALL

#: Commands that run real steps, seconds each: the first of a page, all with MEMCALC_DRAWS=all.
_STEPS = ("verify", "measure", "calibrate")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def shown_now() -> list[Shown]:
    """What a run of the tests compares."""
    found, stepped = [], set()
    for shown in commands():
        steps = shown.command.split()[1] in _STEPS
        if not steps or ALL or shown.page not in stepped:
            found.append(shown)
        stepped |= {shown.page} if steps else set()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: the repository's files by name, and the files that pages show."""
    return furnish(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("shown", shown_now(), ids=lambda s: f"{s.page.name}: {s.command[8:60]}")
def test_a_console_block_shows_what_the_command_prints(shown: Shown, folder: Path) -> None:
    done = run(shown.command, folder)
    assert done.returncode in (0, 3), f"{shown.page.name}: {shown.command}: {done.stderr}"
    assert steady(done.stdout) == steady(shown.output), "python -m benchmarks.doc_outputs"


@pytest.mark.parametrize(("page", "code"), blocks("bash"), ids=lambda v: getattr(v, "name", ""))
def test_every_memcalc_word_of_a_bash_block_is_a_command(
    page: Path, code: str, folder: Path
) -> None:
    for line in re.findall(r"memcalc ([^&|\n]*)", code):
        done = run(f"memcalc {line}", folder)
        assert done.returncode in (0, 3), f"{page.name}: memcalc {line}: {done.stderr}"


@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=lambda v: getattr(v, "name", ""))
def test_a_python_block_runs(page: Path, code: str) -> None:
    exec(compile(code, page.name, "exec"), {})


def test_the_readme_has_commands_and_code() -> None:
    assert commands() and blocks("python") and blocks("bash")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in text} == set()
    assert "](commands/README.md)" in text


def test_an_output_that_moved_is_rewritten_and_no_other(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from benchmarks import doc_outputs

    page = tmp_path / "page.md"
    kept = (
        "```console\n$ memcalc --version\nmemcalc 0.0\n\n$ memcalc list engines --quiet\nold\n```\n"
    )
    page.write_text(kept)
    monkeypatch.setattr(doc_outputs, "PAGES", [page])
    assert doc_outputs.main([]) == 0
    text = page.read_text()
    assert "memcalc 0.0" not in text and "\n\n$ memcalc list" in text and "old" not in text
    assert doc_outputs.main([]) == 0 and page.read_text() == text
