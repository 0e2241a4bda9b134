"""docs/commands is what the generator writes; the outputs in it are held by tests/test_readme.py."""

from __future__ import annotations

from benchmarks.command_pages import FOLDER, SHOWN, kept_outputs, main, pages
from memcalc.cli.options import COMMANDS, options_of


def test_the_pages_are_what_the_option_table_says_today() -> None:
    written = pages(kept_outputs())
    assert {path.name for path in FOLDER.iterdir()} == set(written)
    stale = [name for name, text in written.items() if (FOLDER / name).read_text() != text]
    assert not stale, "run python -m benchmarks.command_pages"


def test_every_shown_example_has_its_output() -> None:
    found = kept_outputs()
    assert set(found) == set(SHOWN) <= set(COMMANDS) and all(found.values())
    assert all(line.split()[:2] == ["memcalc", command] for command, line in SHOWN.items())


def test_a_page_has_a_row_for_every_option() -> None:
    for command in COMMANDS:
        text = (FOLDER / f"{command}.md").read_text()
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        for option in options_of(command):
            assert sum(f"{option.flag} " in row.replace("`", " ") for row in rows) >= 1, option.flag


def test_check_says_whether_a_page_is_stale(capsys, monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert main(["--check"]) == 0 and "up to date" in capsys.readouterr().out
    monkeypatch.setattr("benchmarks.command_pages.FOLDER", tmp_path)
    assert main(["--check"]) == 1 and "estimate.md" in capsys.readouterr().out
